"""The table of next-token distributions, and the figure of their quantiles."""

import io
import math

import numpy as np
import pytest

from prunelit.report.distribution import (
    Spread,
    distribution_lines,
    distribution_picture,
    distribution_table,
)
from prunelit.report.results import Result
from prunelit.report.tables import as_text

RUNGS = {"4-bit": 0.03, "2-bit": 0.45}


def row(metric: str, value: float, error: float = math.nan, **details: object) -> Result:
    return Result("distribution", metric, "pair", value, error, 12, details)


ROWS = [
    Result("distribution", "nll", "dense", 3.0, 0.1, 12),
    row("kl_dense_pruned", 0.5, 0.02, standard_error_tokens=0.007),
    row("kl_dense_pruned_max", 9.25),
    row("kl_dense_pruned_q99.9", 7.5),
    row("delta_p_rms", 0.2),
    row("delta_p_q50", -0.0),
    row("ruler_kl", 0.445, rung="2-bit"),
    row("floor_batch/kl_dense_pruned", 1e-8, math.nan, standard_error_tokens=None),
    row("floor_bfloat16/kl_dense_pruned_max", 0.004),
]


def test_one_line_a_quantity_with_the_floors_beside_it() -> None:
    lines = distribution_lines(ROWS)
    pruned, batch, dtype = "pruned", "floor: other batch size", "floor: bfloat16"
    assert [tuple(line) for line in lines] == [("", pruned, batch, dtype)] * 6
    by_label = {line[""]: line for line in lines}
    assert by_label["KL(dense ‖ pruned): mean"] == {
        "": "KL(dense ‖ pruned): mean",
        pruned: "0.5 ± 0.02 (0.007)",
        batch: "1e-08",
        dtype: "",
    }
    assert by_label["KL(dense ‖ pruned): maximum"][dtype] == "0.004"
    assert by_label["KL(dense ‖ pruned): 99.9%"][pruned] == "7.5"
    assert by_label["p'(true) - p(true): RMS"][pruned] == "0.2"
    assert by_label["p'(true) - p(true): median"][pruned] == "0"
    assert by_label["nearest rung (its KL)"][pruned] == "2-bit (0.45)"


def test_without_floors_there_is_no_column_of_them() -> None:
    lines = distribution_lines(ROWS[:7])
    assert {tuple(line) for line in lines} == {("", "pruned")}


def test_the_same_is_printed() -> None:
    text = as_text(distribution_table(ROWS))
    for word in ("floor: bfloat16", "99.9%", "9.25", "2-bit (0.45)", "KL in nats"):
        assert word in text


def spread(name: str, scale: float, tokens: int = 400) -> Spread:
    shares = np.linspace(0.01, 0.99, 60)
    kl = scale * shares**3
    return Spread(
        name, shares.tolist(), kl.tolist(), (shares - 0.5).tolist(), scale / 4, "4-bit", tokens
    )


def test_quantiles_with_the_rungs() -> None:
    floors = [spread("floor_batch", 1e-8, 30), spread("floor_float32", 0.01, 30)]
    spreads = [spread("pruned", 2), *floors]
    picture = distribution_picture(spreads, RUNGS)
    picture.figure.savefig(io.BytesIO())
    left, right = picture.figure.axes
    assert left.get_yscale() == "log"
    assert left.get_xscale() == right.get_xscale() == "logit"
    assert "nats" in left.get_ylabel()
    assert {text.get_text() for text in left.texts} == set(RUNGS)
    assert left.get_ylim()[1] > max(RUNGS.values())
    legend = [text.get_text() for text in left.get_legend().get_texts()]
    assert legend == [
        "pruned, mean 0.5 (nearest: 4-bit)",
        "floor: other batch size, mean 2.5e-09",
        "floor: float32, mean 0.0025",
    ]
    # The mean stands on the curve, where 1/4 = share^3.
    marker = next(line for line in left.lines if line.get_marker() == "D")
    assert marker.get_xdata() == pytest.approx(0.25 ** (1 / 3), abs=0.01)
    assert "tokens: 400, floors 30)" in picture.figure.get_suptitle()
    assert len(picture.numbers["kl"]) == 3 * 60
    assert picture.numbers["compared"][60] == "floor_batch"


@pytest.mark.parametrize("value", [0.0, math.inf])
def test_what_a_logarithm_cannot_show_is_left_out_of_the_picture_alone(value: float) -> None:
    flat = spread("pruned", 1)
    flat.kl, flat.mean = [value] * 60, value
    picture = distribution_picture([flat], RUNGS)
    picture.figure.savefig(io.BytesIO())
    assert picture.numbers["kl"] == [value] * 60
    curve = picture.figure.axes[0].lines[0]
    assert np.isnan(np.asarray(curve.get_ydata(), dtype=float)).all()
