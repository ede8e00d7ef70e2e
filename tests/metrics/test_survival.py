"""Survival of rollouts: the coupling, the Kaplan-Meier curve and its forecast."""

import math

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor

from prunelit.errors import InputError
from prunelit.metrics.survival import forecast_survival, kaplan_meier, keep_probability


def logits(rows: int, size: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    dense = 2 * torch.randn(rows, size, generator=generator)
    return dense, dense + spread * torch.randn(rows, size, generator=generator)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.0])
def test_keep_probability_is_the_share_of_shared_noise_that_keeps_the_token(
    temperature: float,
) -> None:
    (z,), (y,) = (x / 2 for x in logits(1, 6, spread=2))
    rng = np.random.default_rng(0)
    noise = rng.gumbel(size=(400_000, 6))
    dense = (z.numpy() / temperature + noise).argmax(1)
    pruned = (y.numpy() / temperature + noise).argmax(1)
    found = keep_probability(z.expand(6, 6), y.expand(6, 6), torch.arange(6), temperature)
    assert found.dtype == torch.float64
    for token in range(6):
        chosen = dense == token
        share, n = (pruned[chosen] == token).mean(), chosen.sum()
        assert n > 1000
        assert share == pytest.approx(found[token].item(), abs=4 * 0.5 / math.sqrt(n))
    # It varies, and differs from the pruned model's own probability.
    assert found.max() - found.min() > 0.1
    own = softmax(y.double().numpy() / temperature)
    assert np.abs(found.numpy() - own).max() > 0.1


def test_keep_probability_against_its_definition() -> None:
    z, y = logits(9, 700)
    tokens = torch.arange(9) * 70
    found = keep_probability(z, y, tokens, 0.8)
    p, q = (softmax(x.double().numpy() / 0.8, -1) for x in (z, y))
    for row, token in enumerate(tokens.tolist()):
        both = 1 / np.maximum(p[row] / p[row, token], q[row] / q[row, token]).sum()
        assert found[row].item() == pytest.approx(both / p[row, token], rel=1e-5)


def test_equal_logits_keep_every_token_exactly() -> None:
    z, _ = logits(50, 1000)
    tokens = torch.arange(50)
    assert (keep_probability(z, z.clone(), tokens, 0.7) == 1).all()
    # A shift of all logits changes the distribution only by rounding.
    shifted = keep_probability(z, z + 3, tokens, 0.7)
    assert (shifted <= 1).all()
    torch.testing.assert_close(shifted, torch.ones(50).double(), rtol=0, atol=1e-5)


def test_logits_are_taken_a_few_rows_at_a_time_without_a_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    z, y = logits(10, 40)
    tokens = torch.arange(10)
    whole = keep_probability(z, y, tokens)
    monkeypatch.setattr("prunelit.metrics.survival.rows_per_chunk", lambda _: 3)
    assert torch.equal(keep_probability(z, y, tokens), whole)


def test_a_token_that_the_pruned_model_excludes_is_never_kept() -> None:
    z, y = logits(2, 20)
    y[:, 4] = y[:, 5] = -math.inf
    z[:, 5] = -math.inf
    found = keep_probability(z, y, torch.tensor([4, 7]))
    assert found[0] == 0
    # Token 5 is absent for both, token 4 only for the pruned model.
    p, q = (softmax(x.double().numpy(), -1)[1] for x in (z, y))
    assert found[1].item() == pytest.approx(1 / np.maximum(p, q * p[7] / q[7]).sum(), rel=1e-5)


def test_bad_logits_and_temperatures_are_refused() -> None:
    z, y = logits(2, 20)
    with pytest.raises(InputError, match="Expected `temperature` above 0 but got 0"):
        keep_probability(z, y, torch.tensor([1, 2]), 0)
    with pytest.raises(InputError, match="Expected"):
        keep_probability(z, y[:, :5], torch.tensor([1, 2]))


def by_counting(last: list[int], diverged: list[bool], steps: int) -> list[float]:
    """The Kaplan-Meier estimate from its definition."""
    survival, curve = 1.0, []
    for step in range(steps):
        at_risk = sum(at >= step for at in last)
        events = sum(at == step and d for at, d in zip(last, diverged, strict=True))
        survival *= 1 - (events / at_risk if at_risk else 0)
        curve.append(survival)
    return curve


def test_kaplan_meier_by_hand() -> None:
    # Six prompts: diverged at 0, 1, 3; ended undiverged after steps 1, 5, 5.
    last, diverged = [0, 1, 1, 3, 5, 5], [True, True, False, True, False, False]
    found = kaplan_meier(np.array(last), np.array(diverged), 7)
    expected = [5 / 6, 4 / 6, 4 / 6, 4 / 9, 4 / 9, 4 / 9, 4 / 9]
    np.testing.assert_allclose(found.survival, expected, rtol=1e-12)
    assert found.at_risk.tolist() == [6, 5, 3, 3, 2, 2, 0]
    assert found.restricted_mean == pytest.approx(sum(expected))
    assert found.median == 3
    # Greenwood's variance, on the scale of log(-log S).
    terms = np.cumsum([1 / (6 * 5), 1 / (5 * 4), 0, 1 / (3 * 2), 0, 0, 0])
    s = np.array(expected)
    width = 1.959963984540054 * np.sqrt(terms) / np.abs(np.log(s))
    np.testing.assert_allclose(found.low, s ** np.exp(width), rtol=1e-9)
    np.testing.assert_allclose(found.high, s ** np.exp(-width), rtol=1e-9)


def test_kaplan_meier_against_counting() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        last = rng.integers(0, 12, size=30)
        diverged = rng.random(30) < 0.5
        found = kaplan_meier(last, diverged, 14)
        np.testing.assert_allclose(
            found.survival, by_counting(last.tolist(), diverged.tolist(), 14), atol=1e-12
        )


def test_rollouts_that_never_diverge_and_that_all_do() -> None:
    never = kaplan_meier(np.array([4, 4, 2]), np.zeros(3, dtype=bool), 5)
    assert never.survival.tolist() == [1] * 5
    assert math.isnan(never.median)
    assert never.restricted_mean == 5
    assert np.isnan(never.low).all()
    at_once = kaplan_meier(np.zeros(3), np.ones(3, dtype=bool), 5)
    assert at_once.survival.tolist() == [0] * 5
    assert at_once.median == 0
    assert at_once.restricted_mean == 0
    assert at_once.at_risk.tolist() == [3, 0, 0, 0, 0]


@pytest.mark.parametrize("last", [[], [-1, 2], [1, 5]])
def test_steps_outside_the_budget_are_refused(last: list[int]) -> None:
    with pytest.raises(InputError, match=r"at least one prompt and steps in \[0, 5\)"):
        kaplan_meier(np.array(last, dtype=int), np.ones(len(last), dtype=bool), 5)


def random_keep(rng: np.random.Generator, n: int, steps: int) -> np.ndarray:
    """Probabilities with NaN after a random end of each row."""
    keep = rng.beta(6, 1, size=(n, steps))
    lengths = rng.integers(1, steps + 1, size=n)
    keep[np.arange(steps) >= lengths[:, None]] = np.nan
    return keep


def test_forecast_of_certain_steps_is_kaplan_meier() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        keep = random_keep(rng, 25, 10)
        keep = np.where(np.isnan(keep), np.nan, (keep > 0.7).astype(float))
        there = ~np.isnan(keep)
        diverged = (keep == 0).any(1)
        last = np.where(diverged, (keep == 0).argmax(1), there.sum(1) - 1)
        observed, predicted = kaplan_meier(last, diverged, 10), forecast_survival(keep)
        np.testing.assert_allclose(predicted.survival, observed.survival, atol=1e-12)
        np.testing.assert_allclose(predicted.at_risk, observed.at_risk, atol=1e-12)
        assert diverged.any()
        assert not diverged.all()


def test_forecast_by_hand() -> None:
    keep = np.array([[0.9, 0.5, 0.8], [0.6, math.nan, math.nan], [1.0, 0.2, math.nan]])
    found = forecast_survival(keep)
    # Of 3 prompts 0.1 + 0.4 + 0 diverge at step 0; then the first and the third are at risk.
    first = 1 - 0.5 / 3
    second = first * (1 - (0.9 * 0.5 + 1 * 0.8) / 1.9)
    third = second * 0.8
    np.testing.assert_allclose(found.survival, [first, second, third], rtol=1e-12)
    np.testing.assert_allclose(found.at_risk, [3, 1.9, 0.45], rtol=1e-12)
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_forecast_of_one_length_is_the_mean_product_of_probabilities() -> None:
    keep = np.random.default_rng(4).random((40, 8))
    np.testing.assert_allclose(
        forecast_survival(keep).survival, np.cumprod(keep, 1).mean(0), rtol=1e-12
    )


def test_forecast_is_what_kaplan_meier_finds_in_many_rollouts() -> None:
    rng = np.random.default_rng(5)
    keep = random_keep(rng, 30, 9)
    many = np.repeat(keep, 2000, 0)
    there = ~np.isnan(many)
    differs = there & (rng.random(many.shape) > np.where(there, many, 1))
    diverged = differs.any(1)
    last = np.where(diverged, differs.argmax(1), there.sum(1) - 1)
    observed, predicted = kaplan_meier(last, diverged, 9), forecast_survival(keep)
    np.testing.assert_allclose(predicted.survival, observed.survival, atol=0.01)
    # It would be far off if ended rollouts stayed in the denominator.
    ignoring = np.nancumprod(np.where(there, many, 1), 1).mean(0)
    assert np.abs(ignoring - observed.survival).max() > 0.03


def test_log_softmax_of_large_logits_does_not_overflow() -> None:
    z = torch.tensor([[80.0, 0.0, -80.0]])
    y = torch.tensor([[-80.0, 0.0, 80.0]])
    found = keep_probability(z, y, torch.tensor([0]))
    p, q = (log_softmax(x.double().numpy(), -1)[0] for x in (z, y))
    expected = 1 / np.exp(np.maximum(p, q + p[0] - q[0])).sum()
    assert found.item() == pytest.approx(expected, abs=1e-12)
