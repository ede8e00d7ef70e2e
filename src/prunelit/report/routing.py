"""Figures of the routers of a mixture: changes by block and step, and the load of experts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunelit.report.curves import Curve, Picture, curve_numbers
from prunelit.report.figures import DENSE, PRUNED
from prunelit.report.style import draw

_WAYS = {
    "local": ("local: the pruned router reads the dense input", "#8172B3"),
    "cumulative": ("cumulative: each router reads its own stream", PRUNED),
}
_PLACES = {
    "prompt": "prompt tokens, by block",
    "decode": "decoding steps, by block",
    "step": "all blocks, by decoding step",
}
_QUANTITIES = {
    "changed": "share of tokens whose\nexperts change",
    "overlap": "overlap of the experts",
    "router_kl": "KL(dense ‖ pruned), nats",
}
_PHASES = {"prompt": "prompt tokens", "decode": "decoding steps"}


@dataclass
class Load:
    """Load of the experts of one model.

    Args:
        pairs: (n, P, E), number of pairs of a token and an active expert, for each prompt, block
            and expert.
        experts: (P,), number of experts of each block, 0 without a mixture.
    """

    pairs: np.ndarray
    experts: np.ndarray

    def shares(self, weights: np.ndarray) -> np.ndarray:
        """Compute the load, which sums up to 1 over the experts; NaN without a pair.

        Args:
            weights: (R, n), how often each prompt counts.

        Returns:
            (R, P, E).
        """
        pairs = np.tensordot(weights, self.pairs, 1).astype(float)
        total = pairs.sum(-1, keepdims=True)
        return np.divide(pairs, total, out=np.full(pairs.shape, np.nan), where=total > 0)

    def entropies(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Compute the entropy of the load in nats, and the evenness, each (R, P)."""
        shares = self.shares(weights)
        logs = np.log(shares, out=np.zeros(shares.shape), where=shares != 0)
        entropy = -(shares * logs).sum(-1)
        most = np.log(np.where(self.experts > 1, self.experts, np.nan))
        return {"load_entropy": entropy, "load_evenness": entropy / most}


def changes_picture(curves: Mapping[str, Curve]) -> Picture:
    """Draw what changes, by block at prompt tokens and decoding steps, and by decoding step."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(3, 3, sharex="col", sharey="row")
    used = []
    for row, (quantity, label) in zip(panels, _QUANTITIES.items(), strict=True):
        row[0].set_ylabel(label)
        for axes, place in zip(row, _PLACES, strict=True):
            for way, (name, colour) in _WAYS.items():
                curve = curves[f"{way}/{place}/{quantity}"]
                used.append(curve)
                draw(axes, _error_band(curve), colour, name)
        row[0].set_ylim(*((0, None) if quantity == "router_kl" else (-0.02, 1.02)))
    for above, axes, (place, title) in zip(panels[0], panels[-1], _PLACES.items(), strict=True):
        above.set_title(title, fontsize=9)
        axes.set_xlabel("decoding step" if place == "step" else "block")
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        _whole_numbers(axes.xaxis)
    handles = panels[0, 0].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    n = max(max(curve.n, default=0) for curve in used)
    figure.suptitle(
        f"Routers, dense against pruned (line: mean, band: ± standard error, n = {n} prompts)",
        fontsize=11,
    )
    return Picture(figure, curve_numbers(used))


def load_picture(loads: Mapping[str, Mapping[str, Load]], curves: Mapping[str, Curve]) -> Picture:
    """Draw the load of each expert by block, dense beside pruned, and its evenness.

    Args:
        loads: by phase, then by model, dense before pruned.
        curves: with the evenness of each phase and model.
    """
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    panels = figure.subplots(2, 3)
    numbers: dict[str, list[object]] = {
        name: [] for name in ("phase", "block", "expert", "dense", "pruned")
    }
    for row, (phase, label) in zip(panels, _PHASES.items(), strict=True):
        own = loads[phase]
        shares = {
            model: load.shares(np.ones((1, len(load.pairs))))[0] for model, load in own.items()
        }
        top = max(np.nan_to_num(share).max() for share in shares.values())
        for axes, (model, share) in zip(row, shares.items(), strict=False):
            seen = np.where(share > 0, share, np.nan)
            image = axes.imshow(seen, vmin=0, vmax=top or 1, cmap="viridis", aspect="auto")
            axes.set_title(f"{model}, {label}", fontsize=9)
            axes.set_xlabel("expert")
            axes.set_ylabel("block")
            figure.colorbar(image, ax=axes, label="load")
            _whole_numbers(axes.xaxis, axes.yaxis)
        for model, colour in (("dense", DENSE), ("pruned", PRUNED)):
            draw(row[2], curves[f"{phase}/load_evenness/{model}"], colour, model)
        row[2].set_title(f"evenness, {label}", fontsize=9)
        row[2].set_ylabel("entropy of the load / log(experts)")
        row[2].set_xlabel("block")
        row[2].legend(fontsize=8, frameon=False)
        row[2].spines[["top", "right"]].set_visible(False)
        _whole_numbers(row[2].xaxis)
        for block, experts in enumerate(own["dense"].experts.tolist()):
            for expert in range(experts):
                values = (share[block, expert].item() for share in shares.values())
                for column, entry in zip(
                    numbers.values(), (phase, block, expert, *values), strict=True
                ):
                    column.append(entry)
    figure.suptitle(
        "Load: share of each expert in the pairs of a token and an active expert "
        f"(white: none; n = {len(loads['prompt']['dense'].pairs)} prompts, band: 95% of resamples)",
        fontsize=11,
    )
    return Picture(figure, numbers)


def _error_band(curve: Curve) -> Curve:
    """Let the band of a curve be one standard error; tokens are 0 or 1, so theirs says nothing."""
    mean, error = np.array(curve.mean), np.array(curve.standard_error)
    return replace(curve, low=(mean - error).tolist(), high=(mean + error).tolist())


def _whole_numbers(*axes: Axis) -> None:
    for one in axes:
        one.set_major_locator(MaxNLocator(integer=True))
