"""Figures of the task `Transitions`: dense against pruned after each sublayer, by block."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy.stats import spearmanr

from prunelit.report.curves import Curve, Picture, curve_numbers
from prunelit.report.quantities import unchanged_value
from prunelit.report.scatter import logarithmic
from prunelit.report.style import SPACES, draw
from prunelit.report.trajectory import estimated_quantities

_VARIANTS = {
    "local": "local: the pruned sublayer reads the dense input",
    "cumulative": "cumulative: the pruned model's own stream",
}
_PHASES = {"prompt": "prompt tokens", "decode": "decoding steps"}
KINDS = {"attention": "#8172B3", "mixer": "#8172B3", "mlp": "#CCB974"}

Curves = Mapping[str, Curve]


def kind_picture(curves: Curves, kind: str) -> Picture:
    """Draw the cosines after every sublayer of a kind, one panel per variant and phase.

    A space that was not compared is left out.
    """
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    used = []
    for row, variant in zip(panels, _VARIANTS, strict=True):
        for axes, phase in zip(row, _PHASES, strict=True):
            for space, colour in SPACES.items():
                curve = curves.get(f"{variant}/{kind}/{phase}/{space}_cosine")
                if curve is not None:
                    used.append(curve)
                    draw(axes, curve, colour, space)
            axes.set_title(f"{_VARIANTS[variant]}\n{_PHASES[phase]}", fontsize=9)
    for axes in panels.flat:
        axes.set_ylim(top=min(axes.get_ylim()[1], 1.02))  # a cosine is at most 1
    _finish(panels, "cosine dense, pruned")
    figure.suptitle(f"After {_name(kind)} of each block (band: min-max over tokens)", fontsize=11)
    return Picture(figure, curve_numbers(used))


def kl_picture(curves: Curves) -> Picture:
    """Draw exact and estimated KL after every sublayer, one panel per variant and phase."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    used = []
    for row, variant in zip(panels, _VARIANTS, strict=True):
        for axes, phase in zip(row, _PHASES, strict=True):
            for kind, colour in _present(curves).items():
                name = f"{variant}/{kind}/{phase}/kl_dense_pruned"
                exact, estimate = curves[name], curves[f"{name}_estimate"]
                used += [exact, estimate]
                draw(axes, exact, colour, f"after {_name(kind)}")
                axes.plot(
                    estimate.x,
                    estimate.mean,
                    color=colour,
                    linestyle="dashed",
                    linewidth=1,
                    label="estimate Var_p(dz) / 2T²",
                )
            axes.set_yscale("symlog", linthresh=1e-3)
            axes.set_title(f"{_VARIANTS[variant]}\n{_PHASES[phase]}", fontsize=9)
    _finish(panels, "KL(dense ‖ pruned), nats")
    figure.suptitle(
        "Distance of the next-token distributions (band: min-max over tokens)", fontsize=11
    )
    return Picture(figure, curve_numbers(used))


def theory_picture(curves: Curves) -> Picture:
    """Draw estimates against exact values, one dot per sublayer, variant and phase.

    A dot is the mean over prompts. A quantity that was not measured has no panel.
    """
    measured = {tag.rpartition("/")[2] for tag in curves}
    quantities = [one for one in estimated_quantities() if one[0] in measured]
    figure = Figure(figsize=(3.25 * len(quantities), 4), layout="constrained")
    panels = figure.subplots(1, len(quantities), squeeze=False)[0]
    numbers: dict[str, list[object]] = {
        key: [] for key in ("quantity", "curve", "block", "exact", "estimate")
    }
    for axes, (quantity, label, colour) in zip(panels, quantities, strict=True):
        exact, estimate = [], []
        for tag, curve in curves.items():
            if not tag.endswith(f"/{quantity}"):
                continue
            other = curves[f"{tag}_estimate"]
            for block, value, guess in zip(curve.x, curve.mean, other.mean, strict=True):
                pair = (1 - value, 1 - guess) if unchanged_value(quantity) == 1 else (value, guess)
                exact.append(pair[0])
                estimate.append(pair[1])
                for key, entry in zip(numbers, (quantity, tag, block, *pair), strict=True):
                    numbers[key].append(entry)
        x, y = np.array(exact), np.array(estimate)
        seen = (x > 0) & (y > 0) & np.isfinite(x) & np.isfinite(y)
        axes.scatter(x[seen], y[seen], s=8, color=colour, alpha=0.6, linewidths=0)
        title = label
        if seen.any():
            ends = [min(x[seen].min(), y[seen].min()), max(x[seen].max(), y[seen].max())]
            axes.plot(ends, ends, color="#444444", linewidth=1, label="estimate = exact")
            logarithmic(axes)
            axes.legend(fontsize=7, frameon=False)
        if seen.any() and np.ptp(x[seen]) > 0 and np.ptp(y[seen]) > 0:
            correlation = spearmanr(x[seen], y[seen]).statistic  # type: ignore[attr-defined]
            title += f"\nrank correlation {correlation:.3f}"
        axes.set_title(f"{title}, n={int(seen.sum())}", fontsize=9)
        axes.set_xlabel("exact")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("second-order estimate")
    figure.suptitle(
        "Second-order estimates after every sublayer, local and cumulative, at prompt tokens and "
        "decoding steps (one dot: mean over tokens)",
        fontsize=11,
    )
    return Picture(figure, numbers)


def _present(curves: Curves) -> dict[str, str]:
    """Colours of the kinds of sublayers that were measured."""
    kinds = {tag.split("/")[1] for tag in curves}
    return {kind: colour for kind, colour in KINDS.items() if kind in kinds}


def _name(kind: str) -> str:
    return "the MLP" if kind == "mlp" else f"the {kind}"


def _finish(panels: np.ndarray, label: str) -> None:
    for row in panels:
        row[0].set_ylabel(label)
    for axes in panels[-1]:
        axes.set_xlabel("block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
    handles = panels[0, 0].get_legend_handles_labels()[0]
    figure = panels[0, 0].figure
    figure.legend(handles=handles, loc="outside right center", fontsize=8, frameon=False)
