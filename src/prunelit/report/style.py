"""The style of all figures: one colour per space, and curves with a band."""

from matplotlib.axes import Axes

from prunelit.report.curves import Curve

SPACES = {"embedding": "#4C72B0", "logit": "#55A868", "probability": "#C44E52"}


def draw(axes: Axes, curve: Curve, colour: str, label: str, linestyle: str = "solid") -> None:
    """Draw the mean as a line and the band as a shaded area."""
    axes.plot(curve.x, curve.mean, color=colour, label=label, linestyle=linestyle, linewidth=1.5)
    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
