"""Layers of random weights, and what a pruned one loses."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from prunelit.activations import Gram
from prunelit.pruners import LinearPruner, SparseGPT
from prunelit.sparsity import Sparsity

GramOf = Callable[[np.ndarray], Gram]
RandomLayer = Callable[[int], tuple[np.ndarray, np.ndarray]]
BestWeights = Callable[..., np.ndarray]


def losses(x: np.ndarray, weight: np.ndarray, pruned: np.ndarray) -> np.ndarray:
    """Squared error of each output."""
    return np.square(x @ (weight - pruned).T).sum(0)


def small_layers(columns: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Twenty layers: inputs, weight, and every mask of a row: 3 of 7 columns stay, or 2:4 of 8."""
    masks = np.array(list(itertools.product([False, True], repeat=columns)))
    masks = masks[masks.sum(1) == (3 if columns == 7 else 4)]
    if columns == 8:
        masks = masks[masks[:, :4].sum(1) == 2]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(64, columns)) @ rng.normal(size=(columns, columns))
        yield x, rng.normal(size=(8, columns)), masks


def compare_with_sparsegpt(
    pruner: LinearPruner,
    sparsity: Sparsity,
    ratio: float,
    layers: int,
    gram_of: GramOf,
    random_layer: RandomLayer,
    best_weights: BestWeights,
) -> list[float]:
    """Divide the errors of a method's masks by those of SparseGPT's, each with its best weights.

    The method's own weights must be the best ones, up to the damping.
    """
    ratios = []
    for seed in range(layers):
        x, weight = random_layer(seed)
        dense, gram = torch.from_numpy(weight).float(), gram_of(x)
        own = pruner.prune_weight(dense, gram).double().numpy()
        other = SparseGPT(sparsity, block_size=32).prune_weight(dense, gram).numpy()
        assert (own == 0).sum() == (other == 0).sum() == round(ratio * weight.size)
        best, others = (
            losses(x, weight, best_weights(x, weight, pruned != 0)).sum() for pruned in (own, other)
        )
        assert losses(x, weight, own).sum() < 1.005 * best
        ratios.append(best / others)
    return ratios
