"""Numbers and lists that CSV files hold as texts."""

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from prunelit.data.cells import as_number, as_parsed, as_whole


@pytest.mark.parametrize(
    ("value", "number", "whole"),
    [
        (3, 3, 3),
        (2**70, 2**70, 2**70),
        (3.0, 3.0, 3),
        (0.5, 0.5, None),
        (Decimal("2.50"), 2.5, None),
        (np.int64(4), 4, 4),
        ("7", 7.0, 7),
        (" 1.0\n", 1.0, 1),
        ("-2", -2.0, -2),
        ("+.5", 0.5, None),
        ("5.", 5.0, 5),
        ("2e3", 2000.0, 2000),
        ("007", 7.0, 7),
        ("9" * 400, math.inf, None),
        *(
            (text, None, None)
            for text in ("", " ", "a", "4,5", "1_000", "0x1", "nan", "inf", "1 2")
        ),
        *((text, None, None) for text in ("\u0663", "\uff11", "--1", "e3", ".")),
        *((other, None, None) for other in (None, True, False, [1], b"1", 1j)),
    ],
)
def test_numbers(value: Any, number: float | None, whole: int | None) -> None:
    assert as_number(value) == number
    assert as_whole(value) == whole
    assert (as_number(value) is None) is (number is None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite(value: float) -> None:
    assert str(as_number(value)) == str(value)
    assert as_whole(value) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', \"it's\"]", ["a", "it's"]),
        (' ["\\u00e9", "b"]\n', ["é", "b"]),
        (r"['\d', 'b']", [r"\d", "b"]),  # Python warns of this escape
        ("{'text': ['a'], 'label': ['A']}", {"text": ["a"], "label": ["A"]}),
        *((text, text) for text in ("a, b", "(1, 2)", "12", "[a, b]", "[", "['a' 'b'", "")),
        # A comma is missing, as in arrays of NumPy: Python would join the texts.
        *((text, text) for text in ("['a', 'b' 'c']", "['a' 'b']", "{'a': ['b'\n 'c']}")),
        ("['a',\n 'b']", ["a", "b"]),
        ("[" * 5000, "[" * 5000),
        ("{[]}", "{[]}"),
        ("[__import__('os')]", "[__import__('os')]"),
    ],
)
def test_lists(text: str, value: Any) -> None:
    assert as_parsed(text) == value


@pytest.mark.parametrize("value", [None, 3, ["a"], {"a": 1}])
def test_any_other_value_stays(value: Any) -> None:
    assert as_parsed(value) is value
