import math
from collections.abc import Callable
from functools import partial
from math import inf, nan

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit import prune
from prunelit.allocation import (
    OWL,
    Allocation,
    AlphaPruning,
    LinearDepth,
    spread_counts,
    tail_exponent,
)
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.pruners import Magnitude, Wanda
from prunelit.sparsity import SemiStructured, Unstructured

MakeModel = Callable[..., PreTrainedModel]


def removed(model: PreTrainedModel) -> list[dict[str, tuple[int, int]]]:
    """Zeros and size of every matrix, block by block."""
    return [
        {
            name: (int((oriented_weight(m) == 0).sum()), oriented_weight(m).numel())
            for name, m in linear_modules(block).items()
        }
        for block in decoder_blocks(model)[1]
    ]


def ratio(block: dict[str, tuple[int, int]]) -> float:
    zeros, sizes = zip(*block.values(), strict=True)
    return sum(zeros) / sum(sizes)


@pytest.mark.parametrize(
    "allocation", [LinearDepth(0.1), LinearDepth(-0.2), OWL(2.0, 0.1), AlphaPruning(0.1)]
)
@pytest.mark.parametrize("asked", [0.37, 0.5])
def test_the_total_is_exact(
    family: str, make_model: MakeModel, input_ids: Tensor, allocation: Allocation, asked: float
) -> None:
    model = make_model(family)
    prune(model, Wanda(Unstructured(asked), allocation=allocation), input_ids)
    found = removed(model)
    total = sum(size for block in found for _, size in block.values())
    assert sum(zeros for block in found for zeros, _ in block.values()) == round(asked * total)
    for block in found:
        for zeros, size in block.values():
            assert abs(zeros - ratio(block) * size) <= 1.5  # each within one of the common share


def test_linear_by_depth(model: PreTrainedModel) -> None:
    prune(model, Magnitude(Unstructured(0.5), allocation=LinearDepth(0.1)))
    assert [ratio(block) for block in removed(model)] == pytest.approx([0.4, 0.5, 0.6], abs=1e-3)


def test_outlier_weighted_ratios_against_plain_code(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0] *= 30  # a block with outliers
        inputs: dict[str, np.ndarray] = {}
        for name, module in model.named_modules():
            if name.endswith("_proj"):
                module.register_forward_hook(
                    lambda _m, args, _o, name=name: inputs.__setitem__(name, args[0].numpy())
                )
        model(input_ids=input_ids)
    for module in model.modules():
        module._forward_hooks.clear()
    shares = []
    for index, block in enumerate(decoder_blocks(model)[1]):
        scores = [
            np.abs(module.weight.detach().numpy())
            * np.linalg.norm(inputs[f"model.layers.{index}.{name}"].reshape(120, -1), axis=0)
            for name, module in linear_modules(block).items()
        ]
        flat = np.concatenate([score.ravel() for score in scores])
        shares.append((flat > 3.0 * flat.mean()).mean())
    spread = np.array(shares)
    spread = (spread - spread.min()) / (spread.max() - spread.min()) * 2 * 0.08
    expected = 1 - (spread - spread.mean() + (1 - 0.5))
    prune(model, Wanda(Unstructured(0.5), allocation=OWL(3.0, 0.08)), input_ids)
    found = [ratio(block) for block in removed(model)]
    assert found == pytest.approx(expected.tolist(), abs=1e-3)
    assert max(found) - min(found) == pytest.approx(2 * 0.08, abs=1e-3)


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_the_exponent_of_a_tail_against_plain_code(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_t(2.5, size=shape)
    smaller = weight @ weight.T if shape[0] < shape[1] else weight.T @ weight
    eigenvalues = np.sort(np.linalg.eigvalsh(smaller))
    low, high = np.log(eigenvalues[[0, -1]])
    bins = np.minimum(((np.log(eigenvalues) - low) / (high - low) * 100).astype(int), 99)
    peak = np.bincount(bins).argmax()
    tail = eigenvalues[bins >= peak]
    total = sum(math.log(value / tail[0]) for value in tail)
    found = tail_exponent(torch.from_numpy(weight))
    assert found == pytest.approx(1 + len(tail) / total, rel=1e-3)


def test_the_exponent_of_a_power_law_is_found() -> None:
    """Eigenvalues with the density of a power law of exponent 3 above 1, at its quantiles."""
    quantiles = (np.arange(2000) + 0.5) / 2000
    eigenvalues = (1 - quantiles) ** (-1 / 2)
    assert tail_exponent(torch.from_numpy(np.sqrt(eigenvalues)).diag()) == pytest.approx(
        3, rel=0.02
    )
    assert tail_exponent(torch.zeros(3, 4)) == 1
    assert tail_exponent(torch.eye(3)) == 1 + 1e6


def test_ratios_follow_the_mean_exponent_of_a_block(model: PreTrainedModel) -> None:
    with torch.no_grad():
        for index, block in enumerate(decoder_blocks(model)[1]):
            for linear in linear_modules(block).values():
                oriented_weight(linear)[: index + 1] *= 20  # a few strong directions
    means = np.array(
        [
            np.mean([tail_exponent(oriented_weight(m)) for m in linear_modules(block).values()])
            for block in decoder_blocks(model)[1]
        ]
    )
    shares = (means - means.min()) / (means.max() - means.min()) * 0.2
    prune(model, Magnitude(Unstructured(0.5), allocation=AlphaPruning(0.1)))
    found = [ratio(block) for block in removed(model)]
    assert found == pytest.approx((shares - shares.mean() + 0.5).tolist(), abs=1e-3)


def test_ratios_of_sublayers(model: PreTrainedModel, input_ids: Tensor) -> None:
    ratios = {"self_attn.o_proj": 0.1, "self_attn.*": 0.25}
    prune(model, Wanda(Unstructured(0.75), ratios=ratios), input_ids)
    for block in removed(model):
        for name, (zeros, size) in block.items():
            asked = 0.1 if name.endswith("o_proj") else 0.25 if "attn" in name else 0.75
            assert abs(zeros - asked * size) <= 1, name


def test_ratios_shrink_in_an_early_round(model: PreTrainedModel, input_ids: Tensor) -> None:
    prune(model, Wanda(Unstructured(0.5), ratios={"mlp.*": 0.25}).scale(0.5), input_ids)
    for block in removed(model):
        for name, (zeros, size) in block.items():
            assert abs(zeros - (0.125 if "mlp" in name else 0.25) * size) <= 1, name


def test_rounds_reach_the_asked_total_whatever_the_blocks_lost_before(
    model: PreTrainedModel, input_ids: Tensor
) -> None:
    # Outliers are counted anew in each round, on what the last one left.
    pruner = Wanda(Unstructured(0.6), allocation=OWL(outlier=2.0))
    size = sum(size for block in removed(model) for _, size in block.values())
    before = 0
    for step in range(1, 9):
        prune(model, pruner.scale(step / 8), input_ids)
        zeros = sum(zeros for block in removed(model) for zeros, _ in block.values())
        assert zeros == math.ceil(0.6 * step / 8 * size - 0.5) > before
        before = zeros


@pytest.mark.parametrize("seed", range(20))
def test_counts_by_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 60, 9)
    ratios = rng.uniform(0, 0.98, 9)
    offsets = rng.uniform(-0.8, 0.8, 9)
    gone = rng.integers(0, sizes) * rng.integers(0, 2, 9) if seed % 2 else np.zeros(9, dtype=int)
    counts = spread_counts(sizes, ratios, offsets, gone)
    limit = (sizes - 1).sum()
    total = max(min(np.ceil((ratios * sizes).sum() - 0.5), limit), gone.sum())
    assert counts.sum() == total
    assert (counts >= gone).all()
    assert (counts < sizes).all()
    # All that are not at a bound share one shift, give or take one weight.
    free = (counts > gone) & (counts < sizes - 1)
    low = ((counts - 1) / sizes - ratios - offsets)[free]
    high = ((counts + 1) / sizes - ratios - offsets)[free]
    assert not free.any() or low.max() <= high.min() + 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ratios": {"mlp.up": 0.1}}, r"'mlp\.up' of `ratios` matches no .* mlp\.up_proj"),
        ({"ratios": {"mlp.*": 1.0}}, r"ratio of 'mlp\.\*' in \[0, 1\) but got 1\.0"),
        ({"sparsity": SemiStructured(2, 4), "ratios": {"mlp.*": 0.1}}, "but got SemiStructured"),
        ({"sparsity": SemiStructured(2, 4), "allocation": OWL()}, "but got SemiStructured"),
    ],
)
def test_what_cannot_be_allocated(arguments: dict, message: str, model: PreTrainedModel) -> None:
    with pytest.raises(InputError, match=message):
        prune(model, Magnitude(**{"sparsity": Unstructured(0.5), **arguments}))


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (partial(OWL, 5.0), -0.1),
        (AlphaPruning, -0.1),
        *((make, value) for make in (OWL, partial(OWL, 5.0)) for value in (nan, inf)),
        *((make, value) for make in (AlphaPruning, LinearDepth) for value in (nan, inf)),
        (OWL, 0.0),
    ],
)
def test_bad_settings(make: Callable[[float], Allocation], value: float) -> None:
    with pytest.raises(InputError, match=rf"inite .*`spread`.* but got .*{value}"):
        make(value)


@pytest.mark.parametrize("spread", [0.1, 1e20, 1e308])
def test_extreme_ratios_and_spreads(spread: float) -> None:
    """A matrix never loses its last weight, nor more weights than it has."""
    sizes, gone, offsets = np.array([12, 1024, 1]), np.array([12, 0, 0]), np.array([-1, 0, 1])
    for ratio in (0.5, 0.99999):
        counts = spread_counts(sizes, np.full(3, ratio), spread * offsets, gone)
        assert counts.sum() == min(np.ceil(ratio * 1037 - 0.5), 12 + 1023)
        assert (counts >= gone).all()
        assert (counts <= np.maximum(gone, sizes - 1)).all()
