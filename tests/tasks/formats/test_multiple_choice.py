"""Rows in the forms of the hub, written by hand, and what is made of them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunelit import InputError
from prunelit.tasks import formats
from prunelit.tasks.formats import multiple_choice
from prunelit.tasks.formats.base import Format, read_questions
from prunelit.tasks.questions import GroupedQuestion, Question

# One row of each data set as the hub holds it, and its question.
HUB: list[tuple[Format, dict[str, Any], Question]] = [
    (
        formats.arc,
        {
            "id": "M_1",
            "question": "What floats? ",
            "choices": {"text": ["a stone", "a cork", "a nail"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
        Question("M_1", "What floats? ", ["a stone", "a cork", "a nail"], 1),
    ),
    (
        formats.commonsense_qa,
        {
            "id": "c",
            "question": " Where is milk kept?",
            "question_concept": "milk",
            "choices": {"label": ["A", "B"], "text": ["oven", "fridge"]},
            "answerKey": "B",
        },
        Question("c", "Where is milk kept?", ["oven", "fridge"], 1),
    ),
    (
        formats.openbookqa,
        {
            "id": "7-1",
            "question_stem": "The sun is",
            "choices": {"text": ["a star", "a moon"], "label": ["A", "B"]},
            "answerKey": " A",
        },
        Question("7-1", "The sun is", ["a star", "a moon"], 0),
    ),
    (
        formats.hellaswag,
        {
            "ind": 4,
            "activity_label": "Home and Garden",
            "ctx_a": "[header] How to clean a pan [title] Soak it. [step] Fill it.",
            "ctx_b": "then Dry",
            "ctx": "not read",
            "endings": [" [substeps] Use soap.", "Wait  an hour [title] Scrub."],
            "label": "1",
        },
        Question(
            "",
            "Home and Garden: How to clean a pan. Soak it. Fill it. Then dry",
            [" Use soap.", "Wait an hour. Scrub."],
            1,
        ),
    ),
    (
        formats.piqa,
        {"goal": "To open a jar,", "sol1": "turn the lid.", "sol2": "hit the wall.", "label": 0},
        Question("", "To open a jar,", ["turn the lid.", "hit the wall."], 0),
    ),
    (
        formats.winogrande,
        {"sentence": "The _ is small.", "option1": "cup", "option2": "box", "answer": "2"},
        Question("", "The _ is small.", ["cup", "box"], 1),
    ),
    (
        formats.boolq,
        {"question": "is it a star", "passage": "The Moon.", "idx": 0, "label": 0},
        Question("", "The Moon.\nQuestion: is it a star?", ["no", "yes"], 0),
    ),
    (
        formats.copa,
        {
            "premise": "The ground was wet. ",
            "choice1": "It had rained.",
            "choice2": "He slept.",
            "question": "cause",
            "idx": 0,
            "label": 0,
        },
        Question("", "The ground was wet because", [" it had rained.", " he slept."], 0),
    ),
    (
        formats.copa,
        {
            "premise": "He fell.",
            "choice1": "He sang.",
            "choice2": "He cried.",
            "question": "effect",
            "idx": 1,
            "label": 1,
        },
        Question("", "He fell therefore", [" he sang.", " he cried."], 1),
    ),
    (
        formats.mmlu,
        {"question": " 2 + 2? ", "subject": "college_maths", "choices": ["3", "4"], "answer": 1},
        GroupedQuestion("", "2 + 2?", ["3", "4"], 1, "college_maths"),
    ),
    (
        formats.truthfulqa_mc1,
        {
            "question": "Is the Earth flat?",
            "mc1_targets": {"choices": ["Yes", "No"], "labels": [0, 1]},
            "mc2_targets": {"choices": ["Yes", "No"], "labels": [0, 1]},
        },
        Question("", "Is the Earth flat?", ["Yes", "No"], 1),
    ),
]


def write(path: Path, *rows: dict[str, Any]) -> str:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(("format", "row", "question"), HUB)
def test_rows_of_the_hub(
    tmp_path: Path, format: Format, row: dict[str, Any], question: Question
) -> None:
    expected = {**vars(question), "id": question.id or "0"}
    (found,) = read_questions(write(tmp_path, row), "validation", format=format)
    assert type(found) is type(question)
    assert vars(found) == expected
    assert set(format.columns) <= set(row)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("format", "row", "question"), HUB)
@pytest.mark.parametrize("as_text", [json.dumps, str])
def test_rows_of_the_hub_in_a_csv_file(
    tmp_path: Path,
    format: Format,
    row: dict[str, Any],
    question: Question,
    as_text: Callable[[Any], str],
) -> None:
    path = tmp_path / "rows.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow({k: v if isinstance(v, str) else as_text(v) for k, v in row.items()})
    (found,) = read_questions(str(path), "validation", format=format)
    assert vars(found) == {**vars(question), "id": question.id or "0"}


def test_hellaswag_cleans_in_the_published_order() -> None:
    # Spaces at the ends go first, then marks, so that a mark at the beginning leaves its space; two
    # spaces become one.
    assert multiple_choice._without_marks(" [substeps] Use  soap. ") == " Use soap."
    assert multiple_choice._without_marks("a [title] b [step] c   d") == "a. b c  d"


def test_a_benchmark_is_taken_as_it_is(tmp_path: Path) -> None:
    row = {"question": "x", "subject": "s", "choices": ["", "a"], "answer": 1}
    (found,) = read_questions(write(tmp_path, row), "test", format=formats.mmlu)
    assert found.choices == ["", "a"]


@pytest.mark.parametrize(
    ("format", "change", "problem"),
    [
        (
            formats.arc,
            {"answerKey": "E"},
            r"Row 0 \(counted from 0, id 'M_1'\) .*the format 'arc' fails on it \(ValueError: ",
        ),
        (
            formats.piqa,
            {"label": -1},
            r"Row 0 .counted from 0. of .*: expected `label` in \[0, 2\) but got -1",
        ),
        (
            formats.piqa,
            {"goal": ""},
            r"Row 0 .counted from 0. of .*: `context` must be a non-empty string",
        ),
        (
            formats.hellaswag,
            {"label": ""},
            r"Row 0 .counted from 0. of .*the format 'hellaswag' fails on it \(ValueError: ",
        ),
        (
            formats.winogrande,
            {"answer": ""},
            r"Row 0 .counted from 0. of .*the format 'winogrande' fails on it \(ValueError: ",
        ),
        (
            formats.copa,
            {"question": "why"},
            r"Row 0 .counted from 0. of .*the format 'copa' fails on it \(KeyError: 'why'\)",
        ),
        (
            formats.mmlu,
            {"answer": "E"},
            r"Row 0 .counted from 0. of .*: expected `label` in \[0, 2\), .* but got 'E'",
        ),
    ],
)
def test_a_row_that_does_not_fit_is_named(
    tmp_path: Path, format: Format, change: dict[str, Any], problem: str
) -> None:
    row = next(row for other, row, _ in HUB if other is format)
    with pytest.raises(InputError, match=problem):
        read_questions(write(tmp_path, {**row, **change}), "test", format=format)
