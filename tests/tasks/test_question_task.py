"""Rows of the tasks on questions."""

import json
from pathlib import Path
from typing import Any

from prunelit.tasks.prompting.few_shot import FewShot
from prunelit.tasks.question_task import QuestionTask
from prunelit.tasks.questions import Question


class Asks(QuestionTask):
    """Only what the base has."""

    read = prepare = collate = step = report = None  # type: ignore[assignment]


def write(path: Path, contexts: list[str], **more: Any) -> str:
    rows = [{"q": text, "options": ["a", "b"], "gold": 1, **more} for text in contexts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


COLUMNS = {"context": "q", "choices": "options", "label": "gold"}


def make(path: str, **options: Any) -> Asks:
    return Asks(path=path, columns=COLUMNS, batch_size=2, name="asks", **options)


def test_rows_are_read_with_the_options_of_the_task(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ["one", "two", "three", "four"])
    task = make(path, split="test[25%:]", limit=2)
    assert task.read_questions() == [
        Question("0", "two", ["a", "b"], 1),
        Question("1", "three", ["a", "b"], 1),
    ]


def test_examples_come_from_the_file_of_the_task_or_another_one(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ["one", "two"])
    other = write(tmp_path / "other.jsonl", ["three"])
    task = make(path, limit=1)
    assert [question.context for question in task.read_pool(FewShot())] == ["one", "two"]
    assert [question.context for question in task.read_pool(FewShot(path=other))] == ["three"]


def test_the_details_name_the_rows(tmp_path: Path) -> None:
    first = make(write(tmp_path / "a.jsonl", ["one"]), subset="easy")
    same = make(write(tmp_path / "b.jsonl", ["one"], more=3))
    changed = make(write(tmp_path / "c.jsonl", ["two"]))
    details, others, different = (
        task.row_details(task.read_questions()) for task in (first, same, changed)
    )
    # A local file has no subsets.
    assert (details["path"], details["split"], details["subset"]) == (first.path, "train", None)
    assert details["rows_sha256"] == others["rows_sha256"] != different["rows_sha256"]
