"""Figures along a rollout, decoding step by decoding step."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunelit.report.curves import Curve, Picture, curve_numbers, square_root
from prunelit.report.quantities import QUANTITIES, unchanged_value
from prunelit.report.style import SPACES, draw

MODES = {
    "teacher_forced": "teacher-forced: both read the dense rollout",
    "free_running": "free-running: each reads its own rollout",
}
# Standard deviations of dz under different weights of the tokens, with label and colour.
_SPREADS = {
    "logit_std": ("uniform", SPACES["logit"]),
    "logit_std_p": ("under p", SPACES["probability"]),
    "logit_std_top5": ("top 5", "#8172B3"),
    "logit_std_top10": ("top 10", "#CCB974"),
}
_GREY = "#444444"

Curves = Mapping[str, Curve]


def cosines_picture(curves: Curves) -> Picture:
    """Draw the cosines in the three spaces."""
    board = _Board(curves, {"cosine dense, pruned": "embedding_cosine"})
    for mode, (axes,) in board.columns:
        for space, colour in SPACES.items():
            board.draw(axes, f"{mode}/{space}_cosine", colour, space)
    return board.picture("Cosine of dense and pruned in each space")


def kl_picture(curves: Curves) -> Picture:
    """Draw both Kullback-Leibler divergences and, below them, the probability cosine."""
    board = _Board(
        curves, {"KL, nats": "kl_dense_pruned", "probability cosine": "probability_cosine"}
    )
    colour = SPACES["probability"]
    for mode, (above, below) in board.columns:
        board.draw(above, f"{mode}/kl_dense_pruned", colour, "KL(dense ‖ pruned)")
        board.draw(above, f"{mode}/kl_pruned_dense", _GREY, "KL(pruned ‖ dense)", "dashed")
        board.draw(below, f"{mode}/probability_cosine", colour, "probability cosine")
    return board.picture("Distance of the next-token distributions")


def logits_picture(curves: Curves) -> Picture:
    """Draw the magnitude of dz and its standard deviation under several weights of the tokens."""
    board = _Board(
        curves,
        {"magnitude, logit units": "logit_mse", "standard deviation, logit units": "logit_std"},
    )
    for mode, (above, below) in board.columns:
        root = square_root(curves[f"{mode}/logit_mse"], f"{mode}/logit_rms")
        board.draw(above, root, _GREY, "root mean square of dz")
        for quantity, (label, colour) in _SPREADS.items():
            # Four bands on top of each other are hard to tell apart.
            banded = quantity in ("logit_std", "logit_std_p")
            label = f"spread of dz, {label}" if banded else f"spread of dz, {label} (no band)"
            board.draw(below, f"{mode}/{quantity}", colour, label, band=banded)
    return board.picture("Change of the logits: dz = z' - z")


def theory_picture(curves: Curves) -> Picture:
    """Draw the exact and the estimated deviation in every space, teacher-forced."""
    figure = Figure(figsize=(13, 3.9), layout="constrained")
    used = []
    for axes, (quantity, label, colour) in zip(
        figure.subplots(1, 4), estimated_quantities(), strict=True
    ):
        for suffix, name, style in (("", "exact", "solid"), ("_estimate", "estimate", "dashed")):
            curve = curves[f"teacher_forced/{quantity}{suffix}"]
            curve = _distance(curve) if unchanged_value(quantity) == 1 else curve
            used.append(curve)
            curve = _leave_gaps(curve)
            draw(
                axes,
                _remove_band(curve) if suffix else curve,
                _GREY if suffix else colour,
                name,
                style,
            )
        axes.set_title(label, fontsize=9)
        axes.set_ylim(bottom=0)
        _steps(axes)
        axes.set_xlabel("decoding step")
        axes.legend(fontsize=8, frameon=False, loc="upper left")
    figure.suptitle(
        "Second-order estimates beside the exact values, teacher-forced "
        f"({_bands(used[0], 'band of exact values')})",
        fontsize=11,
    )
    return Picture(figure, curve_numbers(used))


def accumulation_picture(curves: Curves) -> Picture:
    """Draw the free-running minus the teacher-forced deviation of the same prompts."""
    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    above, below = figure.subplots(2, 2, height_ratios=[4, 1], sharex=True)
    used = [curves[f"accumulation/{space}_distance"] for space in SPACES]
    for curve, (space, colour) in zip(used, SPACES.items(), strict=True):
        draw(above[0], _leave_gaps(curve), colour, f"1 - cos, {space}")
    used.append(curves["accumulation/kl_dense_pruned"])
    draw(above[1], _leave_gaps(used[-1]), SPACES["probability"], "KL(dense ‖ pruned)")
    above[0].set_ylabel("difference of 1 - cos")
    above[1].set_ylabel("difference of KL, nats")
    for axes in above:
        axes.axhline(0, color=_GREY, linewidth=0.8, linestyle="dotted")
        axes.legend(fontsize=8, frameon=False, loc="upper left")
        _steps(axes)
    for axes, curve, label in zip(below, used[::3], ("prompts alive\nin both", ""), strict=True):
        alive(axes, curve, label)
    figure.suptitle(
        f"Accumulation: free-running minus teacher-forced deviation ({_bands(used[0])})",
        fontsize=11,
    )
    return Picture(figure, curve_numbers(used))


def estimated_quantities() -> list[tuple[str, str, str]]:
    """Return name, label and colour of each quantity whose second-order estimate is drawn."""
    shown = [q for q in QUANTITIES.values() if q.estimated and q.name != "kl_pruned_dense"]
    labels = [
        f"1 - cos, {q.space}" if q.unchanged else f"KL(dense ‖ pruned), {q.unit}" for q in shown
    ]
    return [(q.name, label, SPACES[q.space]) for q, label in zip(shown, labels, strict=True)]


def alive(axes: Axes, curve: Curve, label: str) -> None:
    """Draw the number of prompts at each step, as a strip below a figure."""
    axes.bar(curve.x, curve.n, width=0.8, color="#BBBBBB")
    axes.set_ylabel(label, fontsize=8)
    axes.set_ylim(0, 1.1 * max(curve.n))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=2, integer=True))
    axes.set_xlabel("decoding step")
    _steps(axes)


class _Board:
    """A grid of panels: one column per mode, with the number of prompts alive below each column.

    Both columns have the same scale for cosines. Distances have a scale per column: feedback may
    multiply them, and on a common scale the teacher-forced curve would look like 0.

    Args:
        curves: curves by tag.
        labels: label of each row of panels, with the name of a quantity that the row shows.
    """

    def __init__(self, curves: Curves, labels: Mapping[str, str]) -> None:
        self._curves = curves
        self._used: list[Curve] = []
        modes = [mode for mode in MODES if f"{mode}/embedding_cosine" in curves]
        unchanged = [unchanged_value(quantity) for quantity in labels.values()]
        rows = len(labels) + 1
        # A single column must be wide enough for the title.
        width = max(9.5, 2.6 + 3.9 * len(modes))
        self._figure = Figure(figsize=(width, 1.6 + 2.6 * len(labels)), layout="constrained")
        panels = self._figure.subplots(
            rows,
            len(modes),
            squeeze=False,
            sharex=True,
            height_ratios=[4] * len(labels) + [1],
        )
        for row, label in zip(panels, labels, strict=False):
            row[0].set_ylabel(label)
        self.columns = [(mode, panels[:-1, place]) for place, mode in enumerate(modes)]
        for place, mode in enumerate(modes):
            label = "prompts\nalive" if place == 0 else ""
            alive(panels[-1, place], curves[f"{mode}/embedding_cosine"], label)
            scale = " (own scale)" if place and unchanged[0] == 0 else ""
            panels[0, place].set_title(MODES[mode] + scale, fontsize=9)
        for row, value in zip(panels, [*unchanged, 1], strict=True):  # the last row: prompts alive
            if value == 1:
                for other in row[1:]:
                    other.sharey(row[0])
        self._distances = [
            axes
            for row, value in zip(panels, unchanged, strict=False)
            if value == 0
            for axes in row
        ]

    def draw(
        self,
        axes: Axes,
        curve: str | Curve,
        colour: str,
        label: str,
        linestyle: str = "solid",
        band: bool = True,
    ) -> None:
        curve = self._curves[curve] if isinstance(curve, str) else curve
        self._used.append(curve)
        curve = _leave_gaps(curve)
        draw(axes, curve if band else _remove_band(curve), colour, label, linestyle)
        _steps(axes)

    def picture(self, title: str) -> Picture:
        for axes in self._distances:
            axes.set_ylim(bottom=0)
        handles = [h for axes in self.columns[0][1] for h in axes.get_legend_handles_labels()[0]]
        self._figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
        self._figure.suptitle(f"{title} ({_bands(self._used[0])})", fontsize=11)
        return Picture(self._figure, curve_numbers(self._used))


def _distance(curve: Curve) -> Curve:
    """Turn a cosine into 1 - cosine. The ends of the band change places."""
    mean, low, high = (1 - np.array(x) for x in (curve.mean, curve.low, curve.high))
    return replace(
        curve,
        tag=curve.tag.replace("cosine", "distance"),
        mean=mean.tolist(),
        low=high.tolist(),
        high=low.tolist(),
    )


def _leave_gaps(curve: Curve) -> Curve:
    """Turn infinite values into gaps: a divergence is infinite if a model excludes a token."""
    finite = {
        name: np.where(np.isfinite(values := getattr(curve, name)), values, np.nan).tolist()
        for name in ("mean", "low", "high")
    }
    return replace(curve, **finite)


def _remove_band(curve: Curve) -> Curve:
    """Remove the band of a curve."""
    absent = [float("nan")] * len(curve.mean)
    return replace(curve, low=absent, high=absent)


def _bands(curve: Curve, of: str = "band") -> str:
    return f"line: mean, {of}: {curve.band}, n = {max(curve.n)} prompts"


def _steps(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
