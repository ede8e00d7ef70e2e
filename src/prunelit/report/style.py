"""The style of all figures: one colour per space, and curves with a band."""

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from prunelit.report.curves import Curve

SPACES = {"embedding": "#4C72B0", "logit": "#55A868", "probability": "#C44E52"}


def draw(axes: Axes, curve: Curve, colour: str, label: str, linestyle: str = "solid") -> None:
    """Draw the mean as a line and the band as a shaded area."""
    axes.plot(curve.x, curve.mean, color=colour, label=label, linestyle=linestyle, linewidth=1.5)
    axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)


def other_colours(count: int) -> list[str]:
    """Return `count` colours, of which the first 7 differ.

    Blue, green and red are not used, as they stand for the spaces.
    """
    own = [*(to_hex(matplotlib.colormaps["tab10"](k)) for k in (1, 4, 5, 9, 6, 8)), "#222222"]
    return [own[place % len(own)] for place in range(count)]
