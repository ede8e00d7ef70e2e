"""The sums of a `QuickPair` have the digits of a `LogitPair`, or it says that they have not."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelit.metrics import deviations
from prunelit.metrics.spaces import buffers
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.deviation import logit_deviations
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.probability import log_probability
from prunelit.metrics.spaces.quick_pair import QuickPair


def exact(dense: Tensor, pruned: Tensor, temperature: float = 1.0) -> list[bool]:
    return QuickPair(dense, pruned, temperature, Buffers()).exact.tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(7, 300), (5, 12), (3, 9000)])  # the last by BLAS
def test_every_quantity_is_that_of_a_logit_pair(
    make_logits, shape: tuple[int, int], dtype: torch.dtype, temperature: float
) -> None:
    dense, pruned = make_logits(shape, dtype=dtype)
    quick = QuickPair(dense, pruned, temperature, Buffers())
    assert quick.exact.all()
    found = logit_deviations(quick)
    expected = logit_deviations(LogitPair(dense, pruned, temperature))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("shift", [0.0, 40.0])
@pytest.mark.parametrize("size", [1e-3, 6e-3, 5e-2])
def test_nine_digits_where_exact(size: float, shift: float) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 200, 400, dtype=torch.float64, generator=generator)
    dense = (3 * noise[0]).float()
    pruned = (dense.double() + size * noise[1] + shift).float()
    quick = QuickPair(dense, pruned, 1.0, Buffers())
    z, y = (x.double().numpy().astype(np.longdouble) for x in (dense, pruned))
    log_p, log_q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (z, y))
    p, u = np.exp(log_p), log_q - log_p
    half = np.log1p(np.expm1(u) / 2)  # log m / p
    expected = {
        "kl_dense_pruned": (p * (np.expm1(u) - u)).sum(-1),
        "js": (p * (np.exp(u) * (u - half) - half)).sum(-1) / 2,
    }
    chosen = quick.exact.numpy()
    assert chosen.any() == (expected["kl_dense_pruned"].max() > 1e-5 * (1 + shift))
    found = logit_deviations(quick)
    for name, value in expected.items():
        np.testing.assert_allclose(
            found[name].numpy()[chosen], value.astype(float)[chosen], rtol=1e-9, err_msg=name
        )


def test_what_is_not_exact(make_logits) -> None:
    dense, pruned = make_logits((9, 300))
    pruned[1] = dense[1] + 1e-4 * pruned[1]  # nearly equal
    dense[2, 3] = -math.inf
    pruned[3, 3] = -math.inf
    dense[4, 3] = pruned[4, 3] = -math.inf
    dense[5, 3] -= 700
    pruned[6] = 1e-3 * dense[6]  # a short vector
    pruned[7, 3] = math.nan
    pruned[8] = dense[8]
    assert exact(dense, pruned) == [True, *[False] * 7, True]


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_tokens_of_both_kinds_in_one_call(make_logits, monkeypatch, rows: int) -> None:
    monkeypatch.setattr(buffers, "_CPU_ENTRIES", 300 * rows)
    dense, pruned = make_logits((8, 300))
    pruned[::2] = dense[::2] * (1 + 1e-6)
    pruned[3, 5] = -math.inf
    assert exact(dense, pruned) == [False, True, False, False, False, True, False, True]
    found = deviations(None, None, dense, pruned)
    expected = logit_deviations(LogitPair(dense, pruned))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_are_those_of_each_model_alone(make_logits, temperature: float) -> None:
    dense, pruned = make_logits((3, 4, 300))
    pruned[0, 0, 7] = -math.inf
    targets = torch.arange(7, 19).view(3, 4)
    found = deviations(None, None, dense, pruned, temperature=temperature, targets=targets)
    for name, logits in (("dense", dense), ("pruned", pruned)):
        alone = log_probability(logits.view(12, 300), targets.view(12, 1), temperature)
        assert torch.equal(found[f"{name}_log_probability"], alone.view(3, 4))
    assert found["pruned_log_probability"][0, 0] == -math.inf


def test_float64_logits_are_left_alone(make_logits) -> None:
    dense, pruned = make_logits((3, 300), dtype=torch.float64)
    copies = dense.clone(), pruned.clone()
    deviations(None, None, dense, pruned, temperature=0.5, targets=torch.arange(3))
    assert torch.equal(dense, copies[0])
    assert torch.equal(pruned, copies[1])
