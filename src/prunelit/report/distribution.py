"""The table and the figure of the task `Distribution`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from rich.table import Table

from prunelit.report.curves import Picture
from prunelit.report.figures import PRUNED
from prunelit.report.results import Result
from prunelit.report.tables import lines_table

# Heading of each column, by the prefix of its metrics.
_COLUMNS = {
    "": "pruned",
    "floor_batch/": "floor: other batch size",
    "floor_bfloat16/": "floor: bfloat16",
    "floor_float32/": "floor: float32",
}
_LOOKS = {
    "pruned": (PRUNED, "solid"),
    "floor_batch": ("#8C8C8C", "dotted"),
    "floor_bfloat16": ("#444444", "dashed"),
    "floor_float32": ("#444444", "dashed"),
}
_LINES = {
    "kl_dense_pruned": "KL(dense ‖ pruned): mean",
    "kl_dense_pruned_estimate": "KL(dense ‖ pruned): mean of its second-order estimate",
    "kl_pruned_dense": "KL(pruned ‖ dense): mean",
    "kl_pruned_dense_estimate": "KL(pruned ‖ dense): mean of its second-order estimate",
    "delta_p": "p'(true) - p(true): mean",
    "top1_agreement": "share of same top tokens",
    "perplexity_ratio": "PPL(pruned) / PPL(dense)",
    "ruler_kl": "nearest rung (its KL)",
}
_WORDS = {"max": "maximum", "min": "minimum", "rms": "RMS", "q50": "median"}
_LOWEST = 1e-9  # nats; smaller values are not drawn
_PERCENT = (0.1, 1, 10, 50, 90, 99, 99.9)


@dataclass
class Spread:
    """Quantiles over tokens of one comparison with the dense model.

    Args:
        name: `pruned`, or the name of a noise floor.
        shares: (K,), shares of the tokens, in (0, 1).
        kl: (K,), quantiles of KL(dense || other) at these shares, nats.
        delta_p: (K,), quantiles of the change in the true token's probability.
        mean: mean KL, nats.
        rung: name of the nearest quantisation on the ruler.
        tokens: number of compared tokens.
    """

    name: str
    shares: Sequence[float]
    kl: Sequence[float]
    delta_p: Sequence[float]
    mean: float
    rung: str
    tokens: int


def distribution_lines(results: Sequence[Result]) -> list[dict[str, str]]:
    """Build one line per quantity: the pruned model, then each noise floor that was measured.

    Args:
        results: results of one `Distribution` task.
    """
    cells: dict[str, dict[str, Result]] = {}
    for result in results:
        prefix, slash, metric = result.metric.rpartition("/")
        if result.model == "pair" and (label := _label(metric)) is not None:
            cells.setdefault(label, {})[prefix + slash] = result
    there = [prefix for prefix in _COLUMNS if any(prefix in of_line for of_line in cells.values())]
    return [
        {"": label} | {_COLUMNS[prefix]: _cell(of_line.get(prefix)) for prefix in there}
        for label, of_line in cells.items()
    ]


def distribution_table(results: Sequence[Result]) -> Table:
    """Build the table to print from `distribution_lines`.

    Args:
        results: results of one `Distribution` task.
    """
    lines = distribution_lines(results)
    return lines_table(
        f"{results[0].task}: dense against pruned, and the noise floor of the dense model",
        "KL in nats; ± standard error over windows (in brackets: over tokens); "
        "extremes, quantiles, the root mean square and the rung have no error bar",
        lines,
    )


def distribution_picture(spreads: Sequence[Spread], rungs: Mapping[str, float]) -> Picture:
    """Draw quantiles over tokens: of the KL, and of the change in the true token's probability.

    Args:
        spreads: the pruned model first, then the floors.
        rungs: mean KL of quantised models, nats, by the name of the quantisation.
    """
    figure = Figure(figsize=(11.5, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    numbers: dict[str, list[object]] = {key: [] for key in ("compared", "share", "kl", "delta_p")}
    for spread in spreads:
        colour, style = _LOOKS[spread.name]
        label = _COLUMNS["" if spread.name == "pruned" else f"{spread.name}/"]
        kl = np.array(spread.kl)
        kl[~(np.isfinite(kl) & (kl > _LOWEST))] = np.nan
        own = f"{label}, mean {spread.mean:.2g}"
        if spread.name == "pruned":
            own += f" (nearest: {spread.rung})"
        left.plot(spread.shares, kl, color=colour, linestyle=style, label=own)
        if np.nanmin(kl, initial=np.inf) < spread.mean < np.nanmax(kl, initial=0):
            place = np.interp(spread.mean, spread.kl, spread.shares)
            left.plot(place, spread.mean, marker="D", markersize=6, color=colour)
        right.plot(spread.shares, spread.delta_p, color=colour, linestyle=style, label=label)
        rows = zip(spread.shares, spread.kl, spread.delta_p, strict=True)
        for row in rows:
            for column, value in zip(numbers.values(), (spread.name, *row), strict=True):
                column.append(value)
    left.set_yscale("log")
    low, high = left.get_ylim()
    left.set_ylim(max(low, _LOWEST), max(high, 2 * max(rungs.values())))
    for name, kl in rungs.items():
        left.axhline(kl, color="#BBBBBB", linewidth=0.7, zorder=0)
        across = left.get_yaxis_transform()
        left.text(1.01, kl, name, transform=across, va="center", fontsize=7, color="#666666")
    left.set_ylabel("KL(dense ‖ other) of a token, nats")
    left.set_title("KL (◆ mean; grey: mean KL of a Llama-3-8B quantised to n bits)", fontsize=9)
    right.axhline(0, color="#BBBBBB", linewidth=0.7, zorder=0)
    right.set_ylabel("p'(true) - p(true) of a token")
    right.set_title("Change in the probability of the true token", fontsize=9)
    for axes in (left, right):
        _percent(axes)
        axes.legend(fontsize=8, loc="upper left", facecolor="white", edgecolor="none")
    floors = f", floors {spreads[1].tokens}" if spreads[1:] else ""
    figure.suptitle(
        f"Next-token distributions, dense against pruned (tokens: {spreads[0].tokens}{floors})",
        fontsize=11,
    )
    return Picture(figure, numbers)


def _percent(axes: Axes) -> None:
    # The tails matter as much as the middle.
    axes.set_xscale("logit")
    axes.xaxis.set_major_locator(FixedLocator([share / 100 for share in _PERCENT]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("share of tokens below")
    axes.spines[["top", "right"]].set_visible(False)


def _label(metric: str) -> str | None:
    """Return the label of a metric; None if the table does not show the metric."""
    if metric in _LINES:
        return _LINES[metric]
    name, _, last = metric.rpartition("_")
    if name not in ("kl_dense_pruned", "delta_p"):
        return None
    quantity = "KL(dense ‖ pruned)" if name == "kl_dense_pruned" else "p'(true) - p(true)"
    return f"{quantity}: {_WORDS.get(last) or last.removeprefix('q') + '%'}"


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    if "rung" in result.details:
        return f"{result.details['rung']} ({result.value:.2g})"
    # The sum turns a negative zero into zero.
    value = f"{result.value + 0.0:.4g}"
    if not math.isnan(result.standard_error):
        value += f" ± {result.standard_error:.2g}"
    tokens = result.details.get("standard_error_tokens")
    return value if tokens is None else f"{value} ({tokens:.1g})"
