"""The model card, and scores in the form of the hub."""

from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries

from prunelit.report.page.card import format_card, format_scores, write_card
from prunelit.report.page.runs import Run, judge, read_run
from prunelit.report.verdicts import Margins

HOSTILE = (
    "<script>alert(1)</script> ![](http://evil.example/i.png) [a](javascript:b) | x\n---\n"
    "license: mit\n# big \u202egnp \x1b[31m {{ 7 * 7 }}"
)


def judged(folder: Path) -> Run:
    run = read_run(folder)
    judge([run], Margins())
    return run


def test_the_card_has_metadata_and_the_decision(make_run: Any, tmp_path: Path) -> None:
    run = judged(make_run(tmp_path / "run", text="org/model"))
    assert write_card(run, tmp_path / "run" / "pruned") is None
    text = (tmp_path / "run" / "pruned" / "README.md").read_text(encoding="utf-8")
    data = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    assert data["base_model"] == "org/model"
    assert data["library_name"] == "transformers"
    assert data["tags"] == ["prunelit", "pruned", "wanda"]
    (index,) = data["model-index"]
    (found,) = index["results"]  # of one data set
    assert found["dataset"]["name"] == "rows.jsonl"
    assert {"type": "acc", "value": 0.5, "name": "choose: acc"} in found["metrics"]
    assert len(found["metrics"]) == 3
    for part in ("Do not ship", "| loses |", "## Gains", "## Warnings", "## Not measured"):
        assert part in text


def test_hostile_texts_are_only_shown(make_run: Any, tmp_path: Path) -> None:
    run = judged(make_run(tmp_path / "run", text=HOSTILE, answer=HOSTILE))
    for result in run.results:
        result.details |= {"subset": HOSTILE, "path": HOSTILE}
    text = format_card(run, HOSTILE)
    _, metadata, body = text.split("---\n", 2)
    assert "license" not in yaml.safe_load(metadata)
    for part in ("<script", "![", "](", "\u202e", "\x1b", "# big"):
        assert part not in body
    assert "\u202e" not in text
    assert "\x1b" not in text
    assert body.count("\n---") == 0


def test_a_card_of_someone_else_stays(make_run: Any, tmp_path: Path) -> None:
    run = judged(make_run(tmp_path / "run"))
    path = tmp_path / "run" / "pruned" / "README.md"
    path.write_text("My own card.")
    assert "was not written by prunelit" in str(write_card(run, path.parent))
    assert path.read_text() == "My own card."
    path.unlink()
    assert write_card(run, path.parent) is None
    first = path.read_text()
    assert write_card(run, path.parent) is None
    assert path.read_text() == first


def test_scores_on_data_sets_of_the_hub_have_its_form(make_run: Any, tmp_path: Path) -> None:
    run = judged(make_run(tmp_path / "run"))
    assert format_scores(run) == {}  # rows of a local file
    for result in run.results:
        if result.task == "choose":
            result.details |= {"path": "org/facts", "commit": "ab12", "subset": "easy"}
    (text,) = format_scores(run).values()
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("org/facts", "easy", 0.5)
    assert entry.dataset_revision == "ab12"
    assert "acc of 40 rows of train" in str(entry.notes)
    write_card(run, tmp_path / "run" / "pruned")
    assert (tmp_path / "run" / "pruned" / ".eval_results" / "choose.yaml").read_text() == text
