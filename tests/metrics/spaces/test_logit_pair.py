import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics.spaces.buffers import Buffers
from prunelit.metrics.spaces.logit_pair import LogitPair


def log_softmax(logits: Tensor, temperature: float = 1.0) -> np.ndarray:
    z = logits.double().numpy() / temperature
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("shape", [(300,), (4, 300), (2, 3, 300), (4, 30_000)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_ratio_and_probabilities(make_logits, shape, temperature: float) -> None:
    dense, pruned = make_logits(shape)
    pair = LogitPair(dense, pruned, temperature)
    log_p, log_q = log_softmax(dense, temperature), log_softmax(pruned, temperature)
    np.testing.assert_allclose(pair.log_ratio.numpy(), log_q - log_p, rtol=0, atol=2e-5)
    np.testing.assert_allclose(pair.dense_probability.numpy(), np.exp(log_p), rtol=1e-4, atol=0)
    np.testing.assert_allclose(pair.pruned_probability.numpy(), np.exp(log_q), rtol=1e-4, atol=0)
    np.testing.assert_allclose(
        pair.dense_mean.numpy(), (np.exp(log_p) * (log_q - log_p)).sum(-1), rtol=1e-5, atol=2e-6
    )
    np.testing.assert_allclose(
        pair.pruned_mean.numpy(), (np.exp(log_q) * (log_q - log_p)).sum(-1), rtol=1e-5, atol=2e-6
    )


def test_log_ratio_does_not_see_a_common_shift(make_logits) -> None:
    dense, pruned = make_logits(dtype=torch.float64)
    moved = LogitPair(dense, pruned + 100)
    torch.testing.assert_close(moved.log_ratio, LogitPair(dense, pruned).log_ratio)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_log_ratio_of_equal_logits_is_exactly_zero(make_logits, temperature: float) -> None:
    dense, _ = make_logits()
    assert (LogitPair(dense, dense.clone(), temperature).log_ratio == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_everything_is_float64(make_logits, dtype: torch.dtype) -> None:
    pair = LogitPair(*make_logits(dtype=dtype))
    for name in ("log_ratio", "dense_probability", "dense_mean", "log_cosh", "mixture"):
        assert getattr(pair, name).dtype == torch.float64


@pytest.mark.parametrize("size", [1e-12, 1e-6, 0.5, 30, 600, 5e4])
def test_log_cosh_keeps_its_digits(size: float) -> None:
    pair = LogitPair(torch.tensor([50.0, 0.0]), torch.tensor([50.0, size], dtype=torch.float64))
    u = pair.log_ratio.numpy().astype(np.longdouble)
    expected = np.abs(u) / 2 + np.log1p(np.expm1(-np.abs(u)) / 2)
    np.testing.assert_allclose(pair.log_cosh.numpy(), expected.astype(float), rtol=1e-4, atol=0)


def test_intermediates_are_computed_once(make_logits) -> None:
    pair = LogitPair(*make_logits())
    for name in ("log_ratio", "dense_probability", "dense_weighted", "mixture", "dense_top"):
        assert getattr(pair, name) is getattr(pair, name)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_buffers_change_no_value(make_logits, temperature: float) -> None:
    logits = make_logits()
    plain, buffered = (LogitPair(*logits, temperature, b) for b in (None, Buffers()))
    for name in ("log_ratio", "dense_weighted", "pruned_weighted", "mixture", "log_cosh"):
        assert torch.equal(getattr(plain, name), getattr(buffered, name)), name


def test_restrict_is_the_pair_of_the_columns(make_logits) -> None:
    dense, pruned = make_logits()
    ids = torch.tensor([7, 0, 299, 30])
    inside = LogitPair(dense, pruned, 0.5).restrict(ids)
    assert torch.equal(inside.dense, dense[..., ids].double())
    assert torch.equal(inside.pruned, pruned[..., ids].double())
    assert inside.temperature == 0.5
    torch.testing.assert_close(inside.dense_probability.sum(-1), torch.ones(3, 5).double())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[1, 2]]), "as a vector of integers"),
        (torch.tensor([], dtype=torch.int64), "as a vector of integers"),
        (torch.tensor([1.0, 2.0]), "as a vector of integers"),
        (torch.tensor([True, False]), "as a vector of integers"),
        (torch.tensor([0, 300]), r"in \[0, 300\) but got ids from 0 to 300"),
        (torch.tensor([-1, 3]), r"in \[0, 300\) but got ids from -1 to 3"),
        (torch.tensor([4, 2, 4]), "distinct token ids"),
    ],
)
def test_restrict_refuses(make_logits, ids: Tensor, message: str) -> None:
    pair = LogitPair(*make_logits())
    with pytest.raises(InputError, match=message):
        pair.restrict(ids)


def test_top_is_in_order(make_logits) -> None:
    dense, pruned = make_logits()
    tops = LogitPair(dense, pruned).top(5)
    for logits, top in zip((dense, pruned), tops, strict=True):
        np.testing.assert_array_equal(top.numpy(), np.argsort(-logits.numpy(), -1)[..., :5])


@pytest.mark.parametrize("k", [0, 11])
def test_top_refuses_other_sizes(make_logits, k: int) -> None:
    with pytest.raises(InputError, match=rf"`k` in \[1, 10\] but got {k}"):
        LogitPair(*make_logits()).top(k)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_is_positive(make_logits, temperature: float) -> None:
    with pytest.raises(InputError, match="Expected `temperature` above 0"):
        LogitPair(*make_logits(), temperature)


def test_excluded_tokens(make_logits) -> None:
    dense, pruned = make_logits((2, 6))
    assert LogitPair(dense, pruned).excluded is None
    dense[0, [0, 1]] = -math.inf
    pruned[0, [0, 2]] = -math.inf
    pair = LogitPair(dense, pruned)
    assert pair.excluded is not None
    assert pair.excluded.tolist() == [[True] * 3 + [False] * 3, [False] * 6]
    assert pair.size.tolist() == [3, 6]
    assert pair.dense_only is not None
    assert pair.dense_only.tolist() == [True, False]
    assert pair.pruned_only is not None
    assert pair.pruned_only.tolist() == [True, False]
    assert pair.log_ratio[0, :3].tolist() == [0, 50, -50]
    assert pair.log_ratio.isfinite().all()


def test_nan_logits_are_not_taken_for_excluded_ones(make_logits) -> None:
    dense, pruned = make_logits((2, 6))
    pruned[1, 3] = math.nan
    pair = LogitPair(dense, pruned)
    assert pair.excluded is None
    assert pair.dense_mean[0].isfinite()
    assert pair.dense_mean[1].isnan()
