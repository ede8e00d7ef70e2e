"""Structured pruning of the heads of attention."""

import copy
from collections.abc import Mapping

from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError, check_positive
from prunelit.models.architecture import decoder_blocks, oriented_weight
from prunelit.models.heads import Heads as Found
from prunelit.models.heads import check_fewer_heads, find_heads, head_changes, zero_heads_
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.units import (
    UnitNorm,
    UnitScore,
    inverse_gram,
    keep_by_error,
    keep_units,
    scored_value,
    unit_statistic,
    without_columns,
)
from prunelit.sparsity import Ratio, check_ratio, count_removed


class Heads(Pruner):
    """Remove the heads of every attention with the lowest scores, the same number in each block.

    Query heads that share a key and a value are a group, and go together with them. A model without
    shared keys has groups of one head. A removed group becomes 0 in the maps to queries, keys and
    values, and in its columns of the output map. `prunelit.prune` then makes these maps smaller:
    the model has fewer heads of the same width, so its cache gets smaller too.

    * `activation`: the mean over tokens of the norm of what a head gives, before the output map
      (arXiv:2407.14679, section 2.2); the sum over the heads of a group
    * `reconstruction`: the squared error of the output map without the group, if its other columns
      make up for it (after arXiv:2412.18110); groups go one after another

    The class must be able to have fewer heads of the same width, and must compute what the dense
    model computes with zeros in their place. Else the model is refused before any weight changes.

    Args:
        ratio: share of the groups to remove, in [0, 1). If it is not 0, at least one goes.
        count: number of groups to remove in each block, instead of `ratio`.
        score: `activation` or `reconstruction`.
        compensate: give the remaining columns of the output map the values with the least squared
            error; False leaves them as they are.
        damping: share of the mean diagonal that is added to the Gram matrix of the inputs.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import Heads
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, Heads(0.5), torch.arange(64).view(4, 16))
        >>> model.config.num_attention_heads, model.config.num_key_value_heads
        (2, 1)
    """

    shrinks = True
    takes = ("heads",)

    def __init__(
        self,
        ratio: Ratio = 0.25,  # type: ignore[valid-type]
        count: int | None = None,
        score: UnitScore = "reconstruction",
        compensate: bool = True,
        damping: float = 0.01,
    ) -> None:
        check_ratio(ratio)
        if count is not None and count < 0:
            raise InputError(f"Expected `count` of at least 0 but got {count}.")
        check_positive("damping", damping)
        self.ratio = float(ratio)
        self.count = count
        self.score: UnitScore = score
        self.compensate = compensate
        self.damping = float(damping)
        self._fraction = 1.0
        self._found: dict[nn.Module, Found | None] = {}

    def scale(self, fraction: float) -> "Heads":
        other = copy.copy(self)
        other._fraction = self._fraction * fraction
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        self._found = dict(zip(decoder_blocks(model)[1], find_heads(model), strict=True))
        groups = next(found.groups for found in self._found.values() if found is not None)
        if self.count is not None and self.count >= groups:
            raise InputError(
                f"Expected `count` below the {groups} groups of heads of the model but got "
                f"{self.count}."
            )
        if removed := self._last_number(groups):
            check_fewer_heads(model, groups - removed)

    def left_fields(self, model: PreTrainedModel) -> list[dict[str, int]]:
        groups = next(found.groups for found in find_heads(model) if found is not None)
        removed = self._last_number(groups)
        return [head_changes(model, groups - removed) if removed else {}]

    def _last_number(self, groups: int) -> int:
        """Count the groups that are gone in the end: until then zeros stay in their place."""
        return self.scale(1 / self._fraction)._number(groups)

    def _number(self, groups: int) -> int:
        """Count the groups that go in this round."""
        if self.count is not None:
            return count_removed(self._fraction, self.count)
        share = self.ratio * self._fraction
        return min(groups - 1, max(count_removed(share, groups), share > 0))

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        if block not in self._found:
            raise RuntimeError("Expected `check` before `watch`: it finds the heads of the model.")
        if (found := self._found[block]) is None or not self._number(found.groups):
            return {}
        weight = oriented_weight(block.get_submodule(found.output))
        norms = UnitNorm(found.heads, weight.device)
        return {found.output: Probe(unit_statistic(self.score, self.compensate, weight, norms))}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        found = self._found[block]
        if found is None or found.output not in probes:
            return
        weight = oriented_weight(block.get_submodule(found.output))
        own, name, count = weight.float(), found.output, self._number(found.groups)
        statistic = probes[name].statistic
        inverse = None
        if self.compensate or self.score == "reconstruction":
            inverse = inverse_gram(statistic, self.damping, name)
        if self.score == "activation":
            norms = scored_value(statistic, name).view(found.groups, -1).sum(1)
            keep = keep_units(norms, own, count)
        else:
            assert inverse is not None
            keep = keep_by_error(own, inverse, found.groups, count)
        gone = (~keep).repeat_interleave(own.shape[1] // found.groups)
        weight.copy_(without_columns(own, gone, inverse if self.compensate else None))
        zero_heads_(block, found, ~keep)
