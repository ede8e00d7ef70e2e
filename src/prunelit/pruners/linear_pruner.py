"""Base class of methods that prune the linear maps of a block one by one."""

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import Probe, Statistic
from prunelit.allocation import Allocation, allocate, check_allocation
from prunelit.errors import InputError, near_names
from prunelit.models.architecture import (
    block_weights,
    decoder_blocks,
    left_dense,
    linear_modules,
    names_of,
    oriented_weight,
    repeated_weights,
)
from prunelit.models.finite import all_finite
from prunelit.pruners.base import Pruner
from prunelit.sparsity import Sparsity, Within


class LinearPruner(Pruner):
    """A method that prunes the linear maps of a block one by one.

    A sub-class names a statistic of the inputs (`statistic`) and prunes a weight with it
    (`prune_weight`). Its constructor takes `**options` and passes them on to this one.

    Each expert of a mixture has linear maps of its own, also if the model fuses them in one tensor:
    `mlp.experts.down_proj.3` is one of them, and a pattern may name it or the tensor. Routers and
    maps with one output stay dense, unless a pattern of `include` matches nothing else.

    Args:
        sparsity: how many weights to remove, and among which they compete.
        include: shell patterns of the module names to prune inside a block, such as `mlp.*`.
        exclude: shell patterns of module names to leave as they are.
        ratios: other ratios for modules whose name matches a pattern, such as
            `{"self_attn.*": 0.3}`; the first match counts.
        allocation: how the ratio differs from block to block; None gives every block the same.
        expert_tokens: an expert that reads fewer calibration tokens than this gets the statistics
            of all experts of its block together.

    Attributes:
        within: group in which weights compete if the sparsity leaves it open; each method sets the
            group of its paper.
        model_wide: True if the method can compare weights of different matrices.
        skips_zeros: True if rows and columns that are 0 are parts which an earlier method took out,
            see `Sequence`. The method then prunes the matrix without them.
        reorders: True if the method gives channels another order, see `arrange`.

    Example:
        >>> import torch
        >>> from prunelit.pruners import LinearPruner, oriented_weight
        >>> from prunelit.sparsity import Unstructured
        >>> from prunelit.activations import SquaredNorm
        >>> class SquaredWanda(LinearPruner):
        ...     def statistic(self, linear):
        ...         weight = oriented_weight(linear)
        ...         return SquaredNorm(weight.shape[1], weight.device)
        ...     def prune_weight(self, weight, statistic):
        ...         return self.remove_lowest(weight, weight.abs() * statistic.value)
        >>> statistic = SquaredNorm(2)
        >>> statistic.update(torch.tensor([[1.0, 3.0]]))
        >>> SquaredWanda(Unstructured(0.5)).prune_weight(torch.tensor([[2.0, 1.0]]), statistic)
        tensor([[0., 1.]])
    """

    within: Within = "row"
    model_wide = False
    skips_zeros = False
    reorders = False

    def __init__(
        self,
        sparsity: Sparsity,
        include: Sequence[str] = ("*",),
        exclude: Sequence[str] = (),
        ratios: dict[str, float] | None = None,
        allocation: Allocation | None = None,
        expert_tokens: int = 32,
    ) -> None:
        if expert_tokens < 1:
            raise InputError(f"Expected `expert_tokens` of at least 1 but got {expert_tokens}.")
        self.sparsity = sparsity
        self.include = list(include)
        self.exclude = list(exclude)
        self.ratios = ratios
        self.allocation = allocation
        self.expert_tokens = expert_tokens
        self._plan: dict[nn.Module, Sparsity] = {}
        self._repeated: dict[nn.Module, set[str]] = {}

    def statistic(self, linear: nn.Module) -> Statistic | None:
        """Build an empty statistic for the input of `linear`; None if the method reads no data."""
        return None

    @abstractmethod
    def prune_weight(self, weight: Tensor, statistic: Statistic) -> Tensor:
        """Prune one weight matrix.

        `self.sparsity` is the sparsity of this matrix: allocation and round are applied already.

        Args:
            weight: (O, I), float32; must not be edited.
            statistic: filled, of the inputs of this linear map.

        Returns:
            (O, I), pruned entries exactly 0.
        """

    def targets(self, block: nn.Module) -> dict[str, nn.Module]:
        """Find the linear maps of `block` that the patterns choose; a block may have none.

        A map that an earlier block has too belongs to that one.

        Raises:
            InputError: if `sparsity` refuses the shape of a weight.
        """
        linears, dense = linear_modules(block), left_dense(block)
        names = {name: names_of(name, linear) for name, linear in linears.items()}
        for name in self._repeated.get(block, ()):
            names.pop(name.removesuffix(".weight"), None)
        naming = [
            pattern
            for pattern in self.include
            if not any(_matches(own, [pattern]) for name, own in names.items() if name not in dense)
        ]
        chosen = {
            name: linears[name]
            for name, own in names.items()
            if _matches(own, naming if name in dense else self.include)
            and not _matches(own, self.exclude)
        }
        for name, linear in chosen.items():
            rows, columns = oriented_weight(linear).shape
            self.sparsity.check((rows, columns), name)
        return chosen

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        repeated = zip(decoder_blocks(model)[1], repeated_weights(model), strict=True)
        self._repeated = {block: names for block, names in repeated if names}
        self._check_patterns(model)
        blocks = self._all_targets(model)
        if not any(blocks):
            raise InputError(
                f"`include` {self.include} without `exclude` {self.exclude} matches no linear "
                "module: change the patterns."
            )
        self._check_others(model)
        check_allocation(self.sparsity, blocks, self.ratios, self.allocation)
        if not self.model_wide and getattr(self.sparsity, "within", None) == "model":
            raise InputError(
                f"Expected `within` row or matrix but got model: {type(self).__name__} cannot "
                "compare weights of different matrices. Use `Magnitude` or an `allocation`."
            )

    def _check_patterns(self, model: PreTrainedModel) -> None:
        """Refuse a pattern that matches in no block."""
        known: dict[str, None] = {}
        for block in decoder_blocks(model)[1]:
            for name, linear in linear_modules(block).items():
                known |= dict.fromkeys(reversed(names_of(name, linear)))
            known |= dict.fromkeys(name for name, _ in block.named_parameters())
        for pattern in [*self.include, *self.exclude]:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise InputError(
                    f"The pattern {pattern!r} matches no linear module in the blocks of "
                    f"{type(model).__name__}; near names: {near_names(pattern, known)}."
                )

    def _check_others(self, model: PreTrainedModel) -> None:
        """Refuse a model most of whose weights are in tensors that are no linear maps."""
        size, other = 0, Counter[str]()
        for block in decoder_blocks(model)[1]:
            for name, weight in block_weights(block).items():
                size += weight.value.numel()
                chosen = _matches([name], self.include) and not _matches([name], self.exclude)
                if weight.kind == "other" and chosen:
                    other[name] += weight.value.numel()
        share = sum(other.values()) / size
        if share > 0.5:
            largest = max(other, key=other.__getitem__)
            raise InputError(
                f"{share:.0%} of the weights in the blocks of {type(model).__name__} are in "
                f"tensors that prunelit cannot prune, such as {largest!r}: exclude them by name to "
                "prune the others."
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

    def arrange(self, block: nn.Module, probes: Mapping[str, Probe]) -> Mapping[str, Probe]:
        """Reorder channels of a block, in place, before its maps are pruned; by default none.

        Args:
            block: a decoder block, on its own device.
            probes: those of `watch`, filled.

        Returns:
            The probes, with the channels in their new order.
        """
        return probes

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        targets = self.targets(block)
        for name, statistic in _distinct(targets, probes).items():
            _check_finite(name, statistic)
        probes = self.arrange(block, probes)
        for name, linear in targets.items():
            statistic = probes[name].statistic if name in probes else None
            worker = copy.copy(self)
            worker.sparsity = self._plan.get(linear, self.sparsity).with_default(self.within)
            weight = oriented_weight(linear)
            try:
                pruned = worker.prune_rest(name, weight.float(), statistic)
            except InputError as error:
                raise InputError(f"In {name!r}: {error}") from error
            pruned = pruned.to(weight.dtype)  # what is finite in float32 need not be in float16
            if not all_finite(pruned):
                raise InputError(
                    f"{type(self).__name__} made NaN or infinite weights in {name!r}: load the "
                    "model in a wider dtype, such as float32."
                )
            weight.copy_(pruned)

    def prune_rest(self, name: str, weight: Tensor, statistic: Statistic | None) -> Tensor:
        """Prune a weight; with `skips_zeros`, its rows and columns that are not 0."""
        rows, columns = weight.any(1), weight.any(0)
        if not self.skips_zeros or (rows.all() and columns.all()):
            return self.prune_weight(weight, statistic)  # type: ignore[arg-type]
        if not rows.any():
            return weight
        if statistic is not None and not columns.all():
            try:
                statistic = statistic.select(columns)
            except NotImplementedError as error:
                raise InputError(
                    f"{type(statistic).__name__} cannot leave out inputs that an earlier method "
                    "took out: write its method `select`, or prune in two runs."
                ) from error
        places = rows.nonzero(), columns.nonzero().T
        part = weight[places]
        self.sparsity.check((part.shape[0], part.shape[1]), f"what is left of {name}")
        pruned = torch.zeros_like(weight)
        pruned[places] = self.prune_weight(part, statistic)  # type: ignore[arg-type]
        return pruned

    def _all_targets(self, model: PreTrainedModel) -> list[dict[str, nn.Module]]:
        return [self.targets(block) for block in decoder_blocks(model)[1]]

    def remove_lowest(self, weight: Tensor, scores: Tensor) -> Tensor:
        """Set the weights with the lowest scores to 0, weights of earlier rounds first.

        Args:
            weight: (O, I).
            scores: (O, I), higher stays.

        Returns:
            (O, I), removed entries exactly 0.
        """
        keep = self.sparsity.keep_mask(scores.masked_fill(weight == 0, -torch.inf))
        return torch.where(keep, weight, 0.0)


def _distinct(names: Iterable[str], probes: Mapping[str, Probe]) -> dict[str, Statistic]:
    """List every statistic once, under the first name that reads it."""
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
            f"{name!r} received no calibration token: exclude it, or give more text if it is part "
            "of a mixture."
        ) from error
    # Scores that are not finite would still give a mask, and finite weights.
    if not all_finite(value):
        raise InputError(
            f"The calibration inputs of {name!r} or their squares are not finite: load the model "
            "in a wider dtype, such as float32."
        )


def _matches(names: Iterable[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
