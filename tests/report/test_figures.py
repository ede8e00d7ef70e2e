"""Figures of one run: what is drawn, not how it looks."""

import io
import math
from typing import Any

import pytest
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

from prunelit.report.figures import scores_figure, sparsity_figure
from prunelit.report.results import Result


def paired(task: str, metric: str, dense: float, pruned: float, **more: Any) -> list[Result]:
    details = {"primary": metric, **more}
    return [
        Result(task, metric, "dense", dense, 0.05, 45, details),
        Result(task, metric, "pruned", pruned, 0.04, 45, details),
        Result(task, metric, "difference", pruned - dense, 0.03, 45, details),
    ]


def heights(figure: Figure) -> dict[str, list[float]]:
    bars = [c for c in figure.axes[0].containers if isinstance(c, BarContainer)]
    return {str(bar.get_label()): [patch.get_height() for patch in bar.patches] for bar in bars}


def drawn(figure: Figure) -> bytes:
    """The PNG, which must come out without a warning."""
    image = io.BytesIO()
    figure.savefig(image, dpi=60)
    return image.getvalue()


def test_main_scores_stand_side_by_side_with_their_level_of_chance() -> None:
    rows = [
        *paired("multiple_choice", "acc", 0.84, 0.6, chance=0.25),
        *paired("multiple_choice", "acc_norm", 0.9, 0.7, chance=0.25, primary="acc"),
        *paired("retrieval", "mrr", 0.69, 0.36, chance_mrr=0.09),
        *paired("rollout", "contains", 0.67, 0.0, chance=0.0),
        *paired("perplexity", "nll", 3.6, 4.3, primary=None),
    ]
    figure = scores_figure(rows)
    assert heights(figure) == {"dense": [0.84, 0.69, 0.67], "pruned": [0.6, 0.36, 0.0]}
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert [label.splitlines()[0] for label in labels] == [
        *("multiple_choice", "retrieval", "rollout")
    ]
    assert "acc, n=45" in labels[0]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert sorted(text.get_text() for text in legend.get_texts()) == ["chance", "dense", "pruned"]
    lines = [c for c in figure.axes[0].collections if str(c.get_label()).endswith("chance")]
    levels = [line.get_paths()[0].vertices[0, 1] for line in lines]
    assert levels == [0.25, 0.09]
    assert drawn(figure).startswith(b"\x89PNG")


def test_without_a_reference_the_pruned_model_stands_alone() -> None:
    rows = [row for row in paired("facts", "acc", 0.8, 0.6) if row.model == "pruned"]
    assert heights(scores_figure(rows))["pruned"] == [0.6]
    assert drawn(scores_figure(rows))


def test_one_item_has_a_bar_without_an_error() -> None:
    rows = [Result("facts", "acc", "pruned", 1.0, math.nan, 1, {"primary": "acc"})]
    figure = scores_figure(rows)
    assert heights(figure)["pruned"] == [1.0]
    assert drawn(figure)


def test_a_correlation_may_be_negative_or_no_number() -> None:
    figure = scores_figure(paired("stsb", "spearman", 0.5, -0.2))
    assert figure.axes[0].get_ylim()[0] < -0.2
    figure = scores_figure(paired("stsb", "spearman", math.nan, 0.4))
    assert figure.axes[0].get_ylim()[0] == 0
    assert drawn(figure)


def test_a_run_without_main_scores_is_drawn_empty() -> None:
    assert drawn(scores_figure([Result("perplexity", "nll", "dense", 3.6, 0.1, 9)]))


SIZES = {
    "parameters": 2_000_000,
    "stored_parameters": 1_500_000,
    "bytes": 4_000_000,
    "stored_bytes": 3_000_000,
}


@pytest.fixture
def report() -> dict:
    """Two blocks; the second has no `mlp.up`."""
    return {
        "sparsity": 0.4,
        **SIZES,
        "blocks": [{"name": "model.layers.1"}, {"name": "model.layers.10"}],
        "tensors": [
            {"name": "model.layers.1.attn.q.weight", "sparsity": 0.5},
            {"name": "model.layers.1.mlp.up.weight", "sparsity": 0.25},
            {"name": "model.layers.10.attn.q.weight", "sparsity": 0.75},
        ],
    }


def test_sparsity_is_a_picture_of_modules_and_blocks(report: dict) -> None:
    figure = sparsity_figure(report)
    (image,) = figure.axes[0].images
    values = image.get_array()
    assert values is not None
    assert values.tolist()[0] == [0.5, 0.75]
    assert values[1][0] == 0.25
    assert bool(values.mask[1][1])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["attn.q", "mlp.up"]
    assert image.get_clim() == (0, 1)
    title = figure.axes[0].get_title()
    assert "0.4000" in title
    assert "Parameters: 2,000,000 → 1,500,000, 3.8 → 2.9 MiB" in title
    assert drawn(figure)


def test_many_blocks_do_not_crowd_the_axis() -> None:
    blocks = [{"name": f"model.layers.{i}"} for i in range(40)]
    tensors = [{"name": f"{block['name']}.q.weight", "sparsity": 0.5} for block in blocks]
    figure = sparsity_figure({"sparsity": 0.5, "blocks": blocks, "tensors": tensors, **SIZES})
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels[0] == "0"
    assert len(labels) <= 20
