"""A curve with its band."""

import numpy as np
from matplotlib.figure import Figure

from prunelit.report.curves import Curve
from prunelit.report.style import draw


def test_the_line_is_the_mean_and_the_shade_reaches_from_low_to_high() -> None:
    axes = Figure().add_subplot()
    draw(axes, Curve("t", "step", [0, 1], [2.0, 3.0], [1.0, 2.5], [4.0, 3.5], [5, 5], "b", [0, 0]),
         "#C44E52", "probability", "dashed")  # fmt: skip
    (line,), (band,) = axes.lines, axes.collections
    assert (line.get_label(), line.get_color(), line.get_linestyle()) == (
        *("probability", "#C44E52", "--"),
    )
    np.testing.assert_array_equal(line.get_ydata(), [2, 3])
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert corners == {(0, 1), (0, 4), (1, 2.5), (1, 3.5)}
