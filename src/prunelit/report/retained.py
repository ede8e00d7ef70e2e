"""The headline table and figure: the retained score of each use of the model, by data set."""

import math
import re
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from prunelit.report.curves import Picture
from prunelit.report.score_test import LEVEL
from prunelit.report.verdicts import Verdict

# The colour of each use. Multiple choice and retrieval have the colours of their spaces.
_COLOURS = {
    "multiple choice": "#C44E52",
    "classification": "#DD8452",
    "retrieval": "#4C72B0",
    "generation": "#8172B3",
    "similarity": "#64B5CD",
}

_LABEL = 0.24  # height of a label, as a share of the lead

# The scores that need a word: those of random guessing do not.
_CHANCES = (("open", "0"), ("fixed", "the share of the most frequent one"))

# The verdicts by data set and use.
Cells = dict[str, dict[str, list[Verdict]]]


def verdict_cells(verdicts: Sequence[Verdict]) -> Cells:
    """Group verdicts by data set and use.

    Two tasks have the same data set if path, subset, split and number of items are equal.

    Args:
        verdicts: of the tasks of a run.
    """
    groups: dict[tuple[str, str | None, str, int], dict[str, list[Verdict]]] = {}
    for verdict in verdicts:
        own = verdict.result.details
        key = (own["path"], own.get("subset"), own["split"], verdict.result.n)
        groups.setdefault(key, {}).setdefault(verdict.use, []).append(verdict)
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
    short = re.split("[/:]", path.rstrip("/"))[-1] + part
    return [
        short,
        f"{short}, {split}",
        f"{short}, {split}, {n} items",
        f"{path}{part}, {split}, {n} items",
        f"{path!r}, {subset!r}, {split!r}, {n} items",
    ]


def headline_table(cells: Cells) -> Table:
    """Build the table of verdicts: one line per data set, one column per use.

    Args:
        cells: see `verdict_cells`.
    """
    uses = _uses(cells)
    table = Table(
        title="Verdicts: share of the dense model's lead over chance that is kept, "
        f"[lower, upper bound at {1 - LEVEL:.0%} {_over_all(cells)}]",
        caption=_caption(cells),
        title_justify="left",
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("data set")
    for use in uses:
        table.add_column(use)
    for name, found in cells.items():
        table.add_row(name, *("\n".join(map(_cell, found.get(use, []))) for use in uses))
    return table


def _uses(cells: Cells) -> list[str]:
    return [use for use in _COLOURS if any(use in found for found in cells.values())]


def _over_all(cells: Cells) -> str:
    count = sum(len(own) for found in cells.values() for own in found.values())
    return f"over all {count} tasks" if count > 1 else "for the one task"


def _caption(cells: Cells) -> str:
    """Explain what the table shows, and nothing that it does not show."""
    parts = ["keeps: the lower bound is at or above the margin; loses: the upper bound is below it"]
    shown = [one for found in cells.values() for own in found.values() for one in own]
    kinds = {verdict.result.details.get("answers") for verdict in shown}
    if any(verdict.absolute for verdict in shown):
        parts.append("a number with a sign: pruned minus dense, its margin is the highest loss")
    parts += [f"chance of {kind} answers: {level}" for kind, level in _CHANCES if kind in kinds]
    return "; ".join(parts)


def headline_picture(cells: Cells) -> Picture:
    """Draw the shares kept: one group of bars per data set, one bar per task."""
    numbers: dict[str, list[object]] = {
        key: []
        for key in (
            *("data_set", "use", "task", "metric", "retained", "low", "high"),
            *("dense", "pruned", "chance", "n", "margin", "verdict"),
        )
    }
    figure = Figure(figsize=(max(7, 2.2 + 2.6 * len(cells)), 4), layout="constrained")
    axes = figure.add_subplot()
    shown: set[str] = set()
    top = 1.0
    most = max([len(_COLOURS), *(sum(map(len, found.values())) for found in cells.values())])
    width = 0.8 / most
    for place, (name, found) in enumerate(cells.items()):
        bars = [(use, verdict) for use in _COLOURS for verdict in found.get(use, [])]
        for number, (use, verdict) in enumerate(bars):
            result, own = verdict.result, verdict.result.details
            ends = (verdict.low, verdict.high) if not verdict.absolute else (math.nan, math.nan)
            low, high = (end if math.isfinite(end) else math.nan for end in ends)
            scores = (own["dense"], own["pruned"], own["chance"])
            values = (own["primary"], result.value, low, high, *scores)
            line = (name, use, result.task, *values, result.n, verdict.bar(), verdict.word)
            for column, value in zip(numbers.values(), line, strict=True):
                column.append(value)
            x = place + (number - (len(bars) - 1) / 2) * width
            label = f"{result.task}\n{own['primary']}\n{own['dense']:.2f} → {own['pruned']:.2f}"
            whiskers = np.array([[result.value - low], [high - result.value]]).clip(0)
            axes.bar(
                x,
                np.nan if verdict.word == "no lead" else result.value,
                width * 0.9,
                yerr=np.nan_to_num(whiskers),
                capsize=3,
                color=_COLOURS[use],
                label=f"_{use}" if use in shown else use,
            )
            shown.add(use)
            if not verdict.absolute:
                sides = [x - width * 0.45, x + width * 0.45]
                axes.plot(sides, [verdict.margin] * 2, color="black", linewidth=1.2)
            height = max(0.0, np.nan_to_num(max(result.value, high if high == high else 0)))
            height = 0.0 if verdict.word == "no lead" else height
            covers = not verdict.absolute and height < verdict.margin < height + _LABEL
            if covers:  # the line of the margin: the label goes above it
                height = verdict.margin
            top = max(top, height)
            text = (
                verdict.word if verdict.word == "no lead" else f"{result.value:.2f} {verdict.word}"
            )
            axes.annotate(
                f"{text}\n{label}",
                (x, height),
                xytext=(0, 6 if covers else 3),
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
        "Share of the dense model's lead over chance that is kept\n(whiskers: bounds at "
        f"{1 - LEVEL:.0%} {_over_all(cells)}; black line: margin)",
        fontsize=10,
    )
    return Picture(figure, numbers)


def _heading(name: str, found: dict[str, list[Verdict]]) -> str:
    n = next(iter(found.values()))[0].result.n
    return f"{name} (n={n})"


def _cell(verdict: Verdict) -> str:
    own, n = verdict.result.details, verdict.result.n
    score = f"{own['primary']} {own['dense']:.3f} → {own['pruned']:.3f}, n={n}"
    if verdict.word == "no lead":
        return f"—\n{score}\n{own['no_error_bar']}"
    text = f"{verdict.interval()}: {verdict.word}\n{score}, margin {verdict.bar()}"
    return f"{text}\n{more}" if (more := verdict.more_items()) else text
