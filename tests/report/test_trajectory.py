"""Figures along a rollout: what is drawn and what numbers go with it, not how it looks."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from prunelit.report.curves import Curve, Picture
from prunelit.report.style import SPACES
from prunelit.report.trajectory import (
    accumulation_picture,
    cosines_picture,
    kl_picture,
    logits_picture,
    theory_picture,
)

STEPS = 6
COSINES = [f"{space}_cosine" for space in SPACES]
QUANTITIES = {
    **{name + end: 0.9 for name in COSINES for end in ("", "_estimate")},
    **{
        f"kl_{way}{end}": 0.4
        for way in ("dense_pruned", "pruned_dense")
        for end in ("", "_estimate")
    },
    "logit_mse": 4.0,
    **{f"logit_std{end}": 1.5 for end in ("", "_p", "_top5", "_top10")},
}
BOTH = ("teacher_forced", "free_running")
PICTURES = [cosines_picture, kl_picture, logits_picture, theory_picture]


def curve(tag: str, level: float) -> Curve:
    mean = [level + 0.01 * step for step in range(STEPS)]
    return Curve(
        tag,
        "step",
        range(STEPS),
        mean,
        [value - 0.1 for value in mean],
        [value + 0.05 for value in mean],
        [20 - step for step in range(STEPS)],
        "10%-90% of prompts",
        [0.02] * STEPS,
    )


def make_curves(*modes: str) -> dict[str, Curve]:
    tags = {f"{mode}/{name}": level for mode in modes for name, level in QUANTITIES.items()}
    tags |= {f"accumulation/{space}_distance": 0.3 for space in SPACES}
    tags["accumulation/kl_dense_pruned"] = 2.0
    return {tag: curve(tag, level) for tag, level in tags.items()}


def drawn(picture: Picture) -> bytes:
    """The PNG, which must come out without a warning."""
    image = io.BytesIO()
    picture.figure.savefig(image, dpi=60)
    return image.getvalue()


def lines(figure: Figure, label: str) -> list[tuple[list[float], str]]:
    """Heights and colour of every line with this label."""
    return [
        (np.asarray(line.get_ydata()).tolist(), to_hex(line.get_color()).upper())
        for axes in figure.axes
        for line in axes.lines
        if line.get_label() == label
    ]


@pytest.mark.parametrize("make", PICTURES)
@pytest.mark.parametrize("modes", [BOTH, BOTH[:1]])
def test_every_picture_is_drawn_with_its_numbers(
    make: Callable[..., Picture], modes: tuple[str, ...]
) -> None:
    picture = make(make_curves(*modes))
    assert drawn(picture).startswith(b"\x89PNG")
    seen = {str(tag).partition("/")[0] for tag in picture.numbers["curve"]}
    assert seen == (set(modes) if make is not theory_picture else {"teacher_forced"})
    assert set(picture.numbers["axis"]) == {"step"}
    title = picture.figure.get_suptitle()
    assert "n = 20 prompts" in title
    assert "10%-90% of prompts" in title
    picture.figure.draw_without_rendering()
    (text,) = (text for text in picture.figure.texts if text.get_text() == title)
    extent = text.get_window_extent()
    assert extent.x0 >= 0
    assert extent.x1 <= picture.figure.bbox.x1


def test_spaces_have_their_colours_and_panels_their_modes() -> None:
    curves = make_curves(*BOTH)
    figure = cosines_picture(curves).figure
    for space, colour in SPACES.items():
        found = lines(figure, space)
        assert [heights for heights, _ in found] == [
            list(curves[f"{mode}/{space}_cosine"].mean) for mode in BOTH
        ]
        assert {shade for _, shade in found} == {colour}
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert [title.partition(":")[0] for title in titles] == ["teacher-forced", "free-running"]


def test_the_number_of_prompts_alive_stands_below() -> None:
    figure = cosines_picture(make_curves("teacher_forced")).figure
    (bars,) = figure.axes[-1].containers
    assert [bar.get_height() for bar in bars] == [20 - step for step in range(STEPS)]


def test_magnitude_is_the_root_of_the_mean_square() -> None:
    curves = make_curves("teacher_forced")
    picture = logits_picture(curves)
    square = curves["teacher_forced/logit_mse"]
    ((heights, _),) = lines(picture.figure, "root mean square of dz")
    assert heights == pytest.approx(np.sqrt(square.mean))
    rows = [i for i, tag in enumerate(picture.numbers["curve"]) if str(tag).endswith("logit_rms")]
    found = {key: [picture.numbers[key][i] for i in rows] for key in ("low", "high")}
    assert found["low"] == pytest.approx(np.sqrt(square.low))
    assert found["high"] == pytest.approx(np.sqrt(square.high))
    # d sqrt(x) = dx / (2 sqrt(x))
    errors = [picture.numbers["standard_error"][i] for i in rows]
    assert errors == pytest.approx(0.02 / 2 / np.sqrt(square.mean))


def test_two_equal_models_are_drawn_at_nothing() -> None:
    curves = make_curves(*BOTH)
    for tag, one in curves.items():
        level = float("cosine" in tag)
        for name in ("mean", "low", "high"):
            setattr(one, name, [level] * STEPS)
        one.standard_error = [0.0] * STEPS
    for make in (*PICTURES, accumulation_picture):
        assert drawn(make(curves))
    rows = logits_picture(curves).numbers
    assert math.isnan(rows["standard_error"][0])


def test_distances_turn_the_band_over() -> None:
    curves = make_curves("teacher_forced")
    picture = theory_picture(curves)
    at = list(picture.numbers["curve"]).index("teacher_forced/embedding_distance")
    cosine = curves["teacher_forced/embedding_cosine"]
    assert picture.numbers["mean"][at] == pytest.approx(1 - cosine.mean[0])
    assert picture.numbers["low"][at] == pytest.approx(1 - cosine.high[0])
    assert picture.numbers["high"][at] == pytest.approx(1 - cosine.low[0])
    labels = [line.get_label() for axes in picture.figure.axes for line in axes.lines]
    assert labels == ["exact", "estimate"] * 4


def test_an_infinite_divergence_is_a_gap_in_the_figure_and_a_number_beside_it() -> None:
    curves = make_curves(*BOTH)
    for name in ("mean", "high"):
        values = list(getattr(curves["teacher_forced/kl_dense_pruned"], name))
        values[2] = math.inf
        setattr(curves["teacher_forced/kl_dense_pruned"], name, values)
    for make in (kl_picture, theory_picture):
        picture = make(curves)
        assert drawn(picture)
        assert math.inf in picture.numbers["mean"]
    (first, _) = lines(kl_picture(curves).figure, "KL(dense ‖ pruned)")
    assert [math.isnan(height) for height in first[0]] == [False, False, True, *[False] * 3]


def test_accumulation_has_its_spaces_and_a_line_at_nothing() -> None:
    curves = make_curves()
    picture = accumulation_picture(curves)
    assert drawn(picture)
    for space, colour in SPACES.items():
        ((heights, shade),) = lines(picture.figure, f"1 - cos, {space}")
        assert heights == list(curves[f"accumulation/{space}_distance"].mean)
        assert shade == colour
    assert {str(tag) for tag in picture.numbers["curve"]} == set(curves)
    flat = [line for line in picture.figure.axes[0].lines if set(line.get_ydata()) == {0}]
    assert len(flat) == 1


def test_a_distance_starts_at_nothing_and_has_its_own_scale() -> None:
    curves = make_curves(*BOTH)
    far = curves["free_running/kl_dense_pruned"]
    far.mean = [50.0] * STEPS
    forced, free = kl_picture(curves).figure.axes[:2]
    assert forced.get_ylim()[0] == free.get_ylim()[0] == 0
    assert free.get_ylim()[1] > 50 > 5 > forced.get_ylim()[1]
    assert "own scale" in free.get_title()
    left, right = cosines_picture(curves).figure.axes[:2]
    assert left.get_ylim() == right.get_ylim()
