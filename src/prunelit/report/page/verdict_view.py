"""The verdicts on the page: lines, intervals on a strip, and runs side by side."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from prunelit.report.page.runs import Run
from prunelit.report.page.words import NAMES
from prunelit.report.verdicts import Verdict, Word, use_words

LOOKS: dict[Word, str] = {
    "keeps": "keep",
    "loses": "lose",
    "cannot tell": "tell",
    "no lead": "none",
}
BEGIN: dict[Word, str] = {
    "keeps": "Keeps",
    "loses": "Loses",
    "cannot tell": "Cannot tell",
    "no lead": "No lead",
}


def compare_verdicts(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return one line a task, one cell a run."""
    tasks = dict.fromkeys(verdict.task for run in runs for verdict in run.verdicts)
    lines = []
    for task in tasks:
        own = [next((v for v in run.verdicts if v.task == task), None) for run in runs]
        cells = [
            {"look": "none", "text": "not measured"}
            if verdict is None
            else {"look": LOOKS[verdict.word], "text": f"{verdict.word} {_interval(verdict)}"}
            for verdict in own
        ]
        lines.append({"task": task, "cells": cells})
    return lines


def state_margins(verdicts: Sequence[Verdict]) -> str:
    """Say the margin, if all tasks have the same."""
    if not verdicts:
        return ""
    bars = {(verdict.bar(), verdict.absolute) for verdict in verdicts}
    if len(bars) == 1:
        ((bar, absolute),) = bars
        kind = (
            "a score may fall by"
            if absolute
            else "share of the dense model's lead over the floor (chance) that must remain:"
        )
        return f"Margin: {kind} {bar.lstrip('-')}."
    return "Margins differ by task; each line names its own."


def verdict_lines(verdicts: Sequence[Verdict]) -> Iterator[dict[str, Any]]:
    """Yield the verdict of each use, with a line for each of its tasks."""
    for use, word in use_words(verdicts).items():
        yield {
            "look": LOOKS[word],
            "word": BEGIN[word],
            "name": NAMES.get(use, use),
            "tasks": [_task_line(verdict) for verdict in verdicts if verdict.use == use],
        }


def _task_line(verdict: Verdict) -> dict[str, str]:
    own = verdict.plain()
    score = (
        f"{own['score']} {_two(own['dense'])} before, {_two(own['pruned'])} after, "
        f"floor {_two(own['floor'])}; {own['n']:,} items"
    )
    if verdict.word == "no lead":
        return {"task": verdict.task, "value": "no lead", "text": score}
    kind = "change of the score" if verdict.absolute else "of the lead is kept"
    more = f"; {verdict.more_items()}" if verdict.more_items() else ""
    return {
        "task": verdict.task,
        "value": f"{_interval(verdict)} {kind}",
        "text": f"{score}; margin {verdict.bar()}; {verdict.word}{more}",
    }


def _two(value: float | None) -> str:
    """Format a score; one that does not exist, such as a correlation of equal numbers, is said."""
    return "not defined" if value is None or math.isnan(value) else f"{value:.2f}"


def _interval(verdict: Verdict) -> str:
    return verdict.interval().replace("inf", "∞")


def task_strips(runs: Sequence[tuple[str, Sequence[Verdict]]]) -> list[dict[str, Any]]:
    """Return the intervals of each task that several runs have, one row a run.

    Args:
        runs: name and verdicts of each one.
    """
    named: dict[str, dict[str, Verdict]] = {}
    for name, verdicts in runs:
        for verdict in verdicts:
            named.setdefault(verdict.task, {})[name] = verdict
    return [
        {"task": task, "strips": strips([*own.values()], [*own])}
        for task, own in named.items()
        if len(own) > 1
    ]


def strips(verdicts: Sequence[Verdict], names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Return the intervals on one axis for shares, and on another one for changes of a score.

    Args:
        verdicts: one a row.
        names: of the rows; None takes those of the tasks.
    """
    labels = [verdict.task for verdict in verdicts] if names is None else names
    rows = [*zip(verdicts, labels, strict=True)]
    strips = []
    for absolute in (False, True):
        shown = [(v, name) for v, name in rows if v.absolute == absolute and v.word != "no lead"]
        own = [v for v, _ in shown]
        if not own:
            continue
        ends = [end for v in own for end in (v.low, v.high, v.value) if math.isfinite(end)]
        if absolute:
            low, high = min(-1.3 * max(v.margin for v in own), *ends), max(0.05, *ends)
            ticks = [(0.0, "0: as dense")]
        else:
            low, high = max(-0.5, min(0.0, *ends)), min(2.0, max(1.1, *ends))
            ticks = [(0.0, "0: floor"), (1.0, "1: dense")]
        pad = 0.03 * (high - low)
        axis = low - pad, high + pad
        strips.append(
            {
                "absolute": absolute,
                "rows": [_strip_row(v, *axis) | {"task": name} for v, name in shown],
                "ticks": [_tick(_percent(place, *axis), text) for place, text in ticks],
            }
        )
    return strips


def _strip_row(verdict: Verdict, low: float, high: float) -> dict[str, Any]:
    margin = -verdict.margin if verdict.absolute else verdict.margin
    places = {
        name: _percent(value, low, high)
        for name, value in (
            *(("low", verdict.low), ("high", verdict.high)),
            *(("value", verdict.value), ("margin", margin)),
        )
    }
    return {
        "task": verdict.task,
        "text": _interval(verdict),
        "look": LOOKS[verdict.word],
        "word": verdict.word,
        **places,
        "width": round(places["high"] - places["low"], 2),
        "shade": round(100 - places["margin"], 2),
    }


def _tick(place: float, text: str) -> tuple[float, str, str]:
    """Return place, text and the side of the text that is at the place; it stays in the axis."""
    return place, text, "start" if place < 12 else "end" if place > 88 else "middle"


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (min(max(value, low), high) - low) / (high - low), 2)
