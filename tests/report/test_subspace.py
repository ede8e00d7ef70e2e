"""Figures of answer options, drawn in full: a warning of matplotlib is an error here."""

import io
import math

import pytest

from prunelit.report.style import SPACES
from prunelit.report.subspace import (
    Shown,
    drawable,
    item_lines,
    item_picture,
    options_picture,
    spaces_picture,
)


@pytest.fixture
def shown() -> Shown:
    """Options with rare characters, mathtext signs and white space."""
    return Shown(
        7,
        "Question: is $5 or $6 more,\n東京?\nAnswer:",
        ["$5", "東京 is a city with a name that goes on and on and on", "gold"],
        [" $", " 東", "\n\n"],
        1,
        {"dense": [-3.0, -1.0, -9.5], "pruned": [-2.0, -4.0, -8.0]},
        {
            "dense": [(" 東", 0.4, True), (" The", 0.2, False), ("$_x$", 0.1, False)],
            "pruned": [("\n", 0.3, False), ("a" * 40, 0.25, False), (" $", 0.2, True)],
        },
    )


def means() -> dict[str, tuple[float, float]]:
    cosines = {f"{space}_cosine": (0.9 - 0.1 * i, 0.02) for i, space in enumerate(SPACES)}
    inside = {"subspace_logit_cosine": (0.95, 0.03), "subspace_probability_cosine": (0.97, 0.01)}
    kls = {"kl_dense_pruned": (0.8, 0.1), "kl_pruned_dense": (0.9, math.nan)}
    return {**cosines, **inside, **kls, **{f"subspace_{k}": (0.2, 0.05) for k in kls}}


def test_spaces_beside_the_options() -> None:
    picture = spaces_picture(means(), 36)
    picture.figure.savefig(io.BytesIO())
    left, right = picture.figure.axes
    # One embedding, two logit and two probability bars, and two for the legend.
    assert len(left.patches) == 5 + 2
    assert [patch.get_height() for patch in right.patches] == [0.8, 0.2, 0.9, 0.2]
    assert right.get_ylabel() == "nats"
    assert "± standard error, n=36" in picture.figure.get_suptitle()
    rows = list(zip(*picture.numbers.values(), strict=True))
    assert ("embedding_cosine", "all", 0.9, 0.02, 36) in rows
    assert ("kl_dense_pruned", "options", 0.2, 0.05, 36) in rows
    assert ("embedding_cosine", "options") not in {row[:2] for row in rows}


def test_a_negative_cosine_is_inside_the_axes() -> None:
    picture = spaces_picture({**means(), "subspace_logit_cosine": (-0.4, 0.1)}, 3)
    assert picture.figure.axes[0].get_ylim()[0] < -0.4


def test_what_the_options_get() -> None:
    values = {
        f"{model}/{quantity}": (value, 0.1)
        for model in ("dense", "pruned")
        for quantity, value in {
            "acc": 0.8,
            "option_mass": 0.3,
            "log_likelihood_right": -2.0,
            "log_likelihood_wrong": -5.0,
        }.items()
    }
    picture = options_picture(values, 0.25, 12)
    picture.figure.savefig(io.BytesIO())
    shares, likelihoods = picture.figure.axes
    assert [patch.get_height() for patch in shares.patches] == [0.8, 0.8, 0.3, 0.3]
    assert [patch.get_height() for patch in likelihoods.patches] == [-2, -2, -5, -5]
    assert "nats" in likelihoods.get_ylabel()
    labels = {text.get_text() for text in picture.figure.legends[0].get_texts()}
    assert labels == {"dense", "pruned", "chance"}
    assert picture.numbers["n"] == [12] * 8


def test_one_question(shown: Shown) -> None:
    picture = item_picture(shown)
    picture.figure.savefig(io.BytesIO())
    left, dense, pruned = picture.figure.axes
    assert [patch.get_width() for patch in left.patches] == [-3, -1, -9.5, -2, -4, -8]
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels[0] == "$5\n' $'"
    assert labels[1].endswith("' \\u6771' (right)")
    assert labels[2] == "gold\n'\\n\\n'"
    assert [label.get_text() for label in dense.get_yticklabels()][1:] == ["' The'", "'$_x$'"]
    assert dense.get_xlim() == pruned.get_xlim()
    outlined = [patch.get_edgecolor()[:3] == (0, 0, 0) for patch in pruned.patches]
    assert outlined == [False, False, True]
    rows = list(zip(*picture.numbers.values(), strict=True))
    assert ("log_likelihood", "pruned", 1, shown.options[1], -4.0) in rows
    assert ("top", "dense", 0, " 東", 0.4) in rows
    assert len(rows) == 6 + 6


def test_one_question_as_text(shown: Shown) -> None:
    row = item_lines(shown)
    assert row["dense"] == shown.options[1]
    assert row["pruned"] == "$5"
    assert row["prompt"] == shown.prompt
    assert row["options"].splitlines()[1].endswith("on (right)")
    assert row["top tokens pruned"].splitlines()[0] == "'\\n' 0.300"


def test_characters_that_the_font_lacks_are_spelled() -> None:
    assert drawable("São ‖ é") == "São ‖ é"
    assert drawable("東a\n") == "\\u6771a\\n"
    assert drawable("🙂") == "\\U0001f642"
