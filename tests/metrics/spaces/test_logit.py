import math

import numpy as np
import pytest
import scipy.spatial.distance
import scipy.special
import torch

from prunelit.metrics.spaces.logit import (
    LogitCosine,
    LogitMSE,
    logit_cosine,
    logit_mse,
    logit_orthogonal,
    logit_parallel,
    logit_std,
    logit_std_p,
    logit_std_top,
)
from prunelit.metrics.spaces.logit_pair import LogitPair

SHAPES = pytest.mark.parametrize("shape", [(300,), (4, 300), (2, 3, 300), (4, 30_000)])


@SHAPES
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_against_numpy_and_scipy(make_logits, shape: tuple[int, ...], temperature: float) -> None:
    dense, pruned = make_logits(shape)
    pair = LogitPair(dense, pruned, temperature)
    z, y = (x.double().numpy().reshape(-1, shape[-1]) for x in (dense, pruned))
    d = y - z
    cosine = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(z, y, strict=True)]
    norm = np.linalg.norm(z, axis=-1)
    along = (z * d).sum(-1) / norm
    top = np.argsort(-z, axis=-1)
    p = scipy.special.softmax(z / temperature, -1)
    mean = (p * d).sum(-1, keepdims=True)
    expected = {
        logit_cosine: cosine,
        logit_mse: (d**2).mean(-1),
        logit_parallel: np.abs(along) / norm,
        logit_orthogonal: np.sqrt((d**2).sum(-1) - along**2) / norm,
        logit_std: d.std(-1),
        logit_std_p: np.sqrt((p * (d - mean) ** 2).sum(-1)),
        lambda pair: logit_std_top(pair, 5): np.take_along_axis(d, top[:, :5], -1).std(-1),
        lambda pair: logit_std_top(pair, 10): np.take_along_axis(d, top[:, :10], -1).std(-1),
    }
    for function, value in expected.items():
        found = function(pair)
        assert found.dtype == torch.float64
        assert found.shape == shape[:-1]
        np.testing.assert_allclose(found.reshape(-1).numpy(), value, rtol=1e-5, atol=1e-7)


def test_equal_logits_do_not_differ(make_logits) -> None:
    dense, _ = make_logits()
    pair = LogitPair(dense, dense.clone())
    assert (logit_cosine(pair) == 1).all()
    for function in (logit_mse, logit_parallel, logit_orthogonal, logit_std, logit_std_p):
        assert (function(pair) == 0).all()
    assert (logit_std_top(pair, 5) == 0).all()


def test_a_common_shift_has_no_spread(make_logits) -> None:
    dense, _ = make_logits()
    pair = LogitPair(dense, dense + 2)
    torch.testing.assert_close(logit_mse(pair), torch.full((3, 5), 4.0).double())
    assert (logit_std(pair) < 2e-3).all()
    assert (logit_std_top(pair, 10) < 1e-6).all()
    assert (logit_cosine(pair) < 0.99).all()


def test_excluded_tokens_are_left_out(make_logits) -> None:
    dense, pruned = make_logits((4, 30), dtype=torch.float64)
    kept = LogitPair(dense[:, 3:].clone(), pruned[:, 3:].clone())
    dense[:, [0, 1]] = -math.inf
    pruned[:, [0, 2]] = -math.inf
    pair = LogitPair(dense, pruned)
    for function in (logit_cosine, logit_mse, logit_parallel, logit_orthogonal, logit_std):
        torch.testing.assert_close(function(pair), function(kept))


def test_top_tokens_that_the_pruned_model_excludes_have_no_spread(make_logits) -> None:
    dense, pruned = make_logits((2, 30), dtype=torch.float64)
    top = dense.topk(5).indices
    pruned[0, top[0, :2]] = -math.inf
    found = logit_std_top(LogitPair(dense, pruned), 5)
    d = (pruned - dense).numpy()
    expected = [d[0, top[0, 2:]].std(), d[1, top[1]].std()]
    np.testing.assert_allclose(found.numpy(), expected)


def test_metrics_are_means_over_tokens(make_logits) -> None:
    dense, pruned = make_logits()
    for metric, function in ((LogitMSE(), logit_mse), (LogitCosine(), logit_cosine)):
        metric.update(dense, pruned)
        torch.testing.assert_close(metric.compute(), function(LogitPair(dense, pruned)).mean())
