"""Every metric keeps the contract of the three spaces."""

import math

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_sum

from .walk import classes

METRICS = classes("metrics", Metric)

every_metric = pytest.mark.parametrize("metric_class", METRICS, ids=lambda metric: metric.__name__)

Logits = tuple[Tensor, Tensor]


@pytest.fixture
def logits() -> Logits:
    """(2, 20, 50): enough tokens that some top tokens differ."""
    generator = torch.Generator().manual_seed(0)
    dense = 3 * torch.randn(2, 20, 50, generator=generator)
    return dense, dense + torch.randn(2, 20, 50, generator=generator)


def value(metric: Metric, *arguments: Tensor) -> Tensor:
    metric.update(*arguments)
    return metric.compute()


def test_there_are_metrics_to_check() -> None:
    assert METRICS


@every_metric
def test_direction_and_derivative_are_stated(metric_class: type[Metric]) -> None:
    assert metric_class.full_state_update is False
    assert isinstance(metric_class.higher_is_better, bool)
    assert isinstance(metric_class.is_differentiable, bool)


@every_metric
def test_states_are_float64_sums(metric_class: type[Metric]) -> None:
    metric = metric_class()
    for cast in (metric, metric.to(torch.bfloat16), metric.half()):
        assert cast.metric_state
        for state in cast.metric_state.values():
            assert isinstance(state, Tensor)
            assert state.dtype == torch.float64
    assert set(metric._reductions.values()) == {dim_zero_sum}


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_null(metric_class: type[Metric], logits: Logits, dtype: torch.dtype) -> None:
    dense = logits[0].to(dtype)
    best = 1 if metric_class.higher_is_better else 0
    assert value(metric_class(), dense, dense.clone()).item() == pytest.approx(best, abs=1e-6)


@every_metric
def test_change(metric_class: type[Metric], logits: Logits) -> None:
    found = value(metric_class(), *logits).item()
    assert found < 0.99 if metric_class.higher_is_better else found > 0.01


@every_metric
def test_padding_enters_nothing(metric_class: type[Metric], logits: Logits) -> None:
    dense, pruned = logits
    mask = torch.arange(20) >= torch.tensor([[3], [0]])
    expected = value(metric_class(), dense[mask], pruned[mask])
    dense[~mask] = math.nan
    pruned[~mask] = math.nan
    torch.testing.assert_close(value(metric_class(), dense, pruned, mask), expected)


@every_metric
def test_batches_add_up(metric_class: type[Metric], logits: Logits) -> None:
    dense, pruned = logits
    metric = metric_class()
    for tokens in (slice(0, 3), slice(3, 20)):
        metric.update(dense[:, tokens], pruned[:, tokens])
    torch.testing.assert_close(metric.compute(), value(metric_class(), dense, pruned))


@every_metric
def test_gradient_flows_where_the_metric_says_so(
    metric_class: type[Metric], logits: Logits
) -> None:
    dense, pruned = logits
    pruned.requires_grad_()
    batch = metric_class()(dense, pruned)
    assert batch.requires_grad == metric_class.is_differentiable
    if metric_class.is_differentiable:
        (gradient,) = torch.autograd.grad(batch, pruned)
        assert gradient.isfinite().all()
        assert (gradient != 0).any(-1).all()
