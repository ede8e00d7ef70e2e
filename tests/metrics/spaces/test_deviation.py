import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunelit.errors import InputError
from prunelit.metrics import (
    LogitPair,
    VectorPair,
    cosine_estimate,
    embedding_cosine,
    embedding_orthogonal,
    embedding_parallel,
    js,
    kl,
    kl_estimate,
    logit_cosine,
    logit_mse,
    logit_orthogonal,
    logit_parallel,
    logit_std,
    logit_std_p,
    logit_std_top,
    probability_cosine,
    probability_cosine_estimate,
    top1_agreement,
    topk_overlap,
)
from prunelit.metrics.spaces import buffers
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.deviation import deviations

OF_EMBEDDINGS = {
    "embedding_cosine": embedding_cosine,
    "embedding_parallel": embedding_parallel,
    "embedding_orthogonal": embedding_orthogonal,
    "embedding_cosine_estimate": lambda h, g: cosine_estimate(VectorPair(h.double(), g.double())),
}
OF_LOGITS = {
    "logit_cosine": logit_cosine,
    "logit_mse": logit_mse,
    "logit_parallel": logit_parallel,
    "logit_orthogonal": logit_orthogonal,
    "logit_std": logit_std,
    "logit_std_p": logit_std_p,
    "logit_std_top5": lambda pair: logit_std_top(pair, 5),
    "logit_std_top10": lambda pair: logit_std_top(pair, 10),
    "logit_cosine_estimate": lambda pair: cosine_estimate(pair.vectors),
    "probability_cosine": probability_cosine,
    "kl_dense_pruned": lambda pair: kl(pair, "dense_pruned"),
    "kl_pruned_dense": lambda pair: kl(pair, "pruned_dense"),
    "js": js,
    "top1_agreement": top1_agreement,
    "top5_overlap": lambda pair: topk_overlap(pair, 5),
    "top10_overlap": lambda pair: topk_overlap(pair, 10),
    "probability_cosine_estimate": probability_cosine_estimate,
    "kl_dense_pruned_estimate": lambda pair: kl_estimate(pair, "dense_pruned"),
    "kl_pruned_dense_estimate": lambda pair: kl_estimate(pair, "pruned_dense"),
}
ONE_WHERE_EQUAL = ("cosine", "overlap", "agreement", "cosine_estimate")

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture
def inputs(make_logits) -> Inputs:
    """Embeddings (2, 7, 16) and logits (2, 7, 300)."""
    return (*make_logits((2, 7, 16), seed=1), *make_logits((2, 7, 300)))


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    torch.testing.assert_close(found, expected, **(tolerance or {"rtol": 0, "atol": 0}))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_quantity_under_its_name(inputs: Inputs, temperature: float) -> None:
    found = deviations(*inputs, temperature=temperature)
    assert set(found) == {*OF_EMBEDDINGS, *OF_LOGITS}
    pair = LogitPair(*inputs[2:], temperature)
    expected = {name: f(*inputs[:2]) for name, f in OF_EMBEDDINGS.items()}
    expected |= {name: f(pair) for name, f in OF_LOGITS.items()}
    for name, value in found.items():
        assert value.shape == (2, 7), name
        assert value.dtype == torch.float64, name
    assert_equal(found, expected, rtol=1e-6, atol=1e-7)


def test_equal_models_have_no_deviation(inputs: Inputs) -> None:
    dense, _, logits, _ = inputs
    subset = torch.tensor([4, 8, 1])
    found = deviations(dense, dense.clone(), logits, logits.clone(), subset=subset)
    for name, value in found.items():
        expected = 1.0 if name.endswith(ONE_WHERE_EQUAL) else 0.0
        assert (value == expected).all(), name


def test_another_model_moves_every_quantity(make_logits) -> None:
    inputs = (*make_logits((40, 16), seed=1), *make_logits((40, 300)))
    found = deviations(*inputs, subset=torch.arange(0, 300, 7))
    for name, value in found.items():
        equal = 1.0 if name.endswith(ONE_WHERE_EQUAL) else 0.0
        assert abs(value.mean() - equal) > 1e-3, name


@pytest.mark.parametrize("size", [2, 4, 20])
def test_subset_is_the_comparison_of_its_columns(inputs: Inputs, size: int) -> None:
    subset = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:size]
    found = deviations(*inputs, temperature=0.5, subset=subset)
    columns = deviations(*inputs[:2], *(x[..., subset] for x in inputs[2:]), temperature=0.5)
    inside = {k.removeprefix("subspace_"): v for k, v in found.items() if "subspace_" in k}
    assert set(inside) == set(OF_LOGITS)
    assert_equal(inside, {name: columns[name] for name in inside})
    whole = deviations(*inputs, temperature=0.5)
    assert_equal({name: found[name] for name in whole}, whole)
    if size <= 5:
        assert (inside["top5_overlap"] == 1).all()


@pytest.mark.parametrize("rows", [1, 3, 14])
def test_the_size_of_a_chunk_does_not_matter(inputs: Inputs, monkeypatch, rows: int) -> None:
    whole = deviations(*inputs, subset=torch.arange(5))
    monkeypatch.setattr(buffers, "_CPU_ENTRIES", 300 * rows)
    assert_equal(deviations(*inputs, subset=torch.arange(5)), whole, rtol=1e-6, atol=1e-7)


class Allocations(TorchDispatchMode):
    """Sizes in bytes of the tensors that operations create, without views and `out` arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        given = {
            x.untyped_storage().data_ptr()
            for x in (*args, *(kwargs or {}).values())
            if isinstance(x, Tensor)
        }
        for tensor in made if isinstance(made, list | tuple) else [made]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in given:
                self.sizes.append(tensor.untyped_storage().nbytes())
        return made


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_memory_does_not_grow_with_the_tokens(make_logits, monkeypatch, temperature: float) -> None:
    chunk = 4 * 3000
    monkeypatch.setattr(buffers, "_CPU_ENTRIES", chunk)
    inputs = (*make_logits((50, 16)), *make_logits((50, 3000)))
    memory = Buffers()
    for first in (True, False):
        with Allocations() as made:
            deviations(*inputs, temperature=temperature, buffers=memory)
        large = [size for size in made.sizes if size >= 8 * chunk]
        assert max(large, default=0) <= 2 * 8 * chunk  # four intermediates of half a chunk in one
        assert sum(large) <= 15 * 8 * chunk * first  # each buffer once


def test_buffers_may_be_used_again(inputs: Inputs) -> None:
    memory = Buffers()
    first = deviations(*inputs, buffers=memory)
    kept = {name: value.clone() for name, value in first.items()}
    swapped = deviations(inputs[1], inputs[0], inputs[3], inputs[2], buffers=memory)
    assert_equal(first, kept)
    assert_equal(swapped, deviations(inputs[1], inputs[0], inputs[3], inputs[2]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_narrow_types_are_compared_in_float64(inputs: Inputs, dtype: torch.dtype) -> None:
    low = [x.to(dtype) for x in inputs]
    assert_equal(deviations(*low), deviations(*(x.double() for x in low)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("step", [1e-8, 1e-7, 1e-6, 1e-4])
def test_models_that_differ_by_rounding_have_the_true_deviations(
    step: float, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    dense = 4 * torch.randn(3, 5000, generator=generator) + 10
    noise = step * torch.randn(3, 5000, dtype=torch.float64, generator=generator)
    pruned = dense.double() * (1 + noise)
    pruned = pruned if step < 1e-7 else pruned.float()  # a step below the rounding of float32
    found = deviations(dense, pruned, dense, pruned, temperature=temperature)
    z, z_pruned = (x.double().numpy().astype(np.longdouble) for x in (dense, pruned))
    p, q = (np.exp((x - x.max(-1, keepdims=True)) / temperature) for x in (z, z_pruned))
    p, q = (x / x.sum(-1, keepdims=True) for x in (p, q))
    m = (p + q) / 2
    expected = {
        "kl_dense_pruned": (p * np.log(p / q)).sum(-1),
        "kl_pruned_dense": (q * np.log(q / p)).sum(-1),
        "js": ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)) / 2,
        "logit_mse": ((z_pruned - z) ** 2).mean(-1),
    }
    assert 1e-17 < expected["kl_dense_pruned"].max() < 1e-5
    for name, value in expected.items():
        # The reference itself has 1e-19 of rounding in its sums.
        np.testing.assert_allclose(
            found[name].numpy(), value.astype(float), rtol=1e-4, atol=1e-18, err_msg=name
        )
    cosines = {
        "probability_cosine": (p * q).sum(-1) / np.sqrt((p * p).sum(-1) * (q * q).sum(-1)),
        "logit_cosine": (z * z_pruned).sum(-1) / np.sqrt((z**2).sum(-1) * (z_pruned**2).sum(-1)),
    }
    cosines["embedding_cosine"] = cosines["logit_cosine"]
    for name, value in cosines.items():
        assert (found[name] <= 1).all(), name
        np.testing.assert_allclose(found[name].numpy(), value.astype(float), atol=5e-16, rtol=0)


def test_a_cosine_is_never_above_1() -> None:
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0, 1e3):
        dense = scale * torch.randn(200, 64, generator=generator)
        for pruned in (dense.clone(), 0.05 * dense, dense.nextafter(torch.tensor(9e9)), -dense):
            found = deviations(dense, pruned, dense, pruned)
            for space in ("embedding", "logit", "probability"):
                assert found[f"{space}_cosine"].abs().max() <= 1, (space, scale)


def test_a_vocabulary_that_both_models_mask_in_part_is_a_smaller_one(inputs: Inputs) -> None:
    h, g, z, y = inputs
    smaller = deviations(h, g, z[..., 20:], y[..., 20:])
    z[..., :20] = y[..., :20] = -math.inf
    assert_equal(deviations(h, g, z, y), smaller, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_token_masked_by_one_model_gives_inf_and_never_nan(
    inputs: Inputs, temperature: float
) -> None:
    h, g, z, y = inputs
    y[0, :, 3] = -math.inf
    z[1, :, 4] = -math.inf
    found = deviations(h, g, z, y, temperature=temperature)
    assert not any(value.isnan().any() for value in found.values())
    infinite = {name for name, value in found.items() if value.isinf().any()}
    kls = {"kl_dense_pruned", "kl_pruned_dense"}
    estimates = {f"{name}_estimate" for name in (*kls, "probability_cosine")}
    assert infinite == kls | estimates | {"logit_std_p"}
    assert found["kl_dense_pruned"].isinf().all(1).tolist() == [True, False]
    assert found["kl_pruned_dense"].isinf().all(1).tolist() == [False, True]


def test_autocast_changes_nothing(inputs: Inputs) -> None:
    plain = deviations(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_equal(deviations(*inputs), plain)


def test_one_token_and_none(inputs: Inputs) -> None:
    whole = deviations(*inputs)
    one = deviations(*(x[1, 2] for x in inputs))
    assert_equal(one, {name: value[1, 2] for name, value in whole.items()}, rtol=1e-6, atol=1e-7)
    none = deviations(*(x[:, :0] for x in inputs), subset=torch.arange(5))
    assert {tuple(value.shape) for value in none.values()} == {(2, 0)}


def test_keeps_no_graph(inputs: Inputs) -> None:
    found = deviations(*(x.requires_grad_() for x in inputs))
    assert not any(value.requires_grad for value in found.values())


def test_inputs_are_left_alone(inputs: Inputs) -> None:
    copies = [x.clone() for x in inputs]
    deviations(*inputs, temperature=0.5, subset=torch.arange(5))
    for x, copy in zip(inputs, copies, strict=True):
        assert torch.equal(x, copy)


def test_bad_input(inputs: Inputs) -> None:
    h, g, z, y = inputs
    with pytest.raises(InputError, match=r"of the same tokens but got logits of \(2, 7\) tokens"):
        deviations(h[:1], g[:1], z, y)
    with pytest.raises(InputError, match="one shape"):
        deviations(h, g[..., :-1], z, y)
    with pytest.raises(InputError, match="one shape"):
        deviations(h, g, z, y[..., :-1])
    with pytest.raises(InputError, match="one shape"):
        deviations(h, g, z, y.reshape(7, 2, 300))
    with pytest.raises(InputError, match="Expected `temperature` above 0"):
        deviations(*inputs, temperature=0)
    with pytest.raises(InputError, match=r"token ids in \[0, 300\)"):
        deviations(*inputs, subset=torch.tensor([300]))
