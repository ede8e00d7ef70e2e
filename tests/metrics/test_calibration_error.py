from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from prunelit.metrics.calibration_error import (
    brier_scores,
    calibration_errors,
    calibration_gaps,
    calibration_noise,
)


@pytest.fixture
def scored() -> tuple[Tensor, Tensor]:
    """500 questions; every fifth has three choices, the others four."""
    generator = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(500, 4, generator=generator, dtype=torch.float64) - 20
    scores[::5, 3] = -torch.inf
    label = torch.randint(0, 3, (500,), generator=generator)
    return scores, label


def test_brier_against_its_definition(scored: tuple[Tensor, Tensor]) -> None:
    scores, label = scored
    found = brier_scores(scores, label)
    for row, right, value in zip(scores.numpy(), label.tolist(), found.tolist(), strict=True):
        p = np.exp(row) / np.exp(row).sum()
        assert value == pytest.approx(((p - np.eye(4)[right]) ** 2).sum())


def test_brier_from_sure_and_right_to_sure_and_wrong() -> None:
    scores = torch.tensor([[0.0, -torch.inf], [-1e4, 0.0], [0.0, 0.0]], dtype=torch.float64)
    label = torch.tensor([0, 0, 1])
    assert brier_scores(scores, label).tolist() == pytest.approx([0, 2, 0.5])


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_gaps_average_to_the_calibration_error_of_torchmetrics(
    scored: tuple[Tensor, Tensor], bins: int
) -> None:
    scores, label = scored
    expected = multiclass_calibration_error(
        scores.softmax(1), label, num_classes=4, n_bins=bins, norm="l1"
    )
    found = calibration_gaps(scores, label, bins).mean().item()
    assert found == pytest.approx(float(expected), abs=1e-6)
    assert found > 0.05


def test_sure_and_right_is_calibrated() -> None:
    scores = torch.tensor([[0.0, -torch.inf]] * 3, dtype=torch.float64)
    assert calibration_gaps(scores, torch.tensor([0, 0, 0])).tolist() == [0, 0, 0]
    assert calibration_gaps(scores, torch.tensor([1, 1, 1])).tolist() == [1, 1, 1]


def simulate(
    spread: float, temperature: float, n: int = 216, draws: int = 150
) -> tuple[np.ndarray, np.ndarray, float]:
    """Draw calibration errors of two models, (draws, 3), their standard errors, and the noise.

    The dense model is perfectly calibrated if `temperature` is 1; the other one is related.
    """
    generator = torch.Generator().manual_seed(0)
    found = []
    one = torch.empty(0)
    for _ in range(draws):
        one, other = torch.randn(2, n, 4, generator=generator, dtype=torch.float64) * spread
        scores = {"dense": one, "pruned": 0.8 * one + 0.6 * other}
        chances = (one * temperature).softmax(1)
        label = torch.multinomial(chances, 1, generator=generator)[:, 0]
        found.append(list(calibration_errors(scores, label).values()))
    values, errors = np.moveaxis(np.array(found), 2, 0)
    return values, errors, calibration_noise(one)


@pytest.mark.parametrize(("spread", "temperature"), [(0.7, 1.0), (1.5, 0.6)])
def test_the_standard_errors_are_those_of_many_samples(spread: float, temperature: float) -> None:
    values, errors, _ = simulate(spread, temperature, draws=300)
    assert errors.mean(0) == pytest.approx(values.std(0), rel=0.15)


def test_the_noise_is_the_error_of_a_calibrated_model() -> None:
    values, _, noise = simulate(1.5, 1.0)
    assert noise == pytest.approx(values[:, 0].mean(), rel=0.05)
    values, _, small = simulate(1.5, 1.0, n=50)
    assert small == pytest.approx(values[:, 0].mean(), rel=0.1)
    assert small > 1.8 * noise


def test_values_are_those_of_the_gaps_and_errors_do_not_change(
    scored: tuple[Tensor, Tensor],
) -> None:
    scores, label = scored
    found = calibration_errors({"dense": scores, "pruned": 2 * scores}, label)
    assert found["dense"][0] == pytest.approx(calibration_gaps(scores, label).mean().item())
    assert found["difference"][0] == pytest.approx(found["pruned"][0] - found["dense"][0])
    assert found == calibration_errors({"dense": scores, "pruned": 2 * scores}, label)
    same = calibration_errors({"dense": scores, "pruned": scores}, label)["difference"]
    assert same == pytest.approx((0, 0), abs=1e-6)
    assert np.isnan(calibration_errors({"dense": scores[:1]}, label[:1])["dense"][1])


def test_edges_of_bins_belong_to_the_bin_above() -> None:
    # Two bins: 0.5 belongs to the upper one.
    for first, second in product([0.5, 0.75], [0.5, 0.75]):
        p = torch.tensor([first, second], dtype=torch.float64)
        scores = torch.stack([p, 1 - p], 1).log()
        expected = multiclass_calibration_error(
            scores.softmax(1), torch.tensor([0, 1]), num_classes=2, n_bins=2, norm="l1"
        )
        found = calibration_gaps(scores, torch.tensor([0, 1]), 2).mean().item()
        assert found == pytest.approx(float(expected), abs=1e-6)
