"""Baselines of a run, read from its folder."""

import json
from pathlib import Path
from typing import Any

from prunelit.report.page.baselines import baseline_sentences, list_baselines, view_baselines
from prunelit.report.page.outcome import write_outcome
from prunelit.report.page.record_file import digest_results
from prunelit.report.page.runs import judge, read_run
from prunelit.report.page.view import build_page, closing_sentences
from prunelit.report.verdicts import Margins

ROUNDED = {
    "name": "8bit",
    "source": None,
    "bits": 8,
    "left_out": {},
    "parameters": {"dense": 100, "pruned": 100},
    "bytes": {"dense": 400, "pruned": 400},
    "file_bytes": {"dense": 200, "pruned": 64},
}
OTHER = {"name": "small", "source": "a/small", "bits": None, "left_out": {"need x": ["text"]}}


def beside(make_run: Any, folder: Path, record: dict[str, Any], **options: Any) -> None:
    own = make_run(folder / "baselines" / record["name"], **options)
    (own / "pruned" / "pruning.json").unlink()
    whole = {**record, "key": None, "results": digest_results(own)}
    (own / "baseline.json").write_text(json.dumps(whole))


def test_baselines_stand_beside_the_pruned_model(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    beside(make_run, folder, OTHER)
    beside(make_run, folder, ROUNDED)
    make_run(folder / "baselines" / "unfinished")
    run = read_run(folder)
    judge([run], Margins(keep="choose=0.1"))
    assert baseline_sentences(run) == [
        "Baseline 8bit: keeps multiple choice; loses retrieval and generation; 32% of the dense "
        "model's bytes, in theory.",
        "Baseline small: keeps multiple choice; loses retrieval and generation.",
    ]
    assert closing_sentences([run])[-2:] == baseline_sentences(run)
    view = view_baselines(run)
    assert view is not None
    assert view["sizes"] == [
        ["dense", "0.0001", "0.0004", "0.0002", "100%"],
        ["pruned", "0.0001", "0.0004", "not known", "100% (in memory)"],
        ["8bit", "0.0001", "0.0004", "6.4e-05", "32% (in theory)"],
        ["small", "not known", "not known", "not known", "not known"],
    ]
    rows = [row["task"] for row in view["strips"][0]["strips"][0]["rows"]]
    assert rows == ["pruned", "8bit", "small"]
    assert view["notes"][1] == "small is not measured on text: they need x."
    found = list_baselines(run)
    assert found["8bit"]["uses"]["multiple choice"] == "keeps"
    assert found["8bit"]["file_bytes"] == ROUNDED["file_bytes"]
    assert found["8bit"]["file_bytes_are"] == "theory"
    write_outcome(run)
    assert [*json.loads((folder / "verdicts.json").read_text())["baselines"]] == ["8bit", "small"]
    assert "- Baseline 8bit: keeps" in (folder / "pruned" / "README.md").read_text()
    assert "rounded to 8 bit" in build_page(run.baselines[:1])["runs"][0]["about"]


def test_other_rows_are_not_compared(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    beside(make_run, folder, ROUNDED, rows="cd" * 32)
    run = read_run(folder)
    judge([run], Margins())
    (sentence,) = baseline_sentences(run)
    assert sentence == "Baseline 8bit: not compared, as its rows are not those of the run."
    view = view_baselines(run)
    assert view is not None
    assert view["strips"] == []


def test_a_damaged_baseline_is_left_out(make_run: Any, tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    beside(make_run, folder, OTHER)
    assert len(read_run(folder).baselines) == 1
    (folder / "baselines" / "small" / "scores.parquet").write_bytes(b"damaged")
    assert read_run(folder).baselines == []
