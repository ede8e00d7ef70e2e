"""Curves, and figures with the numbers they are drawn from."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from prunelit.files import replace_file, write_text

if TYPE_CHECKING:  # who reads numbers needs no matplotlib, which takes half a second
    from matplotlib.figure import Figure

DPI = 150

# A cell that begins with one of these is a formula in a spreadsheet.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass
class Curve:
    """One quantity over blocks or decoding steps.

    Args:
        tag: its name, such as `teacher_forced/kl_dense_pruned`.
        axis: `block` or `step`.
        x: (P,), number of each block or decoding step.
        mean: (P,), mean over items.
        low: (P,), lower end of the band.
        high: (P,), upper end of the band.
        n: (P,), number of items.
        band: meaning of the band, such as `10%-90% of prompts`.
        standard_error: (P,), standard error of the mean.
    """

    tag: str
    axis: str
    x: Sequence[int]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: Sequence[int]
    band: str
    standard_error: Sequence[float]


@dataclass
class Picture:
    """A figure, and the numbers it is drawn from.

    Args:
        figure: the figure.
        numbers: columns of equal length, by name.
    """

    figure: "Figure"
    numbers: Mapping[str, Sequence[object]] = field(default_factory=dict)


def as_csv(numbers: Mapping[str, Sequence[object]]) -> str:
    """Format columns of equal length as comma-separated values with a header line.

    A text that begins as a formula does gets an apostrophe before it. Numbers stay numbers.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([_plain(name) for name in numbers])
    for row in zip(*numbers.values(), strict=True):
        writer.writerow([_plain(value) for value in row])
    return text.getvalue()


def _plain(value: object) -> object:
    """Put an apostrophe before a text that a spreadsheet would run as a formula."""
    if not isinstance(value, str):
        return value
    # `csv` quotes a text for its line feed, but not for a carriage return.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if value.startswith(_FORMULA) else text


def write_picture(picture: Picture, folder: Path, name: str) -> None:
    """Write `<name>.png`, and `<name>.csv` if the picture has numbers.

    Args:
        picture: the figure and the numbers.
        folder: folder of the files. It is created if it does not exist.
        name: file name without suffix.
    """
    with replace_file(folder / f"{name}.png") as partial:
        picture.figure.savefig(partial, dpi=DPI)
    if picture.numbers:
        write_text(folder / f"{name}.csv", as_csv(picture.numbers))


def curve_numbers(curves: Sequence[Curve]) -> dict[str, list[object]]:
    """Return the columns of a long table: one row per curve and block or step."""
    columns: dict[str, list[object]] = {
        name: [] for name in ("curve", "axis", "x", "mean", "standard_error", "low", "high", "n")
    }
    for curve in curves:
        rows = zip(
            curve.x, curve.mean, curve.standard_error, curve.low, curve.high, curve.n, strict=True
        )
        for row in rows:
            for name, value in zip(columns, (curve.tag, curve.axis, *row), strict=True):
                columns[name].append(value)
    return columns


def square_root(square: Curve, tag: str) -> Curve:
    """Take the square root of a mean square; its standard error is that of the delta method."""
    mean, low, high = (np.sqrt(x) for x in (square.mean, square.low, square.high))
    absent = np.full(len(mean), np.nan)
    error = np.divide(square.standard_error, 2 * mean, out=absent, where=mean > 0)
    return replace(
        square,
        tag=tag,
        mean=mean.tolist(),
        low=low.tolist(),
        high=high.tolist(),
        standard_error=error.tolist(),
    )
