"""Figures of several prunings of one model, laid over each other."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from prunelit.report.curves import Curve, Picture, curve_numbers, square_root
from prunelit.report.main_scores import axis_begin, chance, is_main_score
from prunelit.report.placed import SETTINGS, Placed
from prunelit.report.results import Result
from prunelit.report.settings import settings_picture
from prunelit.report.style import SPACES, draw, other_colours
from prunelit.report.variants import Variant, main_scores

PERTURBATIONS, SCORES, COSINES = "perturbations", "score_by_dropped", "spaces_by_variant"
# The beginnings of their names.
ALL_FIGURES = (PERTURBATIONS, SCORES, COSINES, SETTINGS)

# The curves of a perturbation along a rollout, with label and unit.
_FOLLOWED = {
    "teacher_forced/logit_mse": "root mean square of dz, logit units",
    "teacher_forced/logit_std_p": "standard deviation of dz under p, logit units",
    "teacher_forced/kl_dense_pruned": "KL(dense ‖ pruned), nats",
}
_RMS = "teacher_forced/logit_rms"


def overview(
    variants: Sequence[Variant], placed: Sequence[Placed] = ()
) -> tuple[dict[str, Picture], list[str]]:
    """Draw every figure for which the variants have data.

    Args:
        variants: in the order in which they are shown.
        placed: the measured settings of the variants that have one.

    Returns:
        The figures, and for each missing figure a sentence with the reason.
    """
    pictures: dict[str, Picture] = {}
    missing = []
    followed = [
        task
        for task in _tasks(variants)
        if all(set(_FOLLOWED) <= _tags(variant, task) for variant in variants)
    ]
    for task in followed:
        pictures[_name(PERTURBATIONS, task, followed)] = perturbations_picture(variants, task)
    if not followed:
        missing.append(
            f"No figure {PERTURBATIONS!r}: no task has the curves {', '.join(_FOLLOWED)}."
        )
    if not main_scores(variants):
        missing.append(f"No figure {SCORES!r}: no task has a score to compare models by.")
    elif not any(variant.dropped for variant in variants):
        missing.append(f"No figure {SCORES!r}: no variant drops sublayers or blocks.")
    else:
        pictures[SCORES] = scores_picture(variants)
    if placed:
        pictures[SETTINGS] = settings_picture(placed)
    compared = [task for task in _tasks(variants) if all(_cosines(v, task) for v in variants)]
    for task in compared:
        pictures[_name(COSINES, task, compared)] = cosines_picture(variants, task)
    if not compared:
        wanted = ", ".join(f"{space}_cosine" for space in SPACES)
        missing.append(f"No figure {COSINES!r}: no task has the metrics {wanted}.")
    return pictures, missing


def perturbations_picture(variants: Sequence[Variant], task: str) -> Picture:
    """Draw the magnitude of dz, its spread under p and the KL along a rollout.

    Each variant is one line.

    Args:
        variants: variants that have the curves of `task`.
        task: name of a task with curves along a rollout.
    """
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    panels = figure.subplots(1, len(_FOLLOWED))
    numbers: dict[str, list[object]] = {"variant": []}
    counts: list[int] = []  # prompts at each step; all variants read the same rollouts
    for variant, colour in zip(variants, other_colours(len(variants)), strict=True):
        curves = {curve.tag: curve for curve in variant.curves[task]}
        for axes, tag in zip(panels, _FOLLOWED, strict=True):
            curve = (
                curves[tag] if tag != "teacher_forced/logit_mse" else square_root(curves[tag], _RMS)
            )
            counts = list(curve.n)
            draw(axes, _standard_error_band(curve), colour, variant.name)
            numbers["variant"] += [variant.name] * len(curve.x)
            for name, values in curve_numbers([curve]).items():
                numbers.setdefault(name, []).extend(values)
    for axes, label in zip(panels, _FOLLOWED.values(), strict=True):
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("decoding step")
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(
        "Perturbations along the dense model's rollout, teacher-forced "
        f"(line: mean, band: ± standard error, n = {counts[0]} prompts, {counts[-1]} at the end)",
        fontsize=11,
    )
    return Picture(figure, numbers)


def scores_picture(variants: Sequence[Variant]) -> Picture:
    """Draw the main scores against the number of dropped parts, one panel per kind of part."""
    kinds = list(dict.fromkeys(v.dropped[0] for v in variants if v.dropped is not None))
    scores = main_scores(variants)
    begin = min(
        -0.03, axis_begin(result for v in variants for result in v.results if is_main_score(result))
    )
    figure = Figure(figsize=(max(8.5, 2.4 + 4 * len(kinds)), 4), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    names = ("kind", "dropped", "variant", "task", "metric", "value", "standard_error", "chance")
    numbers: dict[str, list[object]] = {name: [] for name in names}
    for axes, kind in zip(panels, kinds, strict=True):
        colours = other_colours(len(scores))
        for ((task, metric), generative), colour in zip(scores.items(), colours, strict=True):
            points = list(_points(variants, kind, task, metric))
            axes.errorbar(
                [count for count, _, _ in points],
                [result.value for _, _, result in points],
                yerr=[result.standard_error for _, _, result in points],
                color=colour,
                capsize=3,
                **_style(generative),
            )
            for count, name, result in points:
                level = chance(result)
                line = (kind, count, name, task, metric, result.value, result.standard_error, level)
                for column, value in zip(numbers.values(), line, strict=True):
                    column.append(value)
            if points and (level := chance(points[0][2])):
                axes.axhline(level, color=colour, linestyle="dashed", linewidth=0.9, alpha=0.7)
        axes.set_xlabel(f"number of dropped {kind}")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(begin, 1.05)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("score")
    handles = [
        Line2D([], [], color=colour, label=f"{task} ({metric})", **_style(generative))
        for ((task, metric), generative), colour in zip(
            scores.items(), other_colours(len(scores)), strict=True
        )
    ]
    handles.append(Line2D([], [], color="#444444", linestyle="dashed", linewidth=0.9))
    handles[-1].set_label("chance, in the colour of its score")
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
    figure.suptitle(
        "Score against what is dropped (solid: not generative, dotted: generative; "
        "bars: ± standard error)",
        fontsize=11,
    )
    return Picture(figure, numbers)


def cosines_picture(variants: Sequence[Variant], task: str) -> Picture:
    """Draw the mean cosine of each variant in the three spaces, as grouped bars.

    Args:
        variants: variants that have the results of `task`.
        task: name of a task that measures the three cosines.
    """
    figure = Figure(figsize=(2.6 + 1.3 * max(4, len(variants)), 4), layout="constrained")
    axes = figure.add_subplot()
    names = ("variant", "space", "cosine", "standard_error", "n")
    numbers: dict[str, list[object]] = {name: [] for name in names}
    for place, variant in enumerate(variants):
        for offset, (space, result) in zip((-0.27, 0, 0.27), _cosines(variant, task), strict=True):
            axes.bar(
                place + offset,
                result.value,
                width=0.26,
                yerr=result.standard_error,
                capsize=3,
                color=SPACES[space],
                label=space if place == 0 else f"_{space}",
            )
            top = result.value + (0 if math.isnan(result.standard_error) else result.standard_error)
            axes.annotate(
                f"{result.value:.2f}",
                (place + offset, max(top, 0)),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
            line = (variant.name, space, result.value, result.standard_error, result.n)
            for column, value in zip(numbers.values(), line, strict=True):
                column.append(value)
    axes.set_xticks(range(len(variants)), [variant.name for variant in variants], fontsize=9)
    if max(len(variant.name) for variant in variants) > 12:
        axes.tick_params("x", rotation=20)
    axes.axhline(0, color="#444444", linewidth=0.8)
    axes.set_ylim(top=1.1)
    axes.set_ylabel("cosine dense, pruned")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    axes.set_title(
        f"Cosine of dense and pruned in each space ({task}; whiskers: ± standard error)",
        fontsize=10,
    )
    return Picture(figure, numbers)


def _name(name: str, task: str, tasks: Sequence[str]) -> str:
    return name if len(tasks) == 1 else f"{name}_{task}"


def _tasks(variants: Sequence[Variant]) -> list[str]:
    """Return the names of all tasks with results or curves, in order of appearance."""
    named = [name for v in variants for name in [*(result.task for result in v.results), *v.curves]]
    return list(dict.fromkeys(named))


def _tags(variant: Variant, task: str) -> set[str]:
    return {curve.tag for curve in variant.curves.get(task, ())}


def _cosines(variant: Variant, task: str) -> list[tuple[str, Result]]:
    """Return space and result of the three cosines; an empty list if one is missing."""
    results = [(space, variant.find(task, f"{space}_cosine", "pair")) for space in SPACES]
    found = [(space, result) for space, result in results if result is not None]
    return found if len(found) == len(SPACES) else []


def _points(
    variants: Sequence[Variant], kind: str, task: str, metric: str
) -> Iterator[tuple[int, str, Result]]:
    """Yield number of dropped parts, variant and result, in rising order; 0 is the dense model."""
    of_kind = [(v.dropped[1], v) for v in variants if v.dropped and v.dropped[0] == kind]
    if (dense := of_kind[0][1].find(task, metric, "dense")) is not None:
        yield 0, "dense", dense
    for count, variant in sorted(of_kind, key=lambda pair: pair[0]):
        if (result := variant.find(task, metric, "pruned")) is not None:
            yield count, variant.name, result


def _style(generative: bool) -> dict[str, Any]:
    if generative:
        return {"linestyle": "dotted", "linewidth": 2.2, "marker": "s", "markersize": 5}
    return {"linestyle": "solid", "linewidth": 1.5, "marker": "o", "markersize": 5}


def _standard_error_band(curve: Curve) -> Curve:
    """Set the band to the mean ± its standard error, which is narrow enough for many lines.

    Infinite values become gaps: a divergence is infinite if a model excludes a token.
    """
    mean, error = np.array(curve.mean), np.array(curve.standard_error)
    mean = np.where(np.isfinite(mean), mean, np.nan)
    ends = mean - error, mean + error
    return replace(curve, mean=mean.tolist(), low=ends[0].tolist(), high=ends[1].tolist())
