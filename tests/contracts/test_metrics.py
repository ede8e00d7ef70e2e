"""Properties that every metric of `prunelit.metrics` must have, wherever its file lies."""

import inspect
import math

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_sum

import prunelit.metrics

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


def test_metrics_of_subfolders_are_found() -> None:
    assert "prunelit.metrics.spaces.embedding" in {metric.__module__ for metric in METRICS}


@pytest.mark.parametrize("name", prunelit.metrics.__all__)
def test_every_public_name_has_an_example(name: str) -> None:
    example = (inspect.getdoc(getattr(prunelit.metrics, name)) or "").partition("Example:")[2]
    used = [line for line in example.splitlines() if "import" not in line]
    assert any(name in line for line in used)


@every_metric
def test_is_public_and_documented(metric_class: type[Metric]) -> None:
    assert metric_class.__name__ in prunelit.metrics.__all__
    assert getattr(prunelit.metrics, metric_class.__name__) is metric_class
    for section in ("Formula:", "Source:", "Args:", "Example:"):
        assert section in (metric_class.__doc__ or "")


@every_metric
def test_says_how_to_read_it(metric_class: type[Metric]) -> None:
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
