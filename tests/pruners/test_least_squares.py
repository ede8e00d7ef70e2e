import numpy as np
import pytest
import torch

from prunelit.activations import Gram
from prunelit.pruners import least_squares
from prunelit.pruners.least_squares import solve_on_support, unit_gram


@pytest.mark.parametrize("direct", [True, False])
def test_weights_are_those_of_least_squares(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(least_squares, "_DIRECT", 1000 if direct else 1)
    monkeypatch.setattr(least_squares, "_ENTRIES", 3 * 24**2)  # some rows at a time
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=(200, 24)) @ rng.normal(size=(24, 24)), rng.normal(size=(10, 24))
    keep = rng.random((10, 24)) < 0.4
    keep[3] = False  # a row that loses everything
    gram = x.T @ x / 200
    found = solve_on_support(
        *(torch.from_numpy(value).float() for value in (gram, weight)),
        torch.from_numpy(keep),
        torch.zeros(10, 24),
    ).numpy()
    assert not found[~keep].any()
    for row, own in enumerate(keep):
        expected = np.linalg.lstsq(x[:, own], x @ weight[row], rcond=None)[0]
        np.testing.assert_allclose(found[row, own], expected, rtol=5e-3, atol=5e-3)


def test_the_gram_matrix_has_a_diagonal_of_1() -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)) * [1, 10, 0, 0.1]
    statistic = Gram(4)
    statistic.update(torch.from_numpy(x))
    gram, scale = unit_gram(statistic, 0.5)
    norms = np.sqrt(np.mean(x**2, 0))
    np.testing.assert_allclose(scale.numpy(), norms, rtol=1e-5)
    unit = x / np.where(norms > 0, norms, 1)
    expected = unit.T @ unit / 50 * (1 - np.eye(4)) + 1.5 * np.eye(4)
    np.testing.assert_allclose(gram.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert unit_gram(statistic, 0.5)[0] is gram
    assert float(unit_gram(statistic, 0.1)[0][0, 0]) == pytest.approx(1.1)
