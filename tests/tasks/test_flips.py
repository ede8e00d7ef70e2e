"""Results about answers that change: the counts stand in the details of the p-value."""

import math

import pytest
import torch
from scipy.stats import binomtest

from prunelit.tasks.flips import flip_results


def test_flips_are_counted_in_both_directions() -> None:
    right = torch.tensor([0, 1, 2, 0, 1])
    chosen = {"dense": torch.tensor([0, 1, 2, 1, 0]), "pruned": torch.tensor([1, 1, 0, 0, 2])}
    rows = {row.metric: row for row in flip_results("t", chosen, right, {"seed": 0})}
    assert [rows[name].value for name in rows] == pytest.approx([0.2, 0.4, 0.2, 1.0])
    p = rows["mcnemar_p"]
    assert (p.details["flips_to_wrong"], p.details["flips_to_right"]) == (2, 1)
    assert p.value == pytest.approx(binomtest(2, 3).pvalue)
    assert math.isnan(p.standard_error)
    assert {row.model for row in rows.values()} == {"pair"}
    assert not flip_results("t", {"pruned": right}, right, {})
