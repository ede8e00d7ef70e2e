"""Multiple-choice rows: what is read and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from prunelit import InputError
from prunelit.tasks.formats.multiple_choice import read_questions
from prunelit.tasks.questions import check_template

GOOD = {"id": "a", "context": "1 + 1 =", "choices": ["1", "2"], "label": 1}


def write(path: Path, *rows: dict[str, Any]) -> str:
    file = path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_rows_become_questions(material: Path) -> None:
    questions = read_questions(str(material / "questions.jsonl"), "train", None)
    assert [question.id for question in questions][:3] == ["capital", "snow", "japan"]
    assert [question.answer for question in questions] == [
        *("Paris", "white", "東京", "gold", "5", "cold", "honey")
    ]


def test_a_number_is_a_good_id(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path, {**GOOD, "id": 17}), "train", None)
    assert question.id == "17"


def test_limit_and_split_choose_rows(material: Path) -> None:
    path = str(material / "questions.jsonl")
    assert [q.id for q in read_questions(path, "train", 2)] == ["capital", "snow"]
    assert [q.id for q in read_questions(path, "train[5:]", None)] == ["hot", "bees"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"label": 2}, r"expected `label` in \[0, 2\) but got 2"),
        ({"label": -1}, r"expected `label` in \[0, 2\) but got -1"),
        ({"label": None}, r"expected `label` in \[0, 2\) but got None"),
        ({"context": " "}, "`context` is not a text"),
        ({"context": None}, "`context` is not a text"),
        ({"choices": ["1"], "label": 0}, "`choices` is not a list of at least two texts"),
        ({"choices": ["1", " "]}, "`choices` is not a list of at least two texts"),
        ({"choices": None}, "`choices` is not a list of at least two texts"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    path = write(tmp_path, GOOD, {**GOOD, "id": "b", **change})
    with pytest.raises(InputError, match=rf"Row 1 \(id 'b'\) of .*rows.jsonl': {problem}"):
        read_questions(path, "train", None)


@pytest.mark.parametrize("label", ["1", 1.0, True])
def test_a_label_of_another_type_is_refused(tmp_path: Path, label: object) -> None:
    with pytest.raises(InputError, match=r"Row 0 .*expected `label` in \[0, 2\)"):
        read_questions(write(tmp_path, {**GOOD, "label": label}), "train", None)


def test_choices_that_are_one_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="`choices` is not a list"):
        read_questions(write(tmp_path, {**GOOD, "choices": "12"}), "train", None)


def test_a_good_template_passes() -> None:
    check_template("Q: {context}\nA:", "context")


@pytest.mark.parametrize(
    "template",
    ["Q: {question}", "Q: {context} {}", "Q: {context", "Q: {context.text}", "Q: {context[a]}"],
)
def test_a_template_that_cannot_be_filled_is_refused(template: str) -> None:
    with pytest.raises(InputError, match="Expected a template with the fields context but"):
        check_template(template, "context")


def test_a_template_without_its_field_is_refused() -> None:
    with pytest.raises(InputError, match=r"Expected the field \{context\} in the template 'Q'"):
        check_template("Q", "context")
