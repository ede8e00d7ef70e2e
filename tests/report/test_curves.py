"""Curves as numbers."""

import csv
import io
import math

import pytest

from prunelit.report.curves import Curve, as_csv, curve_numbers, square_root


def curve(**more: object) -> Curve:
    given = {"mean": [4.0, 9.0, 0.0], "low": [1.0, 4.0, 0.0], "high": [16.0, 25.0, 1.0]}
    own = {"n": [7, 7, 4], "band": "min-max", "standard_error": [0.4, 0.6, 0.1]}
    return Curve(**{"tag": "a/mse", "axis": "step", "x": [0, 1, 2], **given, **own, **more})  # type: ignore[arg-type]


def test_long_form_has_a_row_a_place() -> None:
    numbers = curve_numbers([curve(), curve(tag="b/mse", axis="block")])
    assert numbers["curve"] == ["a/mse"] * 3 + ["b/mse"] * 3
    assert numbers["axis"] == ["step"] * 3 + ["block"] * 3
    assert numbers["mean"] == [4.0, 9.0, 0.0] * 2
    assert numbers["n"] == [7, 7, 4] * 2
    assert {len(column) for column in numbers.values()} == {6}


def test_csv_reads_back() -> None:
    numbers = {"name": ['with "quotes", commas', "b"], "value": [0.1, 2]}
    rows = list(csv.DictReader(io.StringIO(as_csv(numbers))))
    assert rows == [
        {"name": 'with "quotes", commas', "value": "0.1"},
        {"name": "b", "value": "2"},
    ]


def test_columns_of_different_lengths_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        as_csv({"a": [1], "b": [1, 2]})


def test_a_root_has_the_error_of_the_delta_method() -> None:
    root = square_root(curve(), "a/rms")
    assert (root.tag, root.axis, root.n, root.band) == ("a/rms", "step", [7, 7, 4], "min-max")
    assert root.mean == [2, 3, 0]
    assert (root.low, root.high) == ([1, 2, 0], [4, 5, 1])
    assert root.standard_error[:2] == pytest.approx([0.4 / 4, 0.6 / 6])
    assert math.isnan(root.standard_error[2])
