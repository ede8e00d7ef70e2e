"""The factor and the updates of the optimal brain surgeon, against NumPy in float64."""

import logging

import numpy as np
import pytest
import torch
from torch import Tensor

from prunelit.activations import Gram
from prunelit.errors import InputError
from prunelit.pruners import compensation
from prunelit.pruners.compensation import compensate, inverse_factor, shared_factor

# Sizes that one leaf holds, and that are halved once, twice and three times where it holds five.
SIZES = [5, 6, 11, 23]


def gram_of(seed: int, size: int, dead: tuple[int, ...] = ()) -> Tensor:
    x = np.random.default_rng(seed).normal(size=(3 * size, size)) * np.linspace(0.5, 2, size)
    x[:, list(dead)] = 0
    return torch.from_numpy(x.T @ x / len(x)).float()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dead", [(), (0, 3)])
def test_factor_of_the_inverse_by_halves(
    size: int, dead: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    gram = gram_of(size, size, dead)
    before = gram.clone()
    whole = inverse_factor(gram, 0.01)
    monkeypatch.setattr(compensation, "_LEAF", 5)
    upper = inverse_factor(gram, 0.01)
    assert torch.equal(gram, before)
    torch.testing.assert_close(upper, whole, rtol=1e-5, atol=1e-6)
    assert upper.dtype == torch.float32
    assert torch.equal(upper, upper.triu())
    hessian = gram.double().numpy()
    damping = 0.01 * np.diag(hessian).mean()
    hessian = hessian + np.diag(damping + (np.diag(hessian) == 0))
    inverse = np.linalg.inv(hessian)
    found = upper.double().numpy()
    np.testing.assert_allclose(found.T @ found, inverse, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, np.linalg.cholesky(inverse).T, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("leaf", [2, 400])
def test_damping_is_raised_and_said(
    leaf: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compensation, "_LEAF", leaf)
    # Rank 2 of 8 and almost no damping: not positive definite in float32.
    x = np.random.default_rng(4).normal(size=(2, 8)) * 1e3
    gram = Gram(8)
    gram.update(torch.from_numpy(x).float())
    with caplog.at_level(logging.WARNING):
        factor = inverse_factor(gram.value, 1e-8)
    assert "Damping was raised to" in caplog.text
    assert torch.isfinite(factor).all()


@pytest.mark.parametrize("leaf", [2, 400])
def test_hopeless_matrix_is_refused(leaf: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compensation, "_LEAF", leaf)
    with pytest.raises(InputError, match="not positive definite, even with a damping of 1 in"):
        inverse_factor(-torch.eye(5), 0.01)


def test_one_factor_for_all_that_share_a_statistic() -> None:
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    x[:, 1] = 0
    gram = Gram(4)
    gram.update(x)
    factor, dead = shared_factor(gram, 0.01)
    assert torch.equal(factor, inverse_factor(gram.value, 0.01))
    assert dead.tolist() == [False, True, False, False]
    assert shared_factor(gram, 0.01)[0] is factor
    assert torch.equal(shared_factor(gram, 0.1)[0], inverse_factor(gram.value, 0.1))


def column_by_column(
    weight: np.ndarray, upper: np.ndarray, keep: np.ndarray, chunk: int
) -> tuple[np.ndarray, dict[int, np.ndarray]]:
    """The weight in the end, and what there is to choose from at the start of every chunk."""
    pruned, seen = weight.copy(), {}
    for q in range(weight.shape[1]):
        if q % chunk == 0:
            seen[q] = pruned[:, q : q + chunk].copy()
        for row in np.flatnonzero(~keep[:, q]):
            pruned[row, q:] -= pruned[row, q] / upper[q, q] * upper[q, q:]
            pruned[row, q] = 0
    return pruned, seen


# 150 columns, so that the last chunk and the last block are cut short.
@pytest.mark.parametrize("inner", [1, 4, 16])
@pytest.mark.parametrize(
    ("chunk", "block_size"), [(3, 9), (3, 129), (4, 128), (24, 48), (24, 168), (128, 128)]
)
def test_columns_are_updated_one_after_the_other(
    inner: int, chunk: int, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compensation, "_INNER", inner)
    rng = np.random.default_rng(0)
    weight, keep = rng.normal(size=(5, 150)), rng.random((5, 150)) < 0.5
    upper = inverse_factor(gram_of(1, 150), 0.01)
    diagonal = upper.diagonal().double().numpy()
    expected, seen = column_by_column(weight, upper.double().numpy(), keep, chunk)
    asked = []

    def choose(first: int, values: Tensor, saliency: Tensor) -> Tensor:
        part = slice(first, first + len(values))
        asked.append(first)
        np.testing.assert_allclose(values.T, seen[first], rtol=1e-4, atol=1e-5)
        squares = (seen[first] / diagonal[part]) ** 2
        np.testing.assert_allclose(saliency.T, squares, rtol=1e-3, atol=1e-4)
        return torch.from_numpy(keep.T[part])

    dense = torch.from_numpy(weight).float()
    before = dense.clone()
    found = compensate(dense, upper, choose, chunk, block_size)
    assert torch.equal(dense, before)
    assert asked == list(seen)
    assert found.shape == (5, 150)
    assert not found.numpy()[~keep].any()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
