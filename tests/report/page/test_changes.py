from pathlib import Path
from typing import Any

import pytest

from prunelit import InputError
from prunelit.report.items import write_items
from prunelit.report.page.changes import find_changes
from prunelit.report.page.runs import read_run


@pytest.mark.parametrize("task", ["choose", "find", "answers"])
def test_items_that_were_right_and_became_wrong(make_run: Any, tmp_path: Path, task: str) -> None:
    changes = find_changes(read_run(make_run(tmp_path / "run")), task)
    assert [one.place for one in changes.worse] == list(range(18))
    assert [one.place for one in changes.better] == [38, 39]
    assert changes.flips == (task != "find")
    first = changes.worse[0]
    assert first.target == "Rome"
    assert first.dense in ("Rome", "It is Rome.")
    assert first.pruned in ("no pruned Rome", "It is no pruned Rome.")
    assert "Q0:" in first.prompt


def test_counts_in_words(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert find_changes(run, "choose").count() == "18 of 40 items were right and became wrong"
    assert find_changes(run, "find").count() == "18 of 40 items have a lower mrr"
    assert find_changes(run, "find").worse[0].note == "rank 1 → 7"
    answers = find_changes(run, "answers")
    assert answers.count(better=True) == "2 of 40 items were wrong and became right"
    assert answers.worse[3].note == "the texts part after 3 equal tokens"
    assert (answers.parts, answers.equal) == (19.5, 0.25)


def test_graded_scores_come_with_the_largest_loss_first(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    scores = [(1.0, 0.5), (0.9, 0.1), (0.2, 0.7), (0.3, 0.3), (float("nan"), 0.1)]
    rows = [
        {"query": f"q{n}", "model": model, "text": "t", "first": list("abcdefg"), "mrr": value}
        for n, pair in enumerate(scores)
        for model, value in zip(("dense", "pruned"), pair, strict=True)
    ]
    write_items(rows, run.items_path("find"))
    changes = find_changes(run, "find")
    assert [one.name for one in changes.worse] == ["q1", "q0"]
    assert [one.name for one in changes.better] == ["q2"]
    assert changes.n == 4  # a query without a score is no item
    assert changes.worse[0].dense == "a, b, c, d, e ..."
    assert changes.worse[0].note == "mrr 0.90 → 0.10"


def test_tasks_without_scored_items_are_refused(make_run: Any, tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    write_items([{"model": "dense", "mrr": 1.0}], run.items_path("find"))
    with pytest.raises(
        InputError, match=r"'find' cannot be compared: .* no columns `model`, `item`"
    ):
        find_changes(run, "find")
    with pytest.raises(InputError, match="The task 'text' has no items"):
        find_changes(run, "text")
