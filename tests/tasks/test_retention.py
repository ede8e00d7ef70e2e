"""The row of the retained score."""

import math

import pytest
import torch

from prunelit.metrics.correlation import jackknife_error, spearman
from prunelit.metrics.retained import estimate_retained
from prunelit.tasks.retention import (
    jackknife_scores,
    paired_scores,
    retained_results,
    score_details,
)


def test_the_row_holds_both_scores_and_the_interval() -> None:
    dense = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])
    pruned = torch.tensor([1.0, 0, 1, 0, 1, 1, 0, 1])
    columns = {"dense/acc": dense, "pruned/acc": pruned}
    details = {"path": "rows.jsonl", **score_details("multiple choice", "acc")}
    given = dict(details)
    (row,) = retained_results("arc", paired_scores(columns, "acc", 0.25), details)
    expected = estimate_retained(
        dense.double().numpy(), pruned.double().numpy(), torch.full((8,), 0.25).numpy()
    )
    assert (row.task, row.metric, row.model, row.n) == ("arc", "retained", "pair", 8)
    assert (
        row.value == pytest.approx(expected.value) == pytest.approx((0.625 - 0.25) / (0.875 - 0.25))
    )
    assert row.standard_error == pytest.approx(expected.standard_error)
    assert row.details["lower_95"] == pytest.approx(expected.low)
    assert row.details["upper_95"] == pytest.approx(expected.high)
    assert (row.details["primary"], row.details["use"]) == ("acc", "multiple choice")
    assert (row.details["dense"], row.details["pruned"]) == (0.875, 0.625)
    assert row.details["chance"] == 0.25
    assert row.details["path"] == "rows.jsonl"
    assert details == given


def test_chance_may_differ_from_item_to_item() -> None:
    columns = {"dense/acc": torch.ones(4), "pruned/acc": torch.tensor([1.0, 1, 0, 0])}
    chance = torch.tensor([0.5, 0.25, 0.25, 0.5])
    scores = paired_scores(columns, "acc", chance)
    (row,) = retained_results("t", scores, score_details("multiple choice", "acc"))
    assert row.value == pytest.approx((0.5 - 0.375) / (1 - 0.375))
    assert row.details["chance"] == pytest.approx(0.375)


def test_no_interval_is_none_in_the_details() -> None:
    columns = {"dense/acc": torch.zeros(4), "pruned/acc": torch.zeros(4)}
    scores = paired_scores(columns, "acc", 0.0)
    (row,) = retained_results("t", scores, score_details("generation", "acc"))
    assert math.isnan(row.value)
    assert (row.details["lower_95"], row.details["upper_95"]) == (None, None)
    assert row.details["no_error_bar"] == "the dense model is not above chance"


def test_without_a_reference_or_a_score_there_is_no_row() -> None:
    columns = {"pruned/mrr": torch.ones(3)}
    details = score_details("retrieval", "mrr")
    assert retained_results("t", paired_scores(columns, "mrr", 0.1), details) == []
    both = {**columns, "dense/mrr": torch.ones(3)}
    assert len(retained_results("t", paired_scores(both, "mrr", 0.1), details)) == 1
    assert paired_scores(both, None, 0.1) is None


def test_pseudo_values_stand_for_a_score_that_is_no_mean() -> None:
    one, other = torch.arange(12.0), torch.arange(12.0) + torch.tensor([0.0, 3, 0] * 4)
    dense, pruned = spearman(one, one), spearman(one, other)
    scores = jackknife_scores(dense, pruned)
    assert scores.dense.tolist() == pytest.approx([1.0] * 12)
    change = scores.pruned - scores.dense
    assert change.std(ddof=1) / 12**0.5 == pytest.approx(jackknife_error(pruned[1] - dense[1]))
    assert not scores.bounded
