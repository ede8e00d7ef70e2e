"""Labels of every kind, and those that name no choice or two."""

from collections.abc import Sequence
from typing import Any

import pytest

from prunelit import InputError
from prunelit.data.choices import merge_choices, settle_labels
from prunelit.tasks.questions import Question

Rows = Sequence[tuple[list[str], Any]]


def settled(rows: Rows) -> list[int]:
    questions = [Question(str(n), "?", choices, label) for n, (choices, label) in enumerate(rows)]
    settle_labels(questions, lambda number, problem: InputError(f"Row {number}: {problem}."))
    assert all(type(question.label) is int for question in questions)
    return [question.label for question in questions]


FOUR = ["oak", "elm", "ash", "fir"]


@pytest.mark.parametrize(
    ("labels", "places"),
    [
        ([0, 3], [0, 3]),
        ([1.0, 2], [1, 2]),
        (["0", "3"], [0, 3]),
        (["1.0", " 2 "], [1, 2]),
        (["A", "D"], [0, 3]),
        (["b", " C"], [1, 2]),
        (["elm", "fir "], [1, 3]),
        ([2, "B"], [2, 1]),  # a number is an index in any file
    ],
)
def test_labels(labels: list[Any], places: list[int]) -> None:
    assert settled([(FOUR, label) for label in labels]) == places


def test_the_file_decides_how_a_label_is_read() -> None:
    letters = ["B", "A", "D", "C"]
    assert settled([(FOUR, "C"), (letters, "A")]) == [2, 0]
    assert settled([(FOUR, "oak"), (letters, "A")]) == [0, 1]
    numbers = ["2", "3", "0", "1"]
    assert settled([(FOUR, "3"), (numbers, "0")]) == [3, 0]
    assert settled([(["10", "20"], "20"), (numbers, "0")]) == [1, 2]
    # Both ways agree.
    assert settled([(["0", "1"], "1"), (["A", "B"], "0")]) == [1, 0]
    assert settled([(["A", "B"], "B"), (["A", "C"], "A")]) == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(FOUR, 0), (FOUR, 4)], r"Row 1: expected `label` in \[0, 4\) but got 4\."),
        ([(FOUR, -1)], r"Row 0: expected `label` in \[0, 4\) but got -1\."),
        ([(FOUR, True)], r"Row 0: expected `label` in \[0, 4\) but got True\."),
        ([(FOUR, 0.5)], r"but got 0\.5\."),
        ([(FOUR, None)], r"but got None\."),
        ([(FOUR, ["A"])], r"but got \['A'\]\."),
        (
            [(FOUR, "A"), (FOUR, "E"), (FOUR, "B")],
            r"Row 1: expected `label` in \[0, 4\), a letter from A to D or the text of a choice, "
            r"but got 'E'\.",
        ),
        ([(FOUR, "A"), (FOUR, "B"), (FOUR, "1")], "Row 2: .* but got '1'"),
        ([(FOUR, "oak"), (FOUR, "Elm")], "Row 1: .* but got 'Elm'"),
        ([(FOUR, "")], "Row 0: .* but got ''"),
        ([(FOUR, "-1")], "Row 0: .* but got '-1'"),
        ([(FOUR, "\u0391")], "Row 0: "),  # a Greek letter that looks like A
        (
            [(["2", "1"], "1"), (["3", "0"], "0")],
            "Row 1: the label '0' is '3' as a number from 0, and '0' as the text of a choice: "
            "write letters as labels",
        ),
        ([(["B", "A"], "A")], "is 'B' as a letter, and 'A' as the text .*: write numbers from 0"),
    ],
)
def test_labels_that_are_refused(rows: Rows, message: str) -> None:
    with pytest.raises(InputError, match=message):
        settled(rows)


def test_choices_that_look_the_same_are_one() -> None:
    choices = ["caf\u00e9", "cafe\u0301 ", "Caf\u00e9", " caf\u00e9", "tea"]
    assert merge_choices(choices) == ["caf\u00e9", "caf\u00e9", "Caf\u00e9", "caf\u00e9", "tea"]
    assert merge_choices(["  if x:", "a  b", "a b"]) == ["  if x:", "a  b", "a b"]
    assert settled([(["tea", "cafe\u0301"], "caf\u00e9")]) == [1]
