import numpy as np
import pytest
import torch

from prunelit.activations import SquaredNorm
from prunelit.errors import InputError
from prunelit.pruners import RIA
from prunelit.sparsity import Unstructured, Within


@pytest.mark.parametrize("within", ["row", "matrix"])
@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_scores_are_the_papers(power: float, within: Within) -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.normal(size=(5, 8)), rng.normal(size=(30, 8)) * np.arange(1, 9)
    size = np.abs(weight)
    relative = size / size.sum(1, keepdims=True) + size / size.sum(0, keepdims=True)
    scores = relative * np.linalg.norm(x, axis=0) ** power
    groups = scores if within == "row" else scores.reshape(1, 40)
    expected = np.ones(groups.shape, dtype=bool)
    half = groups.shape[1] // 2
    np.put_along_axis(expected, np.argsort(groups, axis=1)[:, :half], False, axis=1)
    statistic = SquaredNorm(8)
    statistic.update(torch.from_numpy(x))
    sparsity = Unstructured(0.5, within=within)
    pruned = RIA(sparsity, power=power).prune_weight(torch.from_numpy(weight).float(), statistic)
    np.testing.assert_array_equal(pruned.numpy() != 0, expected.reshape(5, 8))


def test_weights_of_a_matrix_compete() -> None:
    """The public code groups by row only if it is told to."""
    assert RIA(Unstructured(0.5)).within == "matrix"


def test_rows_and_columns_of_zeros_stay_finite() -> None:
    weight = torch.ones(4, 4)
    weight[1] = 0
    weight[:, 2] = 0
    statistic = SquaredNorm(4)
    statistic.update(torch.ones(1, 4))
    pruned = RIA(Unstructured(0.5, within="row")).prune_weight(weight, statistic)
    assert torch.isfinite(pruned).all()
    assert int((pruned == 0).sum()) == 4 + 3 * 2  # the zero row, and half of the others


def test_negative_power() -> None:
    with pytest.raises(InputError, match="`power` >= 0 but got -1"):
        RIA(Unstructured(0.5), power=-1.0)
