import math

import numpy as np
import pytest
import scipy.special
import torch

from prunelit.errors import InputError
from prunelit.metrics.spaces.estimates import (
    cosine_estimate,
    kl_estimate,
    probability_cosine_estimate,
)
from prunelit.metrics.spaces.logit import logit_std
from prunelit.metrics.spaces.logit_pair import LogitPair
from prunelit.metrics.spaces.probability import kl, probability_cosine


def variance(weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    mean = (weights * x).sum(-1, keepdims=True)
    return (weights * (x - mean) ** 2).sum(-1)


@pytest.mark.parametrize("shape", [(300,), (4, 300), (2, 3, 300), (4, 30_000)])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_formulas(make_logits, shape: tuple[int, ...], temperature: float) -> None:
    dense, pruned = make_logits(shape)
    pair = LogitPair(dense, pruned, temperature)
    z, y = dense.double().numpy(), pruned.double().numpy()
    d = y - z
    p, q = (scipy.special.softmax(x / temperature, axis=-1) for x in (z, y))
    r = p**2 / (p**2).sum(-1, keepdims=True)
    square = (z**2).sum(-1)
    orthogonal = (d**2).sum(-1) - (z * d).sum(-1) ** 2 / square
    scale = 2 * temperature**2
    for found, expected in (
        (cosine_estimate(pair.vectors), 1 - orthogonal / (2 * square)),
        (probability_cosine_estimate(pair), 1 - variance(r, d) / scale),
        (kl_estimate(pair, "dense_pruned"), variance(p, d) / scale),
        (kl_estimate(pair, "pruned_dense"), variance(q, d) / scale),
    ):
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_relative_error_shrinks_with_the_perturbation(make_logits) -> None:
    errors = []
    for step in (0.1, 0.01, 0.001):
        pair = LogitPair(*make_logits((20, 300), step, torch.float64), temperature=0.8)
        exact = {
            "cosine": (1 - pair.vectors.cosine, 1 - cosine_estimate(pair.vectors)),
            "probability": (1 - probability_cosine(pair), 1 - probability_cosine_estimate(pair)),
            "forward": (kl(pair, "dense_pruned"), kl_estimate(pair, "dense_pruned")),
            "backward": (kl(pair, "pruned_dense"), kl_estimate(pair, "pruned_dense")),
        }
        errors.append({k: ((e - t) / e).abs().mean().item() for k, (e, t) in exact.items()})
    for name in errors[0]:
        large, middle, small = (error[name] for error in errors)
        assert large < 0.5, name
        assert middle < large / 5, name
        assert small < middle / 5, name


def test_no_perturbation_no_deviation(make_logits) -> None:
    dense, _ = make_logits()
    pair = LogitPair(dense, dense.clone())
    assert (cosine_estimate(pair.vectors) == 1).all()
    assert (probability_cosine_estimate(pair) == 1).all()
    assert (kl_estimate(pair, "dense_pruned") == 0).all()
    assert (kl_estimate(pair, "pruned_dense") == 0).all()


def test_weights_belong_to_the_first_argument() -> None:
    # dz varies on tokens 0 and 1, which are likely only for the dense model.
    dense = torch.tensor([20.0, 20.0, 0.0, 0.0]).double()
    pruned = torch.tensor([0.0, 1.0, 20.0, 20.0]).double()
    pair = LogitPair(dense, pruned)
    assert kl_estimate(pair, "dense_pruned").item() == pytest.approx(0.5 * 0.25, rel=1e-4)
    assert kl_estimate(pair, "pruned_dense").item() < 1e-4


def test_under_uniform_weights_the_variance_is_the_plain_one(make_logits) -> None:
    dense, pruned = make_logits(dtype=torch.float64)
    change = 0.3 * (pruned - dense)
    flat = LogitPair(torch.zeros_like(change), change)
    torch.testing.assert_close(kl_estimate(flat, "dense_pruned"), logit_std(flat).square() / 2)


def test_a_common_shift_is_no_variance(make_logits) -> None:
    dense, _ = make_logits()
    pair = LogitPair(dense, dense + 8)
    assert (kl_estimate(pair, "dense_pruned") < 1e-9).all()
    assert (kl_estimate(pair, "pruned_dense") < 1e-9).all()
    assert (1 - probability_cosine_estimate(pair) < 1e-9).all()


def test_excluded_tokens(make_logits) -> None:
    dense, pruned = make_logits((3, 40), dtype=torch.float64)
    kept = LogitPair(dense[:, 1:].clone(), pruned[:, 1:].clone())
    dense[:, 0] = pruned[:, 0] = -math.inf
    pair = LogitPair(dense.clone(), pruned.clone())
    torch.testing.assert_close(kl_estimate(pair, "dense_pruned"), kl_estimate(kept, "dense_pruned"))
    pruned[1, 5] = -math.inf
    dense[2, 5] = -math.inf
    pair = LogitPair(dense, pruned)
    assert kl_estimate(pair, "dense_pruned").isinf().tolist() == [False, True, False]
    assert kl_estimate(pair, "pruned_dense").isinf().tolist() == [False, False, True]
    assert probability_cosine_estimate(pair).isinf().tolist() == [False, True, False]


def test_other_directions_are_refused(make_logits) -> None:
    with pytest.raises(InputError, match="Expected `direction`"):
        kl_estimate(LogitPair(*make_logits()), "both")  # type: ignore[arg-type]
