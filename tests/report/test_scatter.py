"""Exact against estimated: what is drawn and what numbers go with it."""

import io
from dataclasses import dataclass, field

import numpy as np

from prunelit.report.scatter import logarithmic, scatter_picture


@dataclass
class Found:
    """Return a made-up result of `prunelit.metrics.validity`."""

    dz: np.ndarray
    exact: np.ndarray
    estimate: np.ndarray
    rank_correlation: float = 0.987
    size: np.ndarray = field(default_factory=lambda: np.array([0.1, 0.5]))
    error: np.ndarray = field(default_factory=lambda: np.array([0.05, 0.2]))
    holds_to: float = 0.3


def found(n: int = 40, **more: float) -> Found:
    rng = np.random.default_rng(0)
    dz = rng.uniform(0.01, 1, n)
    return Found(dz, dz**2 / 2, dz**2 / 2 * (1 + 0.2 * dz), **more)


def drawn(picture) -> bytes:
    image = io.BytesIO()
    picture.figure.savefig(image, dpi=60)
    return image.getvalue()


def test_dots_identity_and_range_are_there() -> None:
    one = found()
    picture = scatter_picture({"embedding_cosine": one, "kl_dense_pruned": found(30)}, 0.1, "Dots")
    assert drawn(picture).startswith(b"\x89PNG")
    above, other, below, _ = picture.figure.axes
    dots = above.collections[1].get_offsets()
    np.testing.assert_allclose(np.asarray(dots), np.stack([one.exact, one.estimate], 1))
    (identity,) = (line for line in above.lines if line.get_label() == "estimate = exact")
    assert np.array_equal(identity.get_xdata(), identity.get_ydata())
    assert above.get_xscale() == above.get_yscale() == "log"
    assert "rank correlation 0.987" in above.get_title()
    assert "1 - cos, embedding" in above.get_title()
    assert "nats" in other.get_title()
    assert "below 10% up to dz = 0.3" in below.get_title()
    assert len(below.patches) == 1
    assert picture.figure.get_suptitle() == "Dots"


def test_numbers_are_those_of_the_dots() -> None:
    one, other = found(), found(30)
    numbers = scatter_picture({"logit_cosine": one, "kl_dense_pruned": other}, 0.1, "Dots").numbers
    assert numbers["quantity"] == ["logit_cosine"] * 40 + ["kl_dense_pruned"] * 30
    assert numbers["exact"] == [*one.exact, *other.exact]
    assert numbers["estimate"] == [*one.estimate, *other.estimate]
    assert numbers["dz"] == [*one.dz, *other.dz]
    np.testing.assert_allclose(numbers["relative_error"], 0.2 * np.array(numbers["dz"]))


def test_ticks_do_not_crowd_where_the_range_is_short() -> None:
    picture = scatter_picture({"logit_cosine": found()}, 0.1, "Dots")
    axes = picture.figure.axes[0]
    axes.set_xlim(0.05, 0.8)
    logarithmic(axes)
    drawn(picture)
    low, high = axes.get_xlim()
    seen = [
        label.get_text()
        for place, label in zip(axes.get_xticks(), axes.get_xticklabels(), strict=True)
        if low <= place <= high
    ]
    assert seen == ["0.05", "0.1", "0.2", "0.5"]
    assert not any(label.get_text() for label in axes.get_xticklabels(minor=True))


def test_an_estimate_that_holds_nowhere_says_so() -> None:
    picture = scatter_picture({"logit_cosine": found(holds_to=0.0)}, 0.1, "Dots")
    below = picture.figure.axes[1]
    assert "nowhere below 10%" in below.get_title()
    assert not below.patches


def test_without_tokens_the_figure_is_empty() -> None:
    none = np.zeros(0)
    nothing = Found(none, none, none, float("nan"), none, none, float("nan"))
    picture = scatter_picture({"logit_cosine": nothing}, 0.1, "Dots")
    assert drawn(picture)
    assert "nothing to compare" in picture.figure.axes[1].get_title()
    assert all(not column for column in picture.numbers.values())
