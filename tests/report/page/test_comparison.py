import json
from pathlib import Path
from typing import Any

from prunelit.report.page.comparison import compare_runs
from prunelit.report.page.runs import read_run


def test_equal_runs_are_comparable(make_run: Any, tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name)) for name in "ab"]
    found = compare_runs(runs)
    assert (found.word, found.rows, found.settings) == ("yes", [], [])


def test_other_rows_forbid_a_verdict(make_run: Any, tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / rows, rows=rows)) for rows in ("aa", "bb")]
    found = compare_runs(runs)
    assert found.word == "no"
    assert [one.place for one in found.rows] == ["choose, find, answers"]
    assert (found.rows[0].key, found.rows[0].values) == ("rows_sha256", ("aa", "bb"))
    assert "the rows of choose, find, answers differ" in found.sentence


def test_other_settings_ask_for_care(make_run: Any, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / "a"), make_run(tmp_path / "b", temperature=0.7)]
    path = folders[1] / "pruned" / "pruning.json"
    report = json.loads(path.read_text())
    report["versions"]["torch"] = "2.14.0"
    path.write_text(json.dumps(report))
    (folders[1] / "config.yaml").write_text("{seed_everything: 1, model: {source: Rome}}")
    found = compare_runs([read_run(folder) for folder in folders])
    assert found.word == "with care"
    values = {(one.place, one.key): one.values for one in found.settings}
    assert values["run", "version of torch"] == ("2.13.0", "2.14.0")
    assert values["run", "seed_everything"] == ("0", "1")
    assert values["choose, find, answers", "temperature"] == ("not known", "0.7")


def test_another_dense_model_shows(make_run: Any, tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name)) for name in "ab"]
    next(r for r in runs[1].results if (r.task, r.model) == ("find", "dense")).value = 0.8
    (one,) = compare_runs(runs).settings
    assert (one.place, one.key, one.values) == ("find", "score of the dense model", ("0.9", "0.8"))


def test_runs_without_a_common_task(make_run: Any, tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name)) for name in "ab"]
    for result in runs[1].results:
        result.task += "_2"
    found = compare_runs(runs)
    assert (found.word, found.sentence) == ("no", "No: the runs have no task in common.")
    assert found.alone[:2] == ["choose", "find"]


def test_the_libraries_that_measured_are_compared(make_run: Any, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name) for name in "ab"]  # pruned by the same versions
    for folder, torch, device in zip(folders, ("2.13", "2.14"), ("cpu", "cuda"), strict=True):
        around = {"device": device, "precision": "32-true", "versions": {"torch": torch}}
        (folder / "environment.json").write_text(json.dumps(around))
    found = compare_runs([read_run(folder) for folder in folders])
    assert found.word == "with care"
    values = {one.key: one.values for one in found.settings}
    assert values == {"version of torch": ("2.13", "2.14"), "device": ("cpu", "cuda")}
