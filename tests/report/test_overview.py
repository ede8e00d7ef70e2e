"""Figures of several prunings: what is drawn and written down, not how it looks."""

import io
import math
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from prunelit.report.curves import Curve, Picture
from prunelit.report.overview import overview
from prunelit.report.results import Result
from prunelit.report.style import SPACES, other_colours
from prunelit.report.variants import Variant, variants_cells, variants_numbers

STEPS = [0, 1, 2]


def curves(size: float) -> dict[str, list[Curve]]:
    def curve(name: str, mean: list[float]) -> Curve:
        zeros, nines = [0.0] * 3, [9.0] * 3
        return Curve(f"teacher_forced/{name}", "step", STEPS, mean, zeros, nines, [7, 7, 4],
                     "min-max", [0.4, 0.1, 0.0])  # fmt: skip

    return {
        "trajectory": [
            curve("logit_mse", [size, 4 * size, 0.0]),
            curve("logit_std_p", [1.0, 2.0, 3.0]),
            curve("kl_dense_pruned", [0.1, math.inf, 0.3]),
        ],
        "perplexity": [],
    }


def variant(
    name: str, score: float, dropped: tuple[str, int] | None = None, cosine: float = 0.9
) -> Variant:
    uses: list[tuple[str, str, dict[str, Any]]] = [
        ("multiple_choice", "acc", {"use": "multiple choice", "chance": 0.25}),
        ("retrieval", "mrr", {"use": "retrieval", "chance_mrr": 0.1}),
        ("rollout", "contains", {"use": "generation"}),
    ]
    rows = [
        Result(task, metric, model, value, 0.05, 45, {"primary": metric, **details})
        for task, metric, details in uses
        for model, value in (("dense", 0.8), ("pruned", score), ("difference", score - 0.8))
    ]
    for place, space in enumerate(SPACES):
        rows.append(Result("deviation", f"{space}_cosine", "pair", cosine - place / 10, 0.01, 16))
    rows.append(Result("deviation", "kl_dense_pruned", "pair", 0.3, 0.02, 16))
    return Variant(name, rows, curves(1.0), 0.5, dropped)


@pytest.fixture
def variants() -> list[Variant]:
    """Variants in another order than their number of dropped parts."""
    return [
        variant("drop_8", 0.4, ("attention sublayers", 8)),
        variant("wanda", 0.7),
        variant("drop_4", 0.6, ("attention sublayers", 4), cosine=0.8),
        variant("block", 0.5, ("blocks", 1)),
    ]


def drawn(picture: Picture) -> Figure:
    """The figure, whose PNG must come out without a warning."""
    picture.figure.savefig(io.BytesIO(), dpi=50)
    return picture.figure


def legend(figure: Figure) -> list[str]:
    texts = figure.legends[0] if figure.legends else figure.axes[0].get_legend()
    assert texts is not None
    return [text.get_text() for text in texts.get_texts()]


def lines(picture: Picture) -> list[tuple[object, ...]]:
    return list(zip(*picture.numbers.values(), strict=True))


def test_all_figures_of_a_full_sweep(variants: list[Variant]) -> None:
    pictures, missing = overview(variants)
    assert list(pictures) == ["perturbations", "score_by_dropped", "spaces_by_variant"]
    assert missing == []


def test_perturbations_are_one_line_a_variant_in_three_panels(variants: list[Variant]) -> None:
    picture = overview(variants)[0]["perturbations"]
    figure = drawn(picture)
    assert [axes.get_title() for axes in figure.axes] == [
        "root mean square of dz, logit units",
        "standard deviation of dz under p, logit units",
        "KL(dense ‖ pruned), nats",
    ]
    assert legend(figure) == ["drop_8", "wanda", "drop_4", "block"]
    for axes, expected in zip(
        figure.axes, ([1.0, 2.0, 0.0], [1.0, 2.0, 3.0], [0.1, math.nan, 0.3]), strict=True
    ):
        assert len(axes.lines) == len(axes.collections) == 4
        for line in axes.lines:
            assert list(line.get_ydata()) == pytest.approx(expected, nan_ok=True)
    assert "n = 7 prompts, 4 at the end" in str(figure.get_suptitle())
    assert list(picture.numbers) == [
        *("variant", "curve", "axis", "x", "mean", "standard_error", "low", "high", "n")
    ]
    # The root mean square with the error of the delta method, and an infinite KL as it is.
    assert lines(picture)[1] == (
        *("drop_8", "teacher_forced/logit_rms", "step", 1, 2.0),
        *(pytest.approx(0.1 / 4), 0.0, 3.0, 7),
    )
    assert lines(picture)[7][4] == math.inf
    assert len(lines(picture)) == 4 * 3 * 3


def test_the_band_is_the_standard_error(variants: list[Variant]) -> None:
    figure = overview(variants)[0]["perturbations"].figure
    corners = figure.axes[1].collections[0].get_paths()[0].vertices
    heights = {(x, round(y, 6)) for x, y in corners.tolist()}
    assert heights == {(0, 0.6), (0, 1.4), (1, 1.9), (1, 2.1), (2, 3.0)}


def test_scores_run_over_what_is_dropped(variants: list[Variant]) -> None:
    picture = overview(variants)[0]["score_by_dropped"]
    figure = drawn(picture)
    assert [axes.get_xlabel() for axes in figure.axes] == [
        *("number of dropped attention sublayers", "number of dropped blocks")
    ]
    scores = [bars for bars in figure.axes[0].containers if isinstance(bars, ErrorbarContainer)]
    assert len(scores) == 3
    for score in scores:
        assert score.lines[0].get_xydata().tolist() == [[0, 0.8], [4, 0.6], [8, 0.4]]
    styles = [score.lines[0].get_linestyle() for score in scores]
    assert styles == ["-", "-", ":"]
    levels = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in levels] == [0.25, 0.1]
    assert [line.get_color() for line in levels] == [r.lines[0].get_color() for r in scores[:2]]
    assert legend(figure) == [
        *("multiple_choice (acc)", "retrieval (mrr)", "rollout (contains)"),
        "chance, in the colour of its score",
    ]
    assert lines(picture)[:3] == [
        ("attention sublayers", count, name, "multiple_choice", "acc", value, 0.05, 0.25)
        for count, name, value in ((0, "dense", 0.8), (4, "drop_4", 0.6), (8, "drop_8", 0.4))
    ]
    assert [line[:3] for line in lines(picture)[-2:]] == [
        *(("blocks", 0, "dense"), ("blocks", 1, "block"))
    ]


def test_cosines_are_grouped_bars(variants: list[Variant]) -> None:
    picture = overview(variants)[0]["spaces_by_variant"]
    figure = drawn(picture)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [v.name for v in variants]
    bars = [(round(p.get_height(), 6), to_hex(p.get_facecolor())) for p in axes.patches]
    assert bars[:3] == [
        (value, colour.lower())
        for value, colour in zip((0.9, 0.8, 0.7), SPACES.values(), strict=True)
    ]
    assert len(bars) == 4 * 3
    assert legend(figure) == list(SPACES)
    assert lines(picture)[3] == ("wanda", "embedding", 0.9, 0.01, 16)
    assert lines(picture)[6] == ("drop_4", "embedding", 0.8, 0.01, 16)


def test_one_item_has_no_error_and_a_cosine_may_be_negative() -> None:
    rows = [Result("deviation", f"{space}_cosine", "pair", -0.2, math.nan, 1) for space in SPACES]
    pictures, _ = overview([Variant("one", rows, {}, 0.5)])
    (axes,) = drawn(pictures["spaces_by_variant"]).axes
    assert axes.get_ylim()[0] < -0.2


def test_what_there_is_no_data_for_is_left_out_and_said() -> None:
    rows = [Result("perplexity", "perplexity", "pruned", 40.0, 1.0, 9)]
    pictures, missing = overview([Variant("wanda", rows, {"perplexity": []}, 0.5)])
    assert pictures == {}
    assert [sentence.split(":")[0] for sentence in missing] == [
        f"No figure {name!r}" for name in ("perturbations", "score_by_dropped", "spaces_by_variant")
    ]
    assert "teacher_forced/logit_std_p" in missing[0]


def test_a_sweep_without_drops_has_no_scores_by_drops(variants: list[Variant]) -> None:
    pictures, missing = overview([variants[1]])
    assert list(pictures) == ["perturbations", "spaces_by_variant"]
    assert missing == ["No figure 'score_by_dropped': no variant drops sublayers or blocks."]


def test_two_tasks_of_a_kind_have_a_figure_each(variants: list[Variant]) -> None:
    for one in variants:
        again = [
            Result("again", *(vars(row)[k] for k in list(vars(row))[1:])) for row in one.results
        ]
        one.results = [*one.results, *(row for row in again if row.metric.endswith("_cosine"))]
    pictures, _ = overview(variants)
    assert [name for name in pictures if "spaces" in name] == [
        *("spaces_by_variant_deviation", "spaces_by_variant_again")
    ]


def test_without_a_dense_model_scores_begin_at_the_first_drop(variants: list[Variant]) -> None:
    for one in variants:
        one.results = [row for row in one.results if row.model == "pruned"]
    picture = overview(variants)[0]["score_by_dropped"]
    drawn(picture)
    assert [line[1] for line in lines(picture)[:2]] == [4, 8]
    assert [cells["variant"] for cells in variants_cells(variants)] == [v.name for v in variants]


def test_the_table_is_of_main_scores_perplexity_and_kl(variants: list[Variant]) -> None:
    cells = variants_cells(variants)
    assert list(cells[0]) == [
        *("variant", "sparsity", "parameters", "MiB"),
        *("multiple_choice\nacc", "retrieval\nmrr", "rollout\ncontains"),
        "deviation\nkl_dense_pruned",
    ]
    assert list(cells[0].values()) == ["dense", "0.0000", "0", "0.0", *["0.8 ± 0.05"] * 3, ""]
    assert list(cells[3].values()) == [
        *("drop_4", "0.5000", "0", "0.0", *["0.6 ± 0.05"] * 3, "0.3 ± 0.02")
    ]
    numbers = variants_numbers(variants)
    assert numbers["variant"][:4] == ["dense", "dense", "dense", "drop_8"]
    assert numbers["value"][3:7] == [0.4, 0.4, 0.4, 0.3]


def test_no_variant_has_the_colour_of_a_space() -> None:
    own = [np.array(to_rgb(colour)) for colour in other_colours(9)]
    spaces = [np.array(to_rgb(colour)) for colour in SPACES.values()]
    assert len({tuple(colour) for colour in own}) == 7
    assert min(np.abs(a - b).max() for a in own for b in spaces) > 0.2


def test_a_negative_correlation_is_within_the_figure() -> None:
    drops = [variant("two", -0.3, ("blocks", 2)), variant("four", 0.2, ("blocks", 4))]
    pictures, _ = overview(drops)
    (axes,) = pictures["score_by_dropped"].figure.axes
    assert axes.get_ylim()[0] < -0.35
