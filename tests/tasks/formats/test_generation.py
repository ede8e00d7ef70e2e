import json
from pathlib import Path
from typing import Any

import pytest

from prunelit import InputError
from prunelit.tasks.formats import arc, gsm8k, humaneval, lambada, reads
from prunelit.tasks.formats.generation import chance_of, read_examples
from prunelit.tasks.questions import Example, Question


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def test_gsm8k() -> None:
    row = {"question": "How many?", "answer": "3 * 4 = <<3*4=12>>12\nso 1,000.\n#### 1,000"}
    assert gsm8k(row) == Example("How many?", "1,000", "3 * 4 = 12\nso 1,000.\n#### 1,000")
    with pytest.raises(InputError, match="expected an answer after `####` but got 'twelve'"):
        gsm8k({"question": "How many?", "answer": "twelve"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He saw the signs", Example("He saw the", "signs", "signs")),
        ('He said, "No more\n\nwords."', Example('He said, "No more', "words", 'words."')),
        ("a don't  ", Example("a", "don't", "don't")),
    ],
)
def test_lambada(text: str, expected: Example) -> None:
    assert lambada({"text": text}) == expected


@pytest.mark.parametrize("text", ["one", "one ...", "  ", ""])
def test_lambada_needs_two_words(text: str) -> None:
    with pytest.raises(InputError, match=r"two words or more|is not a text"):
        lambada({"text": text})


def test_humaneval() -> None:
    row = {
        "task_id": "x/0",
        "prompt": "def one():\n",
        "canonical_solution": "    return 1\n",
        "entry_point": "one",
        "test": "def check(f):\n    assert f() == 1\n",
    }
    example = humaneval(row)
    assert example.context == "def one():\n"
    space: dict[str, Any] = {}
    exec(example.context + example.solution + example.target, space)
    with pytest.raises(AssertionError):
        exec(example.context + "    return 2\n" + example.target, {})


def read(one: Example | Question) -> tuple[str, str, str]:
    return one.context, one.target, one.solution


@pytest.mark.parametrize(
    ("choices", "chance"),
    [
        # Yes or no in any order, the same of three in any row, open, and none to choose from.
        ([["no", "yes"], ["no", "yes"]], 1 / 2),
        ([["a", "b", "c"], ["a", "b", "c"]], 1 / 3),
        ([["no", "yes"], ["yes", "no"]], 1 / 2),
        # One alone says nothing of the others.
        ([["Rome", "Oslo", "Bern", "Nice"]], 0),
        ([["Rome", "Oslo"], ["four", "five"]], 0),
        ([[], []], 0),
    ],
)
def test_the_chance_of_a_guess(choices: list[list[str]], chance: float) -> None:
    examples = [
        Question(str(n), "Who?", own, 0) if own else Example("Who?", "me", "me")
        for n, own in enumerate(choices)
    ]
    assert chance_of(examples) == chance


def test_questions_with_their_format(tmp_path: Path) -> None:
    choices = {"text": ["4", "5"], "label": ["A", "B"]}
    row = {"id": "q", "question": "2 + 3 =", "choices": choices, "answerKey": "B"}
    path = write(tmp_path / "rows.jsonl", [row])
    found = read_examples(path, "test", format=arc, questions=True)
    assert [read(one) for one in found] == [("2 + 3 =", "5", "5")]


def test_questions_with_columns_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"q": "2 + 3 =", "options": ["4", "5"], "right": 1}])
    columns = {"context": "q", "choices": "options", "label": "right"}
    found = read_examples(path, "test", columns=columns, questions=True)
    assert [read(one) for one in found] == [("2 + 3 =", "5", "5")]


def test_rows_of_a_local_file_whatever_the_name_of_its_split(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "answer": f"#### {n}", "more": n} for n in range(5)]
    path = write(tmp_path / "rows.jsonl", rows)
    examples = read_examples(path, "test", format=gsm8k)
    assert [example.target for example in examples] == ["0", "1", "2", "3", "4"]
    assert read_examples(path, "test[:40%]", format=gsm8k) == examples[:2]
    assert read_examples(path, "test", 3, format=gsm8k) == examples[:3]


def test_multiple_choice_rows_need_no_format(material: Path) -> None:
    examples = read_examples(str(material / "questions.jsonl"), "train")
    assert read(examples[0]) == ("What is the capital of France?", "Paris", "Paris")


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"q": "Who?", "a": "Me."}])
    columns = {"context": "q", "target": "a"}
    assert read_examples(path, "train", columns=columns) == [Example("Who?", "Me.", "Me.")]
    with pytest.raises(InputError, match=r"`context` and `target` but it names \['context'\]"):
        read_examples(path, "train", columns={"context": "q"})


@reads("q")
def broken(row: dict[str, Any]) -> Example:
    return Example(row["q"], row["q"]["answer"], "")


def undecorated(row: dict[str, Any]) -> Example:
    return Example("", "", "")


def test_bad_rows_are_named(tmp_path: Path) -> None:
    rows = [{"question": "q", "answer": "#### 1"}, {"question": " ", "answer": "#### 2"}]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=r"Row 1 of '.*rows.jsonl': 'question' is not a text\."):
        read_examples(path, "train", format=gsm8k)
    path = write(tmp_path / "other.jsonl", [{"q": "text"}])
    with pytest.raises(
        InputError, match=r"Row 0 of .* does not fit the format 'broken' .TypeError"
    ):
        read_examples(path, "train", format=broken)
    with pytest.raises(InputError, match="'undecorated' to say which columns it reads"):
        read_examples(path, "train", format=undecorated)
    with pytest.raises(InputError, match=r"Expected rows with \['answer', 'question'\]"):
        read_examples(path, "train", format=gsm8k)


def test_the_real_files(shared: Path) -> None:
    folder = shared / "data" / "generation"
    examples = read_examples(str(folder / "gsm8k_test.jsonl.gz"), "test", format=gsm8k)
    assert len(examples) == 1319
    assert (examples[0].target, examples[1].target) == ("18", "3")
    assert not any("<<" in example.solution for example in examples)
    words = read_examples(str(folder / "lambada_test.jsonl.gz"), "test", format=lambada)
    assert len(words) == 5153
    assert words[0].target == "signs"
    assert not any(" " in example.target for example in words)


def test_a_format_of_questions_has_to_be_named_as_one(tmp_path: Path) -> None:
    choices = {"text": ["4", "5"], "label": ["A", "B"]}
    row = {"id": "q", "question": "2 + 3 =", "choices": choices, "answerKey": "B"}
    path = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(InputError, match="set `questions: true`"):
        read_examples(path, "test", format=arc)
    path = write(tmp_path / "sums.jsonl", [{"question": "2 + 3 =", "answer": "#### 5"}])
    with pytest.raises(InputError, match="'gsm8k' makes a Example of it, no question"):
        read_examples(path, "test", format=gsm8k, questions=True)
