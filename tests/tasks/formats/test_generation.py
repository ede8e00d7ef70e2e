from pathlib import Path
from typing import Any

import pytest

from prunelit import InputError
from prunelit.tasks import Generation
from prunelit.tasks.formats import gsm8k, humaneval, lambada
from prunelit.tasks.formats.base import read_examples
from prunelit.tasks.judges import (
    AfterMarker,
    ExactMatch,
    first_number,
    last_number,
    normalise_number,
)
from prunelit.tasks.questions import Example


def test_gsm8k() -> None:
    row = {"question": "How many?", "answer": "3 * 4 = <<3*4=12>>12\nso 1,000.\n#### 1,000"}
    assert gsm8k(row) == Example("How many?", "1,000", "3 * 4 = 12\nso 1,000.\n#### 1,000")
    with pytest.raises(InputError, match="expected an answer after `####` but got 'twelve'"):
        gsm8k({"question": "How many?", "answer": "twelve"})


@pytest.mark.parametrize(
    ("answer", "target"),
    [
        *[
            (text, text)
            for text in ("10,000", "-5", "2.50", "5.", "50%", "\u22125", "1/2", "1.5e3")
        ],
        *[("5 apples", "5"), ("72 km/h", "72"), ("5 (five)", "5"), ("$5 each", "$5")],
        *[("3½ Liter", "3 1/2"), ("१२ सेब", "12"), ("2,50 EUR", "2,50"), ("5kg", "5")],
        *[("1,000 dollars", "1,000"), ("$18", "$18"), ("18$", "18$"), ("-3.50", "-3.50")],
        *[(text, text) for text in ("1.5 million", "$1.5M", "18k")],
        *[("12 000 people", "12000"), ("1 234,50 €", "1 234,50 €"), ("**18**", "18")],
        *[
            (r"\frac{1}{2}", r"\frac{1}{2}"),
            ("-5°C", "-5"),
            ("5 apples!", "5"),
            ("$18/hour", "$18"),
            ("१८", "१८"),
        ],
    ],
)
def test_the_solution_of_gsm8k_is_right_by_both_readings(answer: str, target: str) -> None:
    example = gsm8k({"question": "How many?", "answer": f"It is 3 and more.\n#### {answer}"})
    assert example.target == target
    judge = ExactMatch(
        {"strict": AfterMarker("####", first_number), "flexible": last_number},
        normalise=normalise_number,
    )
    assert judge.right(example, example.solution) == {"strict": True, "flexible": True}


@pytest.mark.parametrize(
    "answer",
    [
        *("5 of 10", "10:30", "5 m2", "42\nand 7 more", "3, 4", "10-20", "2 hours 30 minutes"),
        *("- 18", "1.5 million people", "18k miles", "2024-01-05"),
        *(
            "5 and a half",
            "5 and one third",
            "5!",
            "<5",
            "\u00b15",
            "~5",
            "\u22655",
            "-(5)",
        ),
        *("\u221a5", "5\u03c0", "5+", "5 squared"),
    ],
)
def test_an_answer_of_several_numbers_is_refused(answer: str) -> None:
    with pytest.raises(InputError, match=r"expected one number|expected the solution to end"):
        gsm8k({"question": "How many?", "answer": f"#### {answer}"})


def test_a_row_whose_own_solution_is_wrong_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "How many?", "answer": "so #### five"}\n', encoding="utf-8")
    judge = ExactMatch({"x": last_number}, normalise=normalise_number)
    with pytest.raises(InputError, match="neither its solution nor its target"):
        Generation(str(path), format=gsm8k, judge=judge).read()
    text = ExactMatch({"x": AfterMarker("####")})
    Generation(str(path), format=gsm8k, judge=text).read()


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
    with pytest.raises(InputError, match=r"at least two words|must be a non-empty string"):
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
