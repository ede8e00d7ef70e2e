import math

import pytest

from prunelit.report.curves import Curve
from prunelit.report.transitions import kind_picture, kl_picture, theory_picture

QUANTITIES = ("embedding_cosine", "logit_cosine", "probability_cosine", "kl_dense_pruned")


@pytest.fixture
def curves() -> dict[str, Curve]:
    """Numbers of two blocks; the second has a cosine of 1 and a KL of 0, which has no logarithm."""

    def curve(tag: str) -> Curve:
        near_one = "cosine" in tag
        shift = 0.1 * ("local" in tag)
        mean = [0.9 - shift, 1.0] if near_one else [0.2 + shift, 0.0]
        mean = [value - 0.01 * tag.endswith("estimate") for value in mean]
        low, high = [m - 0.1 for m in mean], [m + 0.1 for m in mean]
        return Curve(tag, "block", [0, 1], mean, low, high, [4, 4], "min-max", [0.1, math.nan])

    return {
        tag: curve(tag)
        for variant in ("local", "cumulative")
        for kind in ("attention", "mlp")
        for phase in ("prompt", "decode")
        for quantity in QUANTITIES
        for tag in (
            f"{variant}/{kind}/{phase}/{quantity}",
            f"{variant}/{kind}/{phase}/{quantity}_estimate",
        )
    }


def test_cosines_of_a_kind(curves: dict[str, Curve]) -> None:
    picture = kind_picture(curves, "mlp")
    panels = picture.figure.axes
    assert [len(axes.lines) for axes in panels] == [3] * 4
    assert panels[0].get_ylabel() == "cosine dense, pruned"
    assert "local" in panels[0].get_title()
    assert "cumulative" in panels[3].get_title()
    assert set(picture.numbers["curve"]) == {
        f"{variant}/mlp/{phase}/{space}_cosine"
        for variant in ("local", "cumulative")
        for phase in ("prompt", "decode")
        for space in ("embedding", "logit", "probability")
    }


def test_kl_exact_and_estimated(curves: dict[str, Curve]) -> None:
    picture = kl_picture(curves)
    assert [len(axes.lines) for axes in picture.figure.axes] == [4] * 4
    assert "nats" in picture.figure.axes[0].get_ylabel()


def test_theory_leaves_out_of_the_picture_what_a_logarithm_cannot_show(
    curves: dict[str, Curve],
) -> None:
    picture = theory_picture(curves)
    assert len(picture.numbers["exact"]) == 4 * 8 * 2
    titles = [axes.get_title() for axes in picture.figure.axes]
    assert "rank correlation" in titles[0]
    assert all("n=8" in title for title in titles)
    same = {tag: curve for tag, curve in curves.items() if "local" in tag}
    titles = [axes.get_title() for axes in theory_picture(same).figure.axes]
    assert not any("correlation" in title for title in titles)  # of constants there is none
