import numpy as np
import pytest
import torch

from prunelit.activations import SquaredNorm
from prunelit.errors import InputError
from prunelit.pruners import RIA
from prunelit.sparsity import Unstructured


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_scores_are_the_papers(power: float) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(5, 8)), rng.normal(size=(30, 8)) * np.arange(1, 9)
    size = np.abs(weight)
    relative = size / size.sum(1, keepdims=True) + size / size.sum(0, keepdims=True)
    scores = relative * np.linalg.norm(x, axis=0) ** power
    expected = np.ones((5, 8), dtype=bool)
    np.put_along_axis(expected, np.argsort(scores, axis=1)[:, :4], False, axis=1)
    statistic = SquaredNorm(8)
    statistic.update(torch.from_numpy(x))
    pruned = RIA(Unstructured(0.5), power=power).prune_weight(
        torch.from_numpy(weight).float(), statistic
    )
    np.testing.assert_array_equal(pruned.numpy() != 0, expected)


def test_rows_and_columns_of_zeros_stay_finite() -> None:
    weight = torch.ones(4, 4)
    weight[1] = 0
    weight[:, 2] = 0
    statistic = SquaredNorm(4)
    statistic.update(torch.ones(1, 4))
    pruned = RIA(Unstructured(0.5)).prune_weight(weight, statistic)
    assert torch.isfinite(pruned).all()
    assert int((pruned == 0).sum()) == 4 + 3 * 2  # the zero row, and half of the others


def test_negative_power() -> None:
    with pytest.raises(InputError, match="`power` >= 0 but got -1"):
        RIA(Unstructured(0.5), power=-1.0)
