"""The headline table and figure: the retained score of each use of the model, by data set."""

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from prunelit.report.curves import Picture
from prunelit.report.results import Result

# The colour of each use. Multiple choice and retrieval have the colours of their spaces.
_COLOURS = {"multiple choice": "#C44E52", "retrieval": "#4C72B0", "generation": "#8172B3"}

# The scores that need a word: those of random guessing do not.
_CHANCES = (("open", "0"), ("fixed", "the share of the most frequent one"))

# The results `retained` by data set and use.
Cells = dict[str, dict[str, list[Result]]]


def retained_cells(results: Sequence[Result]) -> Cells:
    """Group the results `retained` by data set and use.

    Two tasks have the same data set if path, subset, split and number of items are equal.

    Args:
        results: results of a run.
    """
    groups: dict[tuple[str, str | None, str, int], dict[str, list[Result]]] = {}
    for result in results:
        if result.metric == "retained":
            own = result.details
            key = (own["path"], own.get("subset"), own["split"], result.n)
            groups.setdefault(key, {}).setdefault(own["use"], []).append(result)
    names = [_names(*key) for key in groups]
    # Of each data set the shortest name that no other one has.
    chosen = [
        next(name for length, name in enumerate(own) if [n[length] for n in names].count(name) == 1)
        for own in names
    ]
    return dict(zip(chosen, groups.values(), strict=True))


def _names(path: str, subset: str | None, split: str, n: int) -> list[str]:
    """Return the names of a data set, from the shortest to one that tells it from any other."""
    part = f" {subset}" if subset else ""
    short = re.split("[/:]", path)[-1] + part
    return [
        short,
        f"{short}, {split}",
        f"{short}, {split}, {n} items",
        f"{path}{part}, {split}, {n} items",
        f"{path!r}, {subset!r}, {split!r}, {n} items",
    ]


def headline_table(cells: Cells) -> Table:
    """Build the table of retained scores: one line per data set, one column per use.

    Args:
        cells: see `retained_cells`.
    """
    shown = [result for found in cells.values() for rows in found.values() for result in rows]
    kinds = {result.details.get("answers") for result in shown}
    chances = [f"chance of {kind} answers: {level}" for kind, level in _CHANCES if kind in kinds]
    table = Table(
        title="Retained score: (pruned - chance) / (dense - chance) "
        "[95% interval, paired bootstrap over items]",
        caption="; ".join(["second line: metric, dense → pruned, items", *chances]),
        title_justify="left",
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("data set")
    for use in _COLOURS:
        table.add_column(use)
    for name, found in cells.items():
        texts = ["\n".join(map(_cell, found.get(use, []))) for use in _COLOURS]
        table.add_row(name, *texts)
    return table


def headline_picture(cells: Cells) -> Picture:
    """Draw the retained scores: one group of bars per data set, one bar per task."""
    numbers: dict[str, list[object]] = {
        key: []
        for key in (
            *("data_set", "use", "task", "metric", "retained", "low", "high"),
            *("dense", "pruned", "chance", "n"),
        )
    }
    figure = Figure(figsize=(max(7, 2.2 + 2.6 * len(cells)), 4), layout="constrained")
    axes = figure.add_subplot()
    shown: set[str] = set()
    top = 1.0
    most = max([len(_COLOURS), *(sum(map(len, found.values())) for found in cells.values())])
    width = 0.8 / most
    for place, (name, found) in enumerate(cells.items()):
        bars = [(use, result) for use in _COLOURS for result in found.get(use, [])]
        for number, (use, result) in enumerate(bars):
            own = result.details
            low, high = own["interval_95"] or (math.nan, math.nan)
            values = (
                own["primary"],
                result.value,
                low,
                high,
                own["dense"],
                own["pruned"],
                own["chance"],
            )
            line = (name, use, result.task, *values, result.n)
            for column, value in zip(numbers.values(), line, strict=True):
                column.append(value)
            x = place + (number - (len(bars) - 1) / 2) * width
            label = f"{result.task}\n{own['primary']}\n{own['dense']:.2f} → {own['pruned']:.2f}"
            value = result.value if _has_lead(result) else math.nan
            ends = np.array([[value - low], [high - value]]).clip(0)
            axes.bar(
                x,
                value,
                width * 0.9,
                yerr=None if math.isnan(low) else ends,
                capsize=3,
                color=_COLOURS[use],
                alpha=0.4 if math.isnan(low) else 1,
                label=f"_{use}" if use in shown else use,
            )
            shown.add(use)
            height = max(0.0, np.nan_to_num(max(value, high if high == high else value)))
            top = max(top, height)
            text = "no lead over chance" if math.isnan(value) else f"{value:.2f}"
            axes.annotate(
                f"{text}\n{label}",
                (x, height),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "linewidth": 0},
            )
    axes.axhline(1, color="#444444", linewidth=0.8, linestyle="dotted")
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_ylim(min(0.0, axes.get_ylim()[0]), top * 1.28)
    axes.set_xlim(-0.5, len(cells) - 0.5)
    axes.set_xticks(range(len(cells)), [_heading(name, cells[name]) for name in cells])
    axes.set_ylabel("retained: 1 is nothing lost, 0 is chance")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines["bottom"].set_zorder(4)  # above the white box of a label at 0
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    figure.suptitle(
        "Retained score: (pruned - chance) / (dense - chance)\n(whiskers: 95%, paired bootstrap "
        "over items; pale: a single item)",
        fontsize=10,
    )
    return Picture(figure, numbers)


def _heading(name: str, found: dict[str, list[Result]]) -> str:
    n = next(iter(found.values()))[0].n
    return f"{name} (n={n})"


def _cell(result: Result) -> str:
    own = result.details
    scores = f"{own['primary']} {own['dense']:.3f} → {own['pruned']:.3f}, n={result.n}"
    if not _has_lead(result):
        return f"—\n{scores}\n{own['no_error_bar']}"
    if (interval := own["interval_95"]) is None:
        return f"{result.value:.2f}\n{scores}\nno interval: {own['no_error_bar']}"
    return f"{result.value:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]\n{scores}"


def _has_lead(result: Result) -> bool:
    """Return False if the dense model is not clearly above chance: a share of nothing is none."""
    without = result.details["interval_95"] is None and result.n > 1
    return not (without or math.isnan(result.value))
