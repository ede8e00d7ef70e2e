"""`prunelit compare` from end to end on tiny models."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunelit.report.results import read_results

Config = dict[str, Any]
Cli = Callable[..., None]


@pytest.fixture
def start(
    tmp_path: Path,
    make_config: Callable[[Path], Config],
    save_config: Callable[..., Path],
    cli: Cli,
) -> Callable[..., None]:
    """`start("compare", *options)` runs the tasks of `fit`, without its pruning."""
    config = make_config(tmp_path)

    def run(subcommand: str, *options: str, pruning: bool = False) -> None:
        own = {**config} if pruning else {k: v for k, v in config.items() if k != "pruning"}
        cli(subcommand, "--config", str(save_config(tmp_path, own)), *options)

    return run


def refused(capfd: Any, start: Callable[[], Any]) -> str:
    with pytest.raises(SystemExit) as left:
        start()
    assert left.value.code == 2
    return capfd.readouterr().err.strip().splitlines()[-1]


def test_a_pruned_folder_gives_the_numbers_of_fit(
    fitted: Path, material: Path, start: Callable[..., None], capsys: Any, tmp_path: Path
) -> None:
    pruned = str(fitted / "run" / "pruned")
    options = (
        "--model.candidate",
        pruned,
        "--keep",
        "0.9",
        "--fail_on",
        "cannot_tell",
        "--verbose",
    )
    with pytest.raises(SystemExit) as left:
        start("compare", *options)
    assert left.value.code == 3
    folder = tmp_path / "run" / "board" / "only"
    found = read_results(folder / "results.jsonl")
    before = read_results(fitted / "run" / "board" / "only" / "results.jsonl")
    assert list(map(repr, found)) == list(map(repr, before))  # NaN as well
    assert {result.pruned for result in found} == {pruned}
    assert {result.recipe for result in found} == {None}
    models = found[0].models
    assert models is not None
    assert [models[name]["source"] for name in ("dense", "candidate")] == [
        str(material / "dense"),
        pruned,
    ]
    assert models["dense"]["content"] != models["candidate"]["content"]
    assert models["dense"]["dtype"] == models["candidate"]["dtype"] == "float32"
    verdicts = json.loads((folder / "verdicts.json").read_text())
    assert {verdict["margin"] for verdict in verdicts["tasks"]} == {0.9}
    assert "Verdicts:" in capsys.readouterr().out


def test_it_prunes_nothing(material: Path, start: Callable[..., None], capfd: Any) -> None:
    source = ("--model.candidate", str(material / "dense"))
    sentence = refused(capfd, lambda: start("compare", *source, pruning=True))
    assert "does not accept `pruning`" in sentence
    assert "`prunelit compare` a `model.candidate`" in sentence
    for subcommand in ("fit", "validate"):
        sentence = refused(capfd, lambda name=subcommand: start(name, *source, pruning=True))
        assert "Expected `pruning` or `model.candidate` but got both" in sentence
    sentence = refused(capfd, lambda: start("compare"))
    assert "Expected `model.candidate`, the model to compare with `model.source`" in sentence


def test_without_a_configuration_it_measures_text_and_the_shipped_questions(
    cli: Cli, capsys: Any
) -> None:
    options = ("--model.source", "mine", "--model.candidate", "other", "--print_config")
    with pytest.raises(SystemExit) as left:
        cli("compare", *options)
    assert left.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    tasks = printed["data"]["tasks"]
    kinds = [task["class_path"].rpartition(".")[2] for task in tasks]
    assert kinds == ["Distribution", "MultipleChoice"]
    assert {task["init_args"]["path"] for task in tasks} == {"prunelit:facts.jsonl"}
    assert printed["data"]["triad"]
    assert printed["trainer"]["default_root_dir"] == "runs/compare"
    assert "pruning" not in printed


def test_a_configuration_takes_the_place_of_the_default(
    cli: Cli, capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "own.yaml").write_text("model: {source: mine, candidate: other}\n")
    with pytest.raises(SystemExit):
        cli("compare", "--config", str(tmp_path / "own.yaml"), "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["data"]["tasks"] is None
