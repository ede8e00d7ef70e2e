"""The shipped worked examples: a wrong one would teach models to be wrong."""

import json
import re
from importlib.resources import files
from typing import Any

import pytest

from prunelit.tasks.formats import gsm8k
from prunelit.tasks.formats.base import read_examples
from prunelit.tasks.judges.answers import last_number, normalise_number

FILE = files("prunelit") / "data" / "gsm8k_shots.jsonl"


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text(encoding="ascii").splitlines()]


def test_there_are_eight_and_each_is_an_example(rows: list[dict[str, Any]]) -> None:
    examples = read_examples("prunelit:gsm8k_shots.jsonl", "train", format=gsm8k)
    assert len(examples) == len(rows) == 8
    assert len({example.context for example in examples}) == 8


def test_every_calculation_is_right(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        steps = re.findall(r"([\d.,]+(?: [-+*/] [\d.,]+)+) = ([\d,.]*\d)", row["answer"])
        assert steps, row
        for calculation, result in steps:
            terms = re.split(r" ([-+*/]) ", calculation.replace(",", ""))
            assert all(re.fullmatch(r"[\d.]+|[-+*/]", term) for term in terms)
            value = eval(" ".join(terms), {"__builtins__": {}})
            assert value == pytest.approx(float(result.replace(",", ""))), calculation


def test_the_answer_is_the_last_number_of_the_steps_or_said_in_them(
    rows: list[dict[str, Any]],
) -> None:
    for row in rows:
        steps, _, answer = row["answer"].partition("\n#### ")
        assert answer == normalise_number(answer)
        assert re.search(rf"(?<![\d.,]){answer}(?![\d,])", steps), row
        assert last_number(row["answer"]) == answer
