"""Texts with a label: the division keeps the share of each label."""

from collections import Counter

import pytest

from prunelit import InputError
from prunelit.data.labelled import LabelledText, check_divisible, divide, find_shared


def rows(labels: str) -> list[LabelledText]:
    return [LabelledText(f"t{n}", label, "f.csv", "train", n) for n, label in enumerate(labels)]


def test_each_part_has_each_label_in_its_share() -> None:
    every = rows("a" * 40 + "b" * 20)
    training, test = divide(every, test_share=0.25, seed=0)
    assert Counter(row.label for row in test) == {"a": 10, "b": 5}
    assert sorted([*training, *test], key=lambda row: row.number) == every
    assert [row.number for row in test] == sorted(row.number for row in test)


def test_a_label_with_one_row_cannot_be_divided() -> None:
    with pytest.raises(InputError, match=r"Row 2 .*only row with the label 'b'"):
        check_divisible(rows("aab"))
    check_divisible(rows("aabb"))


def test_equal_texts_are_shared_whatever_their_spaces() -> None:
    spaced = LabelledText(" t1\n", "a", "g.csv", "train", 0)
    assert find_shared(rows("ab"), [spaced]) == [spaced]
