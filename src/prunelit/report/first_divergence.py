"""The step at which two rollouts first differ, observed and forecast."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from prunelit.report.curves import Curve, Picture, curve_numbers
from prunelit.report.trajectory import alive

_OBSERVED, _FORECAST = "#4C72B0", "#DD8452"


def first_divergence_picture(
    curves: Mapping[str, Curve], ended: Sequence[int], title: str
) -> Picture:
    """Draw the share of prompts whose rollouts still agree, step by step.

    Args:
        curves: `first_divergence/forecast`, and `first_divergence/observed` if both models
            generated a rollout.
        ended: (S,), number of prompts whose rollout ended at each step without a divergence.
        title: of the figure.
    """
    figure = Figure(figsize=(7.6, 4.8), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    forecast = curves["first_divergence/forecast"]
    observed = curves.get("first_divergence/observed")
    used = [curve for curve in (observed, forecast) if curve is not None]
    if observed is not None:
        x, y = observed.x, np.array(observed.mean)
        above.step(x, y, where="post", color=_OBSERVED, label="observed (Kaplan-Meier)")
        above.fill_between(
            x,
            observed.low,
            observed.high,
            step="post",
            color=_OBSERVED,
            alpha=0.15,
            linewidth=0,
            label=observed.band,
        )
        marks = [place for place, count in enumerate(ended[: len(y)]) if count]
        above.plot(
            [x[place] for place in marks],
            y[marks],
            color="#444444",
            marker="+",
            markersize=8,
            linestyle="none",
            label="a rollout ended undiverged (censored)",
        )
    above.step(
        forecast.x,
        forecast.mean,
        where="post",
        color=_FORECAST,
        linestyle="dashed",
        label="forecast from teacher forcing",
    )
    above.set_ylim(-0.03, 1.03)
    above.set_ylabel("share that has not diverged")
    above.legend(fontsize=8, frameon=False, loc="best")
    above.spines[["top", "right"]].set_visible(False)
    alive(below, used[0], "prompts\nat risk")
    figure.suptitle(f"{title}, n = {max(used[0].n)} prompts", fontsize=11)
    return Picture(figure, curve_numbers(used))
