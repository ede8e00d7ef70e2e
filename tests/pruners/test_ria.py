from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.activations import SquaredNorm
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.neurons import find_neurons
from prunelit.pruners import RIA, OBSUpdate, Sequence, Wanda
from prunelit.pruners.permutation import kept_sum
from prunelit.pruners.scores import relative_scores
from prunelit.sparsity import SemiStructured, Unstructured, Within


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


@torch.no_grad()
def test_reordered_neurons_keep_more_and_compute_the_same(
    family: str, make_model: Callable[..., PreTrainedModel], padded: dict[str, Tensor]
) -> None:
    dense, model = make_model(family), make_model(family)
    pruner = RIA(SemiStructured(2, 4), permute=True)
    pruner.check(model)
    kept: list[tuple[float, float]] = []
    moved = 0
    for block in decoder_blocks(model)[1]:
        probes = pruner.watch(block)
        linears = linear_modules(block)
        generator = torch.Generator().manual_seed(0)
        for name, probe in probes.items():
            width = oriented_weight(linears[name]).shape[1]
            probe.statistic.update(torch.randn(20, width, generator=generator))
        names = [neurons.output for neurons in find_neurons(block)]
        before = {name: oriented_weight(linears[name]).clone() for name in names}
        scores = {n: relative_scores(before[n], probes[n].statistic.value, 0.5) for n in names}
        arranged = pruner.arrange(block, probes)
        for name in names:
            weight = oriented_weight(linears[name])
            moved += not torch.equal(weight, before[name])
            after = relative_scores(weight, arranged[name].statistic.value, 0.5)
            assert after.sum(0).sort().values.allclose(scores[name].sum(0).sort().values)
            kept.append((kept_sum(scores[name], 2, 4), kept_sum(after, 2, 4)))
    assert moved == len(kept) > 0
    assert all(after > before for before, after in kept)
    torch.testing.assert_close(model(**padded).logits, dense(**padded).logits, rtol=1e-4, atol=1e-5)


def test_the_stored_groups_are_two_of_four(model: PreTrainedModel, input_ids: Tensor) -> None:
    prune(model, RIA(SemiStructured(2, 4), permute=True), input_ids)
    for block in decoder_blocks(model)[1]:
        for linear in linear_modules(block).values():
            assert ((oriented_weight(linear).reshape(-1, 4) == 0).sum(1) == 2).all()


def test_an_order_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(InputError, match="an order makes a difference to groups only"):
        RIA(Unstructured(0.5), permute=True)
    pruner = RIA(SemiStructured(2, 4), permute=True)
    with pytest.raises(InputError, match="cannot prune in rounds"):
        pruner.scale(0.5)
    with pytest.raises(InputError, match="leaves channels in their order but got RIA"):
        OBSUpdate(pruner)
    with pytest.raises(InputError, match="RIA with `permute` as the first of `methods`"):
        Sequence([Wanda(Unstructured(0.5)), pruner])


def test_rows_and_columns_of_zeros_stay_finite() -> None:
    weight = torch.ones(4, 4)
    weight[1] = 0
    weight[:, 2] = 0
    statistic = SquaredNorm(4)
    statistic.update(torch.ones(1, 4))
    pruned = RIA(Unstructured(0.5, within="row")).prune_weight(weight, statistic)
    assert torch.isfinite(pruned).all()
    assert int((pruned == 0).sum()) == 4 + 3 * 2  # the zero row, and half of the others


@pytest.mark.parametrize("power", [-1.0, float("nan"), float("inf")])
def test_a_power_that_gives_no_order(power: float) -> None:
    with pytest.raises(InputError, match=f"`power` >= 0 but got {power}"):
        RIA(Unstructured(0.5), power=power)


def test_a_power_that_float32_cannot_hold() -> None:
    statistic = SquaredNorm(4)
    statistic.update(torch.full((2, 4), 3.0))
    with pytest.raises(InputError, match=r"to the power 500 .* a smaller `power`"):
        RIA(Unstructured(0.5), power=500).prune_weight(torch.randn(3, 4), statistic)
