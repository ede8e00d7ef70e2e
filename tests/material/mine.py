"""A method and a callback of a user's own, which tests copy beside their YAML."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch

from prunelit.activations import SquaredNorm
from prunelit.callbacks import Pruning
from prunelit.pruners import LinearPruner, Pruner
from prunelit.sparsity import Sparsity


class Magnitude(LinearPruner):
    """Prune the smallest weights of each row."""

    def __init__(self, sparsity: Sparsity, include: Sequence[str] = ("mlp.*",), power: float = 1.0):
        super().__init__(sparsity, include)
        self.power = power

    def statistic(self, linear):
        return SquaredNorm(linear.weight.shape[1])

    def prune_weight(self, weight, statistic):
        return torch.where(self.sparsity.keep_mask(weight.abs() ** self.power), weight, 0.0)


class Announced(Pruning):
    """Says which blocks it prunes."""

    def __init__(self, pruner: Pruner, output: str | None = None, word: str = "now"):
        super().__init__(pruner, output)
        self.word = word

    def apply(self, trainer, module, data):
        print(f"Pruning {self.word}.")
        return super().apply(trainer, module, data)


class Slow(Magnitude):
    """Never ends."""

    def prune_weight(self, weight, statistic):
        Path("started").touch()
        time.sleep(120)
