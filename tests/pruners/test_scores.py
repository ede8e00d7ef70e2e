"""Scores that several methods begin with, against NumPy."""

import numpy as np
import torch

from prunelit.pruners.scores import activation_scores, relative_scores

rng = np.random.default_rng(0)
WEIGHT, X = rng.normal(size=(5, 7)), rng.normal(size=(30, 7))
SQUARE = torch.from_numpy(np.square(X).mean(0))


def test_activation_scores_are_sizes_times_norms() -> None:
    found = activation_scores(torch.from_numpy(WEIGHT), SQUARE)
    expected = np.abs(WEIGHT) * np.linalg.norm(X, axis=0) / np.sqrt(len(X))
    np.testing.assert_allclose(found.numpy(), expected)


def test_relative_scores_are_shares_of_row_and_column() -> None:
    weight = WEIGHT.copy()
    weight[2], weight[:, 3] = 0, 0  # what sums to 0 gives no score
    size = np.abs(weight)
    expected = np.zeros_like(size)
    for row, column in zip(*np.nonzero(size), strict=True):
        share = size[row, column] / size[row].sum() + size[row, column] / size[:, column].sum()
        expected[row, column] = share * np.sqrt(np.square(X[:, column]).mean()) ** 0.5
    found = relative_scores(torch.from_numpy(weight), SQUARE, power=0.5)
    np.testing.assert_allclose(found.numpy(), expected)
