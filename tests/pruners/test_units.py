"""Units are chosen as brute force does, and the others make up for them as least squares says."""

import itertools

import numpy as np
import pytest
import torch

from prunelit.activations import Gram
from prunelit.pruners.units import (
    UnitNorm,
    inverse_gram,
    keep_by_error,
    keep_units,
    scored_value,
    without_columns,
)

DAMPING = 0.01


def make(channels: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight (5, I) and correlated inputs (64, I)."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(channels, channels))
    inputs = random.normal(size=(64, channels)) @ mixing
    weight = random.normal(size=(5, channels))
    return torch.tensor(weight).float(), torch.tensor(inputs).float()


def refit(weight: torch.Tensor, inputs: torch.Tensor, kept: list[int]) -> tuple[np.ndarray, float]:
    """Least squares by NumPy: damping is one more row of inputs for each channel."""
    w, x = weight.double().numpy(), inputs.double().numpy()
    gram = x.T @ x / len(x)
    rows = np.concatenate(
        [x / np.sqrt(len(x)), np.sqrt(DAMPING * np.diag(gram).mean()) * np.eye(x.shape[1])]
    )
    solution, *_ = np.linalg.lstsq(rows[:, kept], rows @ w.T, rcond=None)
    new = np.zeros_like(w)
    new[:, kept] = solution.T
    return new, float(((rows @ (w - new).T) ** 2).sum())


@pytest.mark.parametrize(("units", "size"), [(4, 3), (8, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_first_unit_is_that_of_brute_force(units: int, size: int, seed: int) -> None:
    weight, inputs = make(units * size, seed)
    gram = Gram(units * size)
    gram.update(inputs)
    inverse = inverse_gram(gram, DAMPING, "map")
    columns = np.arange(units * size).reshape(units, size)
    gone: list[int] = []
    for count in (1, 2):  # one after another, with what is left
        errors = {
            unit: refit(weight, inputs, np.delete(columns, [*gone, unit], 0).flatten().tolist())[1]
            for unit in range(units)
            if unit not in gone
        }
        gone.append(min(errors, key=errors.__getitem__))
        keep = keep_by_error(weight, inverse, units, count)
        assert (~keep).nonzero().flatten().tolist() == sorted(gone)
    pruned = without_columns(weight, (~keep).repeat_interleave(size), inverse)
    expected, _ = refit(weight, inputs, np.delete(columns, gone, 0).flatten().tolist())
    np.testing.assert_allclose(pruned.numpy(), expected, atol=2e-3)
    assert not pruned[:, columns[gone].flatten()].any()


def test_least_squares_are_better_than_zeros_and_the_choice_than_most() -> None:
    weight, inputs = make(12)
    gram = Gram(12)
    gram.update(inputs)
    inverse = inverse_gram(gram, DAMPING, "map")

    def error(new: torch.Tensor) -> float:
        return float((inputs @ (weight - new).T).square().sum())

    keep = keep_by_error(weight, inverse, 12, 4)
    chosen = error(without_columns(weight, ~keep, inverse))
    assert chosen < error(without_columns(weight, ~keep, None))
    others = [
        error(without_columns(weight, torch.tensor([i in gone for i in range(12)]), inverse))
        for gone in itertools.combinations(range(12), 4)
    ]
    assert chosen <= np.quantile(others, 0.05)


def test_norms_are_means_over_tokens() -> None:
    norm = UnitNorm(2)
    norm.update(torch.tensor([[3.0, 4.0, 1.0, 0.0]]))
    norm.update(torch.tensor([[0.0, 0.0, 0.0, 2.0], [0.0, 1.0, 0.0, 0.0]]))
    assert scored_value(norm, "map").tolist() == [2.0, 1.0]


def test_units_of_an_earlier_round_go_first() -> None:
    weight = torch.ones(2, 6)
    weight[:, 2:4] = 0
    keep = keep_units(torch.tensor([0.5, 9.0, 1.0]), weight, 1)
    assert keep.tolist() == [True, False, True]
    again = keep_by_error(weight, torch.eye(6), 3, 1)
    assert again.tolist() == [True, False, True]
