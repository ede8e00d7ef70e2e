"""Columns are found by names as people give them."""

import pytest

from prunelit.core.new.columns import ANSWERS, CLASSES, QUESTIONS, find_choices, find_column


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["id", "Question", "A", "B", "C", "Answer"], ["A", "B", "C"]),
        (["q", "choice_2", "choice_1", "choice_3", "label"], ["choice_1", "choice_2", "choice_3"]),
        (["q", "Option 0", "Option 1", "gold"], ["Option 0", "Option 1"]),
        (["text", "answer"], None),
        (["a", "c", "d"], None),  # b is missing
        (["q", "a", "answer"], None),
        (["answer", "answer1", "answer2"], ["answer1", "answer2"]),
        ([], None),
    ],
)
def test_columns_of_one_choice_each(names: list[str], found: list[str] | None) -> None:
    assert find_choices(names, []) == found


@pytest.mark.parametrize("value", [["x", "y"], '["x", "y"]', "['x', 'y']"])
def test_a_column_of_lists(value: object) -> None:
    names = ["stem", "Options", "answer"]
    assert find_choices(names, [{"Options": value}]) == "Options"
    assert find_choices(names, [{"Options": "x, y"}]) is None


def test_the_first_known_name_wins_whatever_its_case() -> None:
    assert find_column(["title", "Message-Text", "TEXT"], ["text", "title"]) == "TEXT"
    assert find_column(["Correct Answer"], ["correct_answer"]) == "Correct Answer"
    assert find_column(["Frage"], QUESTIONS) is None
    assert find_column(["input", "output"], ANSWERS) == "output"
    assert find_column(["topic", "intent"], CLASSES) == "intent"
    assert find_column(["answer_id", "Gold Answer", "x"], ANSWERS) == "Gold Answer"
    assert find_column(["text", "old_label", "new_label"], CLASSES) is None
    assert find_column(["Class", "first label"], CLASSES) == "Class"
