from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from prunelit.metrics.calibration_error import brier_scores, calibration_gaps


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


def test_the_standard_error_is_that_of_many_samples() -> None:
    # Confidence 0.7 or 0.9; half of the questions of each are right.
    generator = torch.Generator().manual_seed(1)
    errors, values = [], []
    for _ in range(400):
        p = torch.tensor([0.7, 0.9], dtype=torch.float64)[
            torch.randint(0, 2, (200,), generator=generator)
        ]
        scores = torch.stack([p, 1 - p], 1).log()
        label = torch.randint(0, 2, (200,), generator=generator)
        gaps = calibration_gaps(scores, label)
        values.append(gaps.mean().item())
        errors.append((gaps.std() / 200**0.5).item())
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.1)
    assert np.mean(values) == pytest.approx(0.3, abs=0.01)


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
