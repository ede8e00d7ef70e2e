"""The table of items, and means with error bars against NumPy."""

import math

import numpy as np
import pytest
import torch

from prunelit.tasks.item_table import ItemTable, mean


def test_mean_and_standard_error_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).exponential(size=37)
    value, error = mean(torch.tensor(values))
    assert value == pytest.approx(values.mean(), rel=1e-12)
    assert error == pytest.approx(values.std(ddof=1) / math.sqrt(37), rel=1e-12)


def test_one_item_has_no_standard_error() -> None:
    value, error = mean(torch.tensor([3.0]))
    assert value == 3
    assert math.isnan(error)


def test_slots_are_filled_in_any_order_and_shape() -> None:
    table = ItemTable(3)
    table.assign(torch.tensor([2, 0]), {"x": torch.tensor([2.5, 0.5]), "t": torch.eye(2).long()})
    table.assign(torch.tensor([1]), {"x": torch.tensor([1.5]), "t": torch.tensor([[7, 7]])})
    table.all_reduce_()
    assert table.columns() == ["x", "t"]
    assert table["x"].tolist() == [0.5, 1.5, 2.5]
    assert table["t"].tolist() == [[0, 1], [7, 7], [1, 0]]
    assert table["t"].dtype == torch.int64
    assert "x" in table
    assert "y" not in table


@pytest.mark.parametrize("batches", [[[0, 1]], [[0, 1, 2], [2]], []])
def test_an_item_measured_never_or_twice_is_an_error(batches: list[list[int]]) -> None:
    table = ItemTable(3)
    for batch in batches:
        table.assign(torch.tensor(batch), {"x": torch.zeros(len(batch))})
    with pytest.raises(RuntimeError, match="every item to be measured exactly once"):
        table.all_reduce_()


def test_paired_rows_hold_the_error_of_the_difference_item_by_item() -> None:
    rng = np.random.default_rng(2)
    dense = rng.normal(size=50)
    pruned = dense - 0.3 + 0.1 * rng.normal(size=50)
    table = ItemTable(50)
    columns = {"dense/acc": torch.tensor(dense), "pruned/acc": torch.tensor(pruned)}
    table.assign(torch.arange(50), columns)
    rows = {row.model: row for row in table.paired_results("task", ["acc"], {"seed": 0})}
    assert list(rows) == ["dense", "pruned", "difference"]
    for model, values in (("dense", dense), ("pruned", pruned), ("difference", pruned - dense)):
        row = rows[model]
        assert (row.task, row.metric, row.n) == ("task", "acc", 50)
        assert row.details == {"seed": 0}
        assert row.value == pytest.approx(values.mean(), rel=1e-12)
        assert row.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(50), rel=1e-12)
    # Pairing is the point: the models' own errors would say ten times as much.
    assert rows["difference"].standard_error < rows["dense"].standard_error / 5


def test_without_a_reference_there_is_one_row() -> None:
    table = ItemTable(2)
    table.assign(torch.arange(2), {"pruned/acc": torch.tensor([1.0, 0.0])})
    assert [row.model for row in table.paired_results("task", ["acc"], {})] == ["pruned"]


def test_pair_rows_are_given_for_measured_columns_only() -> None:
    table = ItemTable(2)
    table.assign(torch.arange(2), {"diverged": torch.tensor([1.0, 0.0])})
    (row,) = table.pair_results("task", ["first_divergence", "diverged"], {})
    assert (row.metric, row.model, row.value, row.n) == ("diverged", "pair", 0.5, 2)
    assert row.standard_error == pytest.approx(0.5)


def test_models_are_those_that_have_the_column() -> None:
    table = ItemTable(1)
    values = {name: torch.ones(1) for name in ("pruned/acc", "dense/acc", "pruned/nll", "both")}
    table.assign(torch.tensor([0]), values)
    assert table.models("acc") == ["dense", "pruned"]
    assert table.models("nll") == ["pruned"]
    assert table.models("both") == []
