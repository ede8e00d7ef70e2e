"""The row of the retained score."""

import math

import pytest
import torch

from prunelit.metrics.retained import estimate_retained
from prunelit.tasks.retention import retained_results, score_details


def test_the_row_holds_both_scores_and_the_interval() -> None:
    dense = torch.tensor([1.0, 1, 1, 0, 1, 1, 1, 1])
    pruned = torch.tensor([1.0, 0, 1, 0, 1, 1, 0, 1])
    columns = {"dense/acc": dense, "pruned/acc": pruned}
    details = {"path": "rows.jsonl", **score_details("multiple choice", "acc")}
    given = dict(details)
    (row,) = retained_results("arc", columns, 0.25, details)
    expected = estimate_retained(
        dense.double().numpy(), pruned.double().numpy(), torch.full((8,), 0.25).numpy()
    )
    assert (row.task, row.metric, row.model, row.n) == ("arc", "retained", "pair", 8)
    assert (
        row.value == pytest.approx(expected.value) == pytest.approx((0.625 - 0.25) / (0.875 - 0.25))
    )
    assert row.standard_error == pytest.approx(expected.standard_error)
    assert row.details["interval_95"] == pytest.approx([expected.low, expected.high])
    assert (row.details["primary"], row.details["use"]) == ("acc", "multiple choice")
    assert (row.details["dense"], row.details["pruned"]) == (0.875, 0.625)
    assert row.details["chance"] == 0.25
    assert row.details["path"] == "rows.jsonl"
    assert details == given


def test_chance_may_differ_from_item_to_item() -> None:
    columns = {"dense/acc": torch.ones(4), "pruned/acc": torch.tensor([1.0, 1, 0, 0])}
    chance = torch.tensor([0.5, 0.25, 0.25, 0.5])
    (row,) = retained_results("t", columns, chance, score_details("multiple choice", "acc"))
    assert row.value == pytest.approx((0.5 - 0.375) / (1 - 0.375))
    assert row.details["chance"] == pytest.approx(0.375)


def test_no_interval_is_none_in_the_details() -> None:
    columns = {"dense/acc": torch.zeros(4), "pruned/acc": torch.zeros(4)}
    (row,) = retained_results("t", columns, 0.0, score_details("generation", "acc"))
    assert math.isnan(row.value)
    assert row.details["interval_95"] is None


def test_without_a_reference_or_a_score_there_is_no_row() -> None:
    columns = {"pruned/mrr": torch.ones(3)}
    assert retained_results("t", columns, 0.1, score_details("retrieval", "mrr")) == []
    both = {**columns, "dense/mrr": torch.ones(3)}
    assert len(retained_results("t", both, 0.1, score_details("retrieval", "mrr"))) == 1
    assert retained_results("t", both, 0.1, score_details("generation", None)) == []
