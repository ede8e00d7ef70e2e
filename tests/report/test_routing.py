"""Figures of routers show the numbers that they are drawn from."""

import math

import numpy as np
import pytest

from prunelit.report.curves import Curve
from prunelit.report.routing import Load, changes_picture, load_picture

QUANTITIES = ("changed", "overlap", "router_kl")


@pytest.fixture
def curves() -> dict[str, Curve]:
    """Two blocks, or two steps; the second block has no mixture."""

    def curve(tag: str) -> Curve:
        axis = "step" if "/step/" in tag else "block"
        mean, error = [0.5, math.nan], [0.1, math.nan]
        return Curve(tag, axis, [0, 1], mean, [0.0, math.nan], [1.0, math.nan], [4, 0], "x", error)

    tags = [
        f"{way}/{place}/{quantity}"
        for way in ("local", "cumulative")
        for place in ("prompt", "decode", "step")
        for quantity in QUANTITIES
    ]
    tags += [f"{p}/load_evenness/{m}" for p in ("prompt", "decode") for m in ("dense", "pruned")]
    return {tag: curve(tag) for tag in tags}


@pytest.fixture
def load() -> Load:
    """Two prompts; a block with three experts, and one without a mixture."""
    pairs = np.array([[[2, 0, 0], [0, 0, 0]], [[1, 1, 0], [0, 0, 0]]])
    return Load(pairs, np.array([3, 0]))


def test_changes_by_block_and_step(curves: dict[str, Curve]) -> None:
    picture = changes_picture(curves)
    panels = picture.figure.axes
    assert [len(axes.lines) for axes in panels] == [2] * 9
    assert [axes.get_xlabel() for axes in panels[6:]] == ["block", "block", "decoding step"]
    low, high = panels[0].collections[0].get_datalim(panels[0].transData).intervaly
    assert (low, high) == (pytest.approx(0.4), pytest.approx(0.6))  # one standard error
    assert len(picture.numbers["mean"]) == 2 * 3 * 3 * 2


def test_load_and_its_entropy(load: Load) -> None:
    every = np.ones((1, 2))
    assert load.shares(every)[0, 0].tolist() == [0.75, 0.25, 0]
    assert np.isnan(load.shares(every)[0, 1]).all()
    found = load.entropies(np.array([[1, 1], [2, 0], [0, 2]]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert found["load_entropy"][:, 0].tolist() == pytest.approx([entropy, 0, math.log(2)])
    assert found["load_evenness"][0, 0] == pytest.approx(entropy / math.log(3))
    assert np.isnan(found["load_evenness"][:, 1]).all()


def test_load_beside_that_of_the_other_model(curves: dict[str, Curve], load: Load) -> None:
    own = {"dense": load, "pruned": Load(load.pairs[:, :, ::-1], np.array([2, 0]))}
    picture = load_picture({"prompt": own, "decode": own}, curves)
    assert picture.numbers["phase"] == ["prompt"] * 3 + ["decode"] * 3
    assert picture.numbers["expert"][:3] == [0, 1, 2]
    assert picture.numbers["dense"][:3] == [0.75, 0.25, 0]
    assert picture.numbers["pruned"][:3] == [0, 0.25, 0.75]
    titles = [axes.get_title() for axes in picture.figure.axes]
    assert "pruned, decoding steps" in titles
    assert "evenness, prompt tokens" in titles
