from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from prunelit.activations import Gram, Moments, SquaredNorm, Statistic, StatisticPair


def oracle(x: torch.Tensor) -> np.ndarray:
    return (x.double().numpy() ** 2).mean(0)


@pytest.fixture
def x() -> torch.Tensor:
    """(50, 7) activations over ten orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 7, generator=generator) * 10.0 ** torch.arange(-5, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_is_the_mean_square_of_each_channel(x: torch.Tensor, dtype: torch.dtype) -> None:
    x = x.to(dtype)
    statistic = SquaredNorm(7)
    statistic.update(x)
    assert statistic.value.dtype == torch.float32
    np.testing.assert_allclose(statistic.value.numpy(), oracle(x), rtol=1e-6)


def test_batches_of_any_size_give_the_same_value(x: torch.Tensor) -> None:
    values = []
    for size in (1, 3, 50):
        statistic = SquaredNorm(7)
        for piece in x.split(size):
            statistic.update(piece)
        values.append(statistic.value)
    np.testing.assert_allclose(values[0].numpy(), oracle(x), rtol=1e-6)
    torch.testing.assert_close(values[0], values[1], rtol=1e-7, atol=0)
    torch.testing.assert_close(values[0], values[2], rtol=1e-7, atol=0)


def test_many_tokens_do_not_drown_the_next_ones() -> None:
    statistic = SquaredNorm(1)
    # A float32 sum stops growing at 2 ** 24.
    statistic.update(torch.full((1, 1), 2.0**15))
    for _ in range(1000):
        statistic.update(torch.ones(1, 1))
    assert statistic.value.item() == pytest.approx((2.0**30 + 1000) / 1001, rel=2e-7)


def test_empty_update_counts_no_token(x: torch.Tensor) -> None:
    statistic = SquaredNorm(7)
    statistic.update(x)
    before = statistic.value
    statistic.update(x[:0])
    assert torch.equal(statistic.value, before)


def test_no_token_at_all() -> None:
    with pytest.raises(ValueError, match="at least one calibration token but got none"):
        _ = SquaredNorm(3).value


def test_all_reduce_leaves_a_single_process_alone(x: torch.Tensor, tmp_path: Path) -> None:
    statistic = SquaredNorm(7)
    statistic.update(x)
    before = statistic.value
    statistic.all_reduce_()
    assert torch.equal(statistic.value, before)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        statistic.all_reduce_()
    finally:
        dist.destroy_process_group()
    assert torch.equal(statistic.value, before)


def test_moments_are_mean_and_variance_whatever_the_batches(x: torch.Tensor) -> None:
    x = x + 1000  # far from 0
    statistic = Moments(7)
    for piece in x.split(3):
        statistic.update(piece)
    mean, variance = statistic.value.numpy()
    np.testing.assert_allclose(mean, x.double().numpy().mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.double().numpy().var(0), rtol=1e-4, atol=1e-8)
    some = torch.arange(7) % 2 == 0
    assert statistic.select(some).value.equal(statistic.value[:, some])
    with pytest.raises(ValueError, match="at least one calibration token but got none"):
        _ = Moments(3).value


def test_gram_is_the_mean_outer_product_whatever_the_batches() -> None:
    x = torch.randn(70, 300, generator=torch.Generator().manual_seed(0))
    gram = Gram(300)
    for piece in x.split(13):
        gram.update(piece)
    expected = x.double().T @ x.double() / 70
    torch.testing.assert_close(gram.value.double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(gram.value, gram.value.T)
    norm = SquaredNorm(300)
    norm.update(x)
    torch.testing.assert_close(gram.value.diagonal(), norm.value)
    with pytest.raises(ValueError, match="at least one calibration token"):
        _ = Gram(3).value


@pytest.mark.parametrize("statistic", [
    lambda: SquaredNorm(3), lambda: Gram(3), lambda: Moments(3),
    lambda: StatisticPair(Gram(3), SquaredNorm(3)),
])  # fmt: skip
def test_added_statistics_are_those_of_all_tokens(statistic: Callable[[], Statistic]) -> None:
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    whole, first, second = statistic(), statistic(), statistic()
    whole.update(x)
    first.update(x[:2])
    second.update(x[2:])
    first.add_(second)
    torch.testing.assert_close(first.value, whole.value)
