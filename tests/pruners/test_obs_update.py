from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.activations import Gram, SquaredNorm, StatisticPair
from prunelit.errors import InputError
from prunelit.pruners import Magnitude, OBSUpdate, SparseGPT, Wanda
from prunelit.sparsity import Unstructured

GramOf = Callable[[np.ndarray], Gram]


def surgeon(weight: np.ndarray, hessian: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """Column by column by the formulas of the optimal brain surgeon, in float64.

    Weight q of a row is removed with the update -w_q / [H^-1]_qq * H^-1[:, q] over the columns that
    are left, and the inverse is that of the Hessian of these columns, computed anew.
    """
    pruned = weight.astype(np.float64).copy()
    for q in range(weight.shape[1]):
        inverse = np.linalg.inv(hessian[q:, q:])
        for row in np.flatnonzero(~keep[:, q]):
            pruned[row, q:] -= pruned[row, q] / inverse[0, 0] * inverse[:, 0]
            pruned[row, q] = 0
    return pruned


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("block_size", [2, 3, 8])
def test_update_equals_the_formulas(seed: int, block_size: int, gram_of: GramOf) -> None:
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(40, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(5, 7))
    gram = gram_of(x)
    dense = torch.from_numpy(weight).float()
    pruner = OBSUpdate(Magnitude(Unstructured(0.5, within="row")), block_size=block_size)
    found = pruner.prune_weight(dense, gram).numpy()
    keep = Magnitude(Unstructured(0.5)).prune_weight(dense, gram).numpy() != 0
    np.testing.assert_array_equal(found != 0, keep)
    hessian = gram.value.double().numpy()
    hessian = hessian + 0.01 * np.mean(np.diag(hessian)) * np.eye(7)
    np.testing.assert_allclose(found, surgeon(weight, hessian, keep), rtol=1e-3, atol=1e-4)


def test_update_makes_up_for_what_is_removed() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(400, 24)) @ rng.normal(size=(24, 24))).float()
    weight = torch.from_numpy(rng.normal(size=(16, 24))).float()
    gram, norm = Gram(24), SquaredNorm(24)
    both = StatisticPair(gram, norm)
    both.update(x)
    wanda = Wanda(Unstructured(0.5))
    updated = OBSUpdate(wanda).prune_weight(weight, both)
    plain = wanda.prune_weight(weight, norm)
    assert torch.equal(updated != 0, plain != 0)
    best = SparseGPT(Unstructured(0.5), block_size=8).prune_weight(weight, gram)
    errors = [float((x @ (w - weight).T).square().mean()) for w in (plain, updated, best)]
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < errors[0]


def test_later_rounds_only_add(
    family: str,
    make_model: Callable[..., PreTrainedModel],
    input_ids: Tensor,
    rounds_only_add: Callable[..., None],
) -> None:
    rounds_only_add(make_model(family), OBSUpdate(Wanda(Unstructured(0.7))), input_ids)


def test_bad_settings() -> None:
    with pytest.raises(InputError, match="Expected `damping` > 0 and `block_size`"):
        OBSUpdate(Magnitude(Unstructured(0.5)), block_size=0)
