"""The contract of a pruning method. Hooks, loops and collectives belong to `calibration.py`."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import linear_modules, oriented_weight
from prunelit.sparsity import Sparsity
from prunelit.statistics import Statistic


@dataclass
class Probe:
    """What to observe at one submodule of a block.

    Args:
        statistic: fed with the real tokens of every calibration batch, (N, channels).
        at: whether it reads the submodule's first input or its output.
    """

    statistic: Statistic
    at: Literal["input", "output"] = "input"


class Pruner(ABC):
    """A pruning method.

    Each constructor argument is kept under an attribute of its name, so that the recipe of a run
    can be written down.
    """

    @abstractmethod
    def watch(self, block: nn.Module) -> dict[str, Probe]:
        """What to observe in `block`, by submodule name; also called once before any heavy work.

        Probes that read one and the same input tensor share the first of their statistics.

        Raises:
            InputError: if this method cannot prune the block.
        """

    @abstractmethod
    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Edit the weights of `block` in place.

        Args:
            block: a decoder block, on its own device; gradients are off.
            probes: what `watch` returned, filled with every token of every rank.
        """

    def finish(self, model: PreTrainedModel) -> None:  # noqa: B027 - most methods need no last word
        """Take a decision that needs the whole model; called once after the last block."""


class LinearPruner(Pruner):
    """A method that edits one weight matrix of a block at a time.

    Args:
        sparsity: how many weights go, and within which groups they compete.
        include: shell patterns of module names inside a block, such as `mlp.*`.
        exclude: patterns taken out again.
    """

    def __init__(
        self,
        sparsity: Sparsity,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
    ) -> None:
        self.sparsity = sparsity
        self.include = list(include)
        self.exclude = list(exclude)

    @abstractmethod
    def statistic(self, linear: nn.Module) -> Statistic:
        """A fresh statistic for the input of `linear`."""

    @abstractmethod
    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        """The pruned weight.

        Args:
            weight: (O, I), float32; not to be edited.
            statistic: of the inputs of this linear map.

        Returns:
            (O, I), pruned entries exactly 0.
        """

    def targets(self, block: nn.Module) -> dict[str, nn.Module]:
        """The linear maps of `block` that the patterns choose.

        Raises:
            InputError: if a pattern matches nothing, a weight has a shape that `sparsity` refuses,
                or the block fuses its experts into 3-D weights.
        """
        for name, parameter in block.named_parameters():
            owner = block.get_submodule(name.rpartition(".")[0])
            fused = parameter.ndim == 3 and not isinstance(owner, nn.Conv1d)
            if fused and not _matches(name, self.exclude):
                raise InputError(
                    f"The block fuses expert weights into one 3-D tensor {name!r}, which "
                    f"{type(self).__name__} cannot prune: exclude it by name."
                )
        linears = linear_modules(block)
        for pattern in [*self.include, *self.exclude]:
            if not any(fnmatchcase(name, pattern) for name in linears) and not any(
                fnmatchcase(name, pattern) for name, _ in block.named_parameters()
            ):
                near = difflib.get_close_matches(pattern, list(linears), n=3, cutoff=0.3)
                raise InputError(
                    f"The pattern {pattern!r} matches no linear module of a "
                    f"{type(block).__name__}; near names: {', '.join(near or linears)}."
                )
        chosen = {
            name: linear
            for name, linear in linears.items()
            if _matches(name, self.include) and not _matches(name, self.exclude)
        }
        if not chosen:
            raise InputError(
                f"`include` {self.include} less `exclude` {self.exclude} leaves nothing."
            )
        for name, linear in chosen.items():
            rows, columns = oriented_weight(linear).shape
            self.sparsity.check((rows, columns), name)
        return chosen

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {name: Probe(self.statistic(linear)) for name, linear in self.targets(block).items()}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        for name, probe in probes.items():
            try:
                value = probe.statistic.value
            except ValueError as error:
                raise InputError(
                    f"{name!r} read no calibration token: exclude it, or give more text if it is "
                    "an expert that tokens are routed to."
                ) from error
            # Scores that are not finite would still give a mask, and finite weights.
            if not torch.isfinite(value).all():
                raise InputError(
                    f"The calibration inputs of {name!r} are not finite or their squares overflow: "
                    "load the model in a wider dtype."
                )
            weight = oriented_weight(block.get_submodule(name))
            pruned = self.prune_weight(weight.float(), probe.statistic)
            if not torch.isfinite(pruned).all():
                raise InputError(f"{type(self).__name__} made NaN or infinite weights in {name!r}.")
            weight.copy_(pruned)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
