"""The shipped facts: a mistake here would be read as an effect of pruning."""

import json
import re
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest

DATA = files("prunelit") / "data"
CHANCE = 0.25
# Each would be a second right choice beside its digits.
# fmt: off
NUMBER_WORDS = {
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    "twenty", "thirty", "forty", "fifty", "sixty", "eighty", "hundred",
}
# fmt: on


@pytest.fixture(scope="module")
def raw() -> bytes:
    return (DATA / "facts.jsonl").read_bytes()


@pytest.fixture(scope="module")
def rows(raw: bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in raw.decode("ascii").splitlines()]


@pytest.fixture(scope="module")
def corpus(rows: list[dict[str, Any]]) -> set[str]:
    return {choice for row in rows for choice in row["choices"]}


def right(row: dict[str, Any]) -> str:
    return row["choices"][row["label"]]


def category(row: dict[str, Any]) -> str:
    return row["id"].split("/")[0]


def spread(counts: Counter[int]) -> int:
    labels = [counts[label] for label in range(4)]
    return max(labels) - min(labels)


def test_file_is_printable_ascii_with_one_row_a_line(raw: bytes):
    assert raw.endswith(b"}\n")
    assert b"\n\n" not in raw
    assert set(raw) <= {*range(32, 127), 10}


def test_rows_have_the_four_columns_and_their_types(rows: list[dict[str, Any]]):
    for row in rows:
        assert list(row) == ["id", "context", "choices", "label"]
        assert isinstance(row["context"], str)
        assert [type(choice) for choice in row["choices"]] == [str] * 4
        assert type(row["label"]) is int
        assert row["label"] in range(4)


def test_about_two_hundred_rows_with_ids_and_questions_of_their_own(rows: list[dict[str, Any]]):
    assert 200 <= len(rows) <= 220
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({row["context"].casefold() for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*/[a-z0-9]+([+-][a-z0-9]+)*", row["id"])


def test_contexts_are_one_clean_question(rows: list[dict[str, Any]]):
    for row in rows:
        assert re.fullmatch(r"[A-Z][^?\n]*[^\s?]\?", row["context"]), row["id"]
        assert "  " not in row["context"], row["id"]


def test_choices_are_four_distinct_short_answers(rows: list[dict[str, Any]]):
    for row in rows:
        assert len({choice.casefold() for choice in row["choices"]}) == 4, row["id"]
        for choice in row["choices"]:
            assert re.fullmatch(r"[A-Za-z]+|\d+", choice), row["id"]


def test_right_choice_is_not_in_the_question(rows: list[dict[str, Any]]):
    for row in rows:
        # Digits are compared as whole numbers: 1 is not given away by 10.
        pattern = rf"\b{right(row)}\b" if right(row).isdigit() else right(row)
        assert not re.search(pattern, row["context"], re.IGNORECASE), row["id"]


def test_labels_are_balanced(rows: list[dict[str, Any]]):
    assert spread(Counter(row["label"] for row in rows)) == 0
    for name in {category(row) for row in rows}:
        assert spread(Counter(row["label"] for row in rows if category(row) == name)) <= 1, name


def test_labels_follow_no_pattern(rows: list[dict[str, Any]]):
    labels = [row["label"] for row in rows]
    for lag in range(1, 13):
        pairs = list(zip(labels, labels[lag:], strict=False))
        repeats = sum(first == second for first, second in pairs) / len(pairs)
        # Four standard errors of a fair draw.
        assert abs(repeats - CHANCE) < 4 * (CHANCE * (1 - CHANCE) / len(pairs)) ** 0.5, lag


@pytest.mark.parametrize("extreme", [min, max])
def test_length_does_not_give_the_right_choice_away(rows: list[dict[str, Any]], extreme: Any):
    gained = 0.0
    for row in rows:
        lengths = [len(choice) for choice in row["choices"]]
        if len(right(row)) == extreme(lengths):
            gained += 1 / lengths.count(extreme(lengths))
    assert abs(gained / len(rows) - CHANCE) < 0.1


def test_categories_are_mixed_so_that_the_first_rows_stand_for_all(rows: list[dict[str, Any]]):
    names = {category(row) for row in rows}
    assert len({category(row) for row in rows[: len(rows) // 3]}) > 0.8 * len(names)


def test_every_question_has_its_own_right_choice(rows: list[dict[str, Any]]):
    repeated = [text for text, n in Counter(right(row) for row in rows).items() if n > 1]
    assert repeated == []


def test_corpus_is_large_and_holds_no_second_spelling(corpus: set[str]):
    assert len(corpus) >= 500
    assert len({text.casefold() for text in corpus}) == len(corpus)
    assert corpus.isdisjoint(NUMBER_WORDS)


def test_corpus_holds_no_singular_or_plural_of_a_right_choice(
    rows: list[dict[str, Any]], corpus: set[str]
):
    for row in rows:
        # Wrong plurals are there on purpose: mice, not mices.
        if category(row) != "plurals":
            twins = {right(row) + "s", right(row) + "es", right(row).removesuffix("s")}
            assert twins.isdisjoint(corpus - {right(row)}), row["id"]


def test_wrong_choices_of_a_number_are_numbers(rows: list[dict[str, Any]]):
    for row in rows:
        assert len({choice.isdigit() for choice in row["choices"]}) == 1, row["id"]


def test_arithmetic_is_right(rows: list[dict[str, Any]]):
    checked = 0
    for row in rows:
        if found := re.search(r"(\d+) ([+-]) (\d+)\?", row["context"]):
            first, sign, second = int(found[1]), found[2], int(found[3])
            assert right(row) == str(first + second if sign == "+" else first - second), row["id"]
            checked += 1
    assert checked == sum(category(row) == "arithmetic" for row in rows) > 0


def test_readme_counts_the_rows_as_they_are(rows: list[dict[str, Any]], corpus: set[str]):
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    table = {name: int(n) for name, n in re.findall(r"^\| ([a-z-]+) \| (\d+) \|", readme, re.M)}
    assert table == Counter(category(row) for row in rows)
    assert f"{len(rows)} questions" in readme
    assert f"{len(corpus)} distinct choices" in readme
