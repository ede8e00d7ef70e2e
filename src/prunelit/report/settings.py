"""The figure of settings: what is kept of each use, against the setting of a knob."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from prunelit.report.curves import Picture
from prunelit.report.placed import Placed, settings_numbers
from prunelit.report.style import other_colours
from prunelit.report.variants import Point
from prunelit.report.verdicts import USES, Verdict, Word

_LINES = ("solid", "dashed", "dotted", "dashdot")  # of the tasks of a use
_MARKERS: dict[Word, dict[str, Any]] = {
    "keeps": {"marker": "o"},
    "cannot tell": {"marker": "o", "markerfacecolor": "white"},
    "loses": {"marker": "x"},
    "no lead": {"marker": "_"},
}


def settings_picture(placed: Sequence[Placed]) -> Picture:
    """Draw what is kept against the setting: one column of panels a use, one row a knob.

    Args:
        placed: measured settings, see `place_settings`.
    """
    verdicts = [verdict for one in placed for verdict in one.verdicts]
    options = list(dict.fromkeys(one.point.option for one in placed))
    kinds = sorted(
        {(verdict.use, verdict.absolute) for verdict in verdicts},
        key=lambda kind: ([*USES].index(kind[0]) if kind[0] in USES else len(USES), kind),
    )
    methods = list(dict.fromkeys(one.point.method for one in placed))
    colours = dict(zip(methods, other_colours(len(methods)), strict=True))
    size = max(8.0, 1 + 3.6 * len(kinds)), 0.9 + 3.2 * len(options)
    figure = Figure(figsize=size, layout="constrained")
    shares = [end for v in verdicts if not v.absolute for end in (v.value, v.low)]
    lowest = min([1.0, *(end for end in shares if math.isfinite(end))])
    # Where all settings keep much, the axis leaves out the floor.
    bottom = math.floor(10 * lowest - 1) / 10 if lowest > 0.4 else max(-1.0, min(0.0, lowest))
    panels = figure.subplots(len(options), len(kinds), squeeze=False)
    for row, option in zip(panels, options, strict=True):
        own = [one for one in placed if one.point.option == option]
        for axes, (use, absolute) in zip(row, kinds, strict=True):
            _panel(axes, own, use, absolute, colours, bottom)
            axes.set_xlabel(option)
            axes.set_title(use, fontsize=10)
        row[0].set_ylabel("change of the score" if kinds[0][1] else "share of the lead kept")
    figure.legend(
        handles=list(_handles(placed, colours)),
        loc="outside lower center",
        ncols=4,
        fontsize=8,
        frameon=False,
    )
    figure.suptitle(
        "What is kept, by setting (band: bounds of the verdict; dotted line: margin; 0: dense)",
        fontsize=11,
    )
    return Picture(figure, settings_numbers(placed))


def _panel(
    axes: Axes,
    placed: Sequence[Placed],
    use: str,
    absolute: bool,
    colours: Mapping[str, str],
    bottom: float,
) -> None:
    tasks = _tasks(placed, use, absolute)
    points = [(one, v) for one in placed for v in one.verdicts if v.task in tasks]
    for method in dict.fromkeys(one.point.method for one, _ in points):
        for task, style in zip(tasks, _LINES * len(tasks), strict=False):
            own = [(o.point, v) for o, v in points if o.point.method == method and v.task == task]
            _curve(axes, [(p.setting, v) for p, v in own if not p.seed], colours[method], style)
            _spread(axes, own, colours[method])
    for margin in {verdict.margin for _, verdict in points}:
        level = -margin if absolute else margin
        axes.axhline(level, color="#444444", linestyle=(0, (1, 2)), linewidth=1)
    if absolute or bottom <= 0:
        axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    if not absolute:
        axes.set_ylim(bottom - 0.04 * (1 - bottom), 1 + 0.12 * (1 - bottom))
    if len(tasks) == 1 and not absolute:
        _score_axis(axes, points[0][1])


def _spread(axes: Axes, own: Sequence[tuple[Point, Verdict]], colour: str) -> None:
    """Draw the same settings with other calibration text: a dot each, and a bar over all texts."""
    for setting in {point.setting for point, _ in own if point.seed}:
        every = {point.seed: v.value for point, v in own if point.setting == setting}
        ends = min(every.values()), max(every.values())
        axes.plot(
            *([setting] * 2, ends),
            color=colour,
            alpha=0.4,
            linewidth=6,
            solid_capstyle="butt",
            zorder=1.5,
        )
        dots = [value for seed, value in every.items() if seed]
        axes.plot([setting] * len(dots), dots, ".", color="black", markersize=4, zorder=3)


def _curve(
    axes: Axes, points: Sequence[tuple[float, Verdict]], colour: str, linestyle: str
) -> None:
    """Draw a task of a method from the dense model on, with its band."""
    points = [(setting, verdict) for setting, verdict in points if verdict.word != "no lead"]
    if not points:
        return
    start = 0.0 if points[0][1].absolute else 1.0
    x = [0.0, *(setting for setting, _ in points)]
    y = [start, *(verdict.value for _, verdict in points)]
    ends = [[start, *(getattr(v, end) for _, v in points)] for end in ("low", "high")]
    low, high = (np.where(np.isfinite(end), end, np.nan) for end in ends)
    axes.plot(x, y, color=colour, linestyle=linestyle, linewidth=1.5)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    for setting, verdict in points:
        axes.plot(setting, verdict.value, color=colour, markersize=6, **_MARKERS[verdict.word])


def _score_axis(axes: Axes, verdict: Verdict) -> None:
    """Show the score itself on the right: it is linear in the share of the lead."""
    details = verdict.result.details
    floor, lead = details["chance"], details["dense"] - details["chance"]
    if not lead > 0:
        return
    right = axes.secondary_yaxis(
        "right",
        functions=(lambda share: floor + share * lead, lambda score: (score - floor) / lead),
    )
    right.set_ylabel(f"{details['primary']} of {verdict.task}", fontsize=8)
    right.tick_params(labelsize=8)


def _tasks(placed: Sequence[Placed], use: str, absolute: bool) -> list[str]:
    found = [v for one in placed for v in one.verdicts if (v.use, v.absolute) == (use, absolute)]
    return list(dict.fromkeys(verdict.task for verdict in found))


def _handles(placed: Sequence[Placed], colours: Mapping[str, str]) -> Iterator[Line2D]:
    for method, colour in colours.items():
        yield Line2D([], [], color=colour, label=method)
    kinds = {(v.use, v.absolute) for one in placed for v in one.verdicts}
    groups = [_tasks(placed, *kind) for kind in sorted(kinds)]
    for tasks in groups:
        for task, style in zip(tasks, _LINES, strict=False):
            if len(tasks) > 1:
                yield Line2D([], [], color="#444444", linestyle=style, label=task)
    for word, marker in _MARKERS.items():
        if any(verdict.word == word for one in placed for verdict in one.verdicts):
            yield Line2D([], [], color="#444444", linestyle="", label=word, **marker)
    if any(one.point.seed for one in placed):
        dot = Line2D([], [], color="#bbbbbb", linewidth=6, marker=".", markersize=4)
        dot.set(label="other calibration text", markerfacecolor="black", markeredgecolor="black")
        yield dot
