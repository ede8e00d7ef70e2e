"""Figure of second-order estimates against exact values, and the range where they are close."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from prunelit.report.curves import Picture
from prunelit.report.trajectory import estimated_quantities

_GREY = "#444444"


class Judged(Protocol):
    """Estimates beside the exact values, see `prunelit.metrics.validity.Validity`."""

    dz: np.ndarray
    exact: np.ndarray
    estimate: np.ndarray
    rank_correlation: float
    size: np.ndarray
    error: np.ndarray
    holds_to: float


def scatter_picture(quantities: Mapping[str, Judged], near: float, title: str) -> Picture:
    """Draw the estimate against the exact value and, below it, the relative error against dz.

    Args:
        quantities: estimates by name; the names are those of `estimated_quantities`.
        near: an estimate is close if its relative error is below this number.
        title: title of the figure, with the meaning and the number of the dots.
    """
    figure = Figure(figsize=(3.3 * len(quantities), 6.2), layout="constrained")
    panels = figure.subplots(2, len(quantities), squeeze=False)
    numbers: dict[str, list[object]] = {
        key: [] for key in ("quantity", "dz", "exact", "estimate", "relative_error")
    }
    percent = f"{near:.0%}"
    looks = {name: look for name, *look in estimated_quantities()}
    for (above, below), (name, found) in zip(panels.T, quantities.items(), strict=True):
        label, colour = looks[name]
        error = np.abs(found.estimate - found.exact) / found.exact
        columns: Sequence[Sequence[object]] = (
            [name] * len(error),
            *(x.tolist() for x in (found.dz, found.exact, found.estimate, error)),
        )
        for values, column in zip(numbers.values(), columns, strict=True):
            values.extend(column)
        above.set_title(f"{label}\nrank correlation {found.rank_correlation:.3f}", fontsize=9)
        above.set_xlabel("exact")
        below.set_xlabel("std of dz under p, logit units")
        # A logarithmic axis cannot show 0.
        seen = (found.estimate > 0) & (found.dz > 0) & (error > 0)
        if seen.any():
            x, y = found.exact[seen], found.estimate[seen]
            ends = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
            above.fill_between(
                ends,
                ends * (1 - near),
                ends * (1 + near),
                color="#BBBBBB",
                alpha=0.6,
                linewidth=0,
                label=f"within {percent}",
            )
            above.plot(ends, ends, color=_GREY, linewidth=1, label="estimate = exact")
            above.scatter(x, y, s=8, color=colour, alpha=0.5, linewidths=0)
            below.scatter(found.dz[seen], error[seen], s=8, color=colour, alpha=0.3, linewidths=0)
            below.plot(
                found.size,
                found.error,
                color=_GREY,
                marker="o",
                markersize=3,
                linewidth=1.2,
                label="median of a bin",
            )
            below.axhline(near, color=_GREY, linewidth=0.8, linestyle="dotted")
            if found.holds_to > 0:
                low = found.dz[seen].min()
                below.axvspan(low, found.holds_to, color="#BBBBBB", alpha=0.3, linewidth=0)
            for axes in (above, below):
                logarithmic(axes)
        below.set_title(_range(found, percent), fontsize=9)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("second-order estimate")
    panels[1, 0].set_ylabel("relative error of the estimate")
    for axes in panels[:, 0]:
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=11)
    return Picture(figure, numbers)


def logarithmic(axes: Axes) -> None:
    """Make both axes logarithmic; an axis below two decades has ticks at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        if high < 100 * low:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _range(found: Judged, percent: str) -> str:
    if not len(found.exact):
        return "nothing to compare"
    if found.holds_to > 0:
        return f"median error below {percent} up to dz = {found.holds_to:.2g}"
    return f"median error nowhere below {percent}"
