"""The figure of the step at which rollouts part."""

import io
import math

import numpy as np
import pytest

from prunelit.report.curves import Curve, Picture
from prunelit.report.first_divergence import first_divergence_picture


def make_curves(*names: str) -> dict[str, Curve]:
    survival = {"observed": [0.9, 0.6, 0.3], "forecast": [0.85, 0.62, 0.31, 0.2]}
    return {
        f"first_divergence/{name}": Curve(
            f"first_divergence/{name}",
            "step",
            range(len(mean := survival[name])),
            mean,
            [math.nan, 0.4, 0.2, 0.1][: len(mean)],
            [math.nan, 0.8, 0.5, 0.3][: len(mean)],
            [10, 8, 5, 2][: len(mean)],
            "95% confidence",
            [math.nan] * len(mean),
        )
        for name in names
    }


def drawn(picture: Picture) -> bytes:
    image = io.BytesIO()
    picture.figure.savefig(image, dpi=60)
    return image.getvalue()


def test_observation_forecast_and_censoring_are_there() -> None:
    picture = first_divergence_picture(make_curves("observed", "forecast"), [0, 2, 1, 0], "Parted")
    assert drawn(picture).startswith(b"\x89PNG")
    above, below = picture.figure.axes
    found = {str(line.get_label()): line for line in above.lines}
    assert list(found["observed (Kaplan-Meier)"].get_ydata()) == [0.9, 0.6, 0.3]
    assert found["observed (Kaplan-Meier)"].get_drawstyle() == "steps-post"
    assert list(found["forecast from teacher forcing"].get_ydata()) == [0.85, 0.62, 0.31, 0.2]
    censored = found["a rollout ended undiverged (censored)"]
    assert list(censored.get_xdata()) == [1, 2]
    assert list(censored.get_ydata()) == [0.6, 0.3]
    (bars,) = below.containers
    assert [bar.get_height() for bar in bars] == [10, 8, 5]
    assert picture.figure.get_suptitle() == "Parted, n = 10 prompts"
    assert (
        picture.numbers["curve"]
        == ["first_divergence/observed"] * 3 + ["first_divergence/forecast"] * 4
    )
    assert picture.numbers["mean"] == [0.9, 0.6, 0.3, 0.85, 0.62, 0.31, 0.2]


@pytest.mark.parametrize("ended", [[0, 0, 0, 0], [4, 3, 2, 1]])
def test_a_forecast_stands_alone(ended: list[int]) -> None:
    picture = first_divergence_picture(make_curves("forecast"), ended, "Forecast")
    assert drawn(picture)
    (line,) = picture.figure.axes[0].lines
    assert np.array_equal(line.get_ydata(), [0.85, 0.62, 0.31, 0.2])
    assert not picture.figure.axes[0].collections
