"""Where a run comes from, and what it left out."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from prunelit.report.page.provenance import (
    list_missing,
    list_provenance,
    list_settings,
    name_command,
)
from prunelit.report.page.runs import Run, judge, read_run
from prunelit.report.verdicts import Margins

LONG = "x" * 400


def read(make_run: Any, tmp_path: Path, **options: Any) -> Run:
    run = read_run(make_run(tmp_path / "my run", **options))
    judge([run], Margins())
    return run


def test_hashes_versions_and_seeds_are_listed(make_run: Any, tmp_path: Path) -> None:
    rows = dict(list_provenance(read(make_run, tmp_path, text=LONG)))
    assert rows["dense: model.safetensors"] == "sha256 12"
    assert (rows["recipe"], rows["version of torch"], rows["seed_everything"]) == (
        *("r1", "2.13.0", "0"),
    )
    assert rows["precision"] == "32"
    assert rows["test"] == "Holm over 3 tasks, one-sided 5%"
    assert len(rows["dense model"]) < len(LONG)


def test_each_task_has_the_settings_of_its_main_result(make_run: Any, tmp_path: Path) -> None:
    found = dict(list_settings(read(make_run, tmp_path)))
    assert [*found] == ["choose", "find", "answers", "text"]
    assert dict(found["find"])["dense"] == "0.9"
    assert found["text"] == []


def test_the_command_names_the_configuration(make_run: Any, tmp_path: Path) -> None:
    run = read(make_run, tmp_path)
    path = f"'{tmp_path / 'my run' / 'config.yaml'}'"
    assert name_command(run) == f"prunelit fit --config {path}"
    for config, subcommand in (
        ({"variants": {"a": 1}}, "sweep"),
        ({"variants": {"a": 1}, "seeds": 1}, "search"),
    ):
        other = replace(run, config=config)
        assert name_command(other).startswith(f"prunelit {subcommand} --config ")
    assert name_command(replace(run, config_path=None)) == ""


def test_what_is_not_measured_is_said(make_run: Any, tmp_path: Path) -> None:
    run = read(make_run, tmp_path)
    first, speed, rest = list_missing(run)
    assert first == "No task of this run measures classification or similarity of texts."
    assert speed == "Speed and memory while the model is used."
    assert rest.endswith("safety.")
    _, speed, _ = list_missing(replace(run, gains={"speed": {}}))
    assert speed.startswith("Speed of long texts")
