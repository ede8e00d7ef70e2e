"""The contract of a pruning method. Hooks, loops and collectives belong to `prunelit.pruning`."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.allocation import Allocation, allocate, check_allocation
from prunelit.errors import InputError, near_names
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.finite import all_finite
from prunelit.models.surgery import check_whole
from prunelit.sparsity import Sparsity, Within
from prunelit.statistics import Probe, Statistic

__all__ = ["LinearPruner", "Probe", "Pruner"]

_Self = TypeVar("_Self", bound="Pruner")


class Pruner(ABC):
    """A pruning method.

    Each constructor argument is kept under an attribute of its name, so that the recipe of a run
    can be written down.
    """

    # Whether what becomes 0 was removed, and must stay 0 when the model is trained on.
    sparsifies = True
    # Whether whole parts become 0, which saving the model then leaves out.
    shrinks = False

    def check(self, model: PreTrainedModel) -> None:
        """Refuse what this method cannot do to `model`; called before any heavy work.

        A method that has more to refuse does so after `super().check(model)`.

        Raises:
            InputError: naming the option, or what the model lacks already.
        """
        if self.shrinks:
            check_whole(model)

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        """Give the probes of a pass over the whole model, which `decide` gets filled.

        Most methods need no such pass and give nothing. A method that does writes a generator: the
        probes of a block are asked for when the block lies on the device where it is worked on.
        Also called once before any heavy work.

        Args:
            model: in evaluation mode, gradients off; not to be edited.

        Returns:
            For each block, in order, its probes by submodule name; or nothing.
        """
        return ()

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        """Decide what needs the whole model, or drop parts of it, before the first block is pruned.

        Args:
            model: in evaluation mode, gradients off; it may be edited in place.
            probes: the probes of `look`, filled with every token of every rank, one dict a block;
                empty if `look` gave nothing.

        Returns:
            True to look and decide once more, on the model as it is now.
        """
        return False

    def scale(self: _Self, fraction: float) -> _Self:
        """The same method with `fraction` of what it removes in the end, for an earlier round.

        Args:
            fraction: in (0, 1].

        Raises:
            InputError: if the method has no smaller form.
        """
        raise InputError(
            f"{type(self).__name__} cannot prune in rounds: set one round, or give it a `scale`."
        )

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
        ratios: ratios of their own for modules whose name matches a pattern, such as
            `{"self_attn.*": 0.3}`; the first match counts.
        allocation: how the ratio is spread over the blocks; None is evenly.
    """

    # Where weights compete if the sparsity leaves it open: as the method was published.
    within: Within = "row"
    # Whether the method can compare weights of different matrices.
    model_wide = False

    def __init__(
        self,
        sparsity: Sparsity,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        ratios: dict[str, float] | None = None,
        allocation: Allocation | None = None,
    ) -> None:
        self.sparsity = sparsity
        self.include = list(include)
        self.exclude = list(exclude)
        self.ratios = ratios
        self.allocation = allocation
        self._plan: dict[nn.Module, Sparsity] = {}

    def statistic(self, linear: nn.Module) -> Statistic | None:
        """A fresh statistic for the input of `linear`; None for a method that reads no data."""
        return None

    @abstractmethod
    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        """The pruned weight.

        `self.sparsity` is the one of this weight, whatever the allocation and the round.

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
                raise InputError(
                    f"The pattern {pattern!r} matches no linear module of a "
                    f"{type(block).__name__}; near names: {near_names(pattern, linears)}."
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

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        blocks = self._all_targets(model)
        check_allocation(self.sparsity, blocks, self.ratios, self.allocation)
        if not self.model_wide and getattr(self.sparsity, "within", None) == "model":
            raise InputError(
                f"Expected `within` row or matrix but got model, which {type(self).__name__} "
                "cannot compare across: use `Magnitude`, or an `allocation`."
            )

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        return () if self.allocation is None else self.allocation.look(self._all_targets(model))

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        blocks = self._all_targets(model)
        self._plan = allocate(self.sparsity, blocks, self.ratios, self.allocation, probes)
        return False

    def scale(self, fraction: float) -> "LinearPruner":
        if fraction == 1:
            return self
        other = copy.copy(self)
        other.sparsity = self.sparsity.scale(fraction)
        if self.ratios is not None:
            other.ratios = {name: ratio * fraction for name, ratio in self.ratios.items()}
        return other

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        statistics = {name: self.statistic(linear) for name, linear in self.targets(block).items()}
        return {name: Probe(value) for name, value in statistics.items() if value is not None}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        targets = self.targets(block)
        for name, statistic in _distinct(targets, probes).items():
            _check_finite(name, statistic)
        for name, linear in targets.items():
            statistic = probes[name].statistic if name in probes else None
            worker = copy.copy(self)
            worker.sparsity = self._plan.get(linear, self.sparsity).with_default(self.within)
            weight = oriented_weight(linear)
            try:
                pruned = worker.prune_weight(weight.float(), statistic)  # type: ignore[arg-type]
            except InputError as error:
                raise InputError(f"In {name!r}: {error}") from error
            if not all_finite(pruned):
                raise InputError(f"{type(self).__name__} made NaN or infinite weights in {name!r}.")
            weight.copy_(pruned)

    def _all_targets(self, model: PreTrainedModel) -> list[dict[str, nn.Module]]:
        return [self.targets(block) for block in decoder_blocks(model)[1]]

    def remove_lowest(self, weight: Tensor, scores: Tensor) -> Tensor:
        """`weight` without its lowest scores; what an earlier round removed goes first.

        Args:
            weight: (O, I).
            scores: (O, I), higher stays.

        Returns:
            (O, I), removed entries exactly 0.
        """
        keep = self.sparsity.keep_mask(scores.masked_fill(weight == 0, -torch.inf))
        return torch.where(keep, weight, 0.0)


def _distinct(names: Iterable[str], probes: Mapping[str, Probe]) -> dict[str, Statistic]:
    """Every statistic once, by the first name that reads it."""
    found: dict[int, tuple[str, Statistic]] = {}
    for name in names:
        if name in probes:
            found.setdefault(id(probes[name].statistic), (name, probes[name].statistic))
    return dict(found.values())


def _check_finite(name: str, statistic: Statistic) -> None:
    try:
        value = statistic.value
    except ValueError as error:
        raise InputError(
            f"{name!r} read no calibration token: exclude it, or give more text if it is an "
            "expert that tokens are routed to."
        ) from error
    # Scores that are not finite would still give a mask, and finite weights.
    if not all_finite(value):
        raise InputError(
            f"The calibration inputs of {name!r} are not finite or their squares overflow: load "
            "the model in a wider dtype."
        )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
