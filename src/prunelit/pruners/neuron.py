"""Structured pruning of the neurons of an MLP."""

import copy
from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import SquaredNorm, Statistic
from prunelit.errors import InputError, check_positive
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.neurons import (
    Neurons,
    find_neurons,
    find_tied,
    find_width_changes,
    neuron_rows,
)
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.units import (
    UnitNorm,
    inverse_gram,
    keep_by_error,
    keep_units,
    scored_value,
    unit_statistic,
    without_columns,
)
from prunelit.sparsity import Ratio, check_ratio, count_removed

# `grouped_mm`, which stock classes compute experts with, needs strides of 16 bytes.
_MULTIPLE = 8

NeuronScore = Literal["weight_activation", "activation", "reconstruction"]


class Neuron(Pruner):
    """Remove the neurons of every MLP with the lowest scores (arXiv:2603.24652, public code).

    The score of a neuron is one of these:

    * `weight_activation`: the mean over outputs of |W_down[:, j]| times its mean squared activation
    * `activation`: the mean over tokens of its absolute activation (after arXiv:2407.14679)
    * `reconstruction`: the squared error of the last map without it, if the other columns of that
      map make up for it (arXiv:2302.04089, section 3); it needs the Gram matrix of the activations

    Every MLP of one width loses the same number of neurons. A removed neuron becomes 0
    in the rows and biases of the first maps and in the column of the last map. `prunelit.prune`
    then makes these maps smaller.

    In a mixture each expert is such an MLP: it loses its own neurons, by the tokens that reach it,
    and all experts the same number; shared experts and MLPs of other blocks lose the same share.

    Args:
        ratio: share of the neurons to remove, in [0, 1).
        score: `weight_activation`, `activation` or `reconstruction`.
        compensate: give the remaining columns of the last map the values with the least squared
            error; this needs the Gram matrix too.
        damping: share of the mean diagonal that is added to the Gram matrix.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import Neuron
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=3, num_attention_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, Neuron(0.25), torch.arange(64).view(4, 16))
        >>> model.model.layers[0].mlp.up_proj.weight.shape
        torch.Size([24, 16])
    """

    shrinks = True
    takes = ("neurons",)

    def __init__(
        self,
        ratio: Ratio = 0.25,  # type: ignore[valid-type]
        score: NeuronScore = "weight_activation",
        compensate: bool = False,
        damping: float = 0.01,
    ) -> None:
        check_ratio(ratio)
        check_positive("damping", damping)
        self.ratio = float(ratio)
        self.score: NeuronScore = score
        self.compensate = compensate
        self.damping = float(damping)
        self._removed: dict[int, int] = {}

    def scale(self, fraction: float) -> "Neuron":
        other = copy.copy(self)
        other.ratio = self.ratio * fraction
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        found = []
        for block in decoder_blocks(model)[1]:
            neurons = find_neurons(block)
            _check_narrowable(block, neurons)
            found += neurons
        if not found:
            raise InputError(
                f"{type(model).__name__} has no MLP, so it has no neurons: prune weights instead."
            )
        experts = {own.width for own in found if own.fused}
        self._removed = self._count(sorted({own.width for own in found}), experts)
        idle = [
            str(width) for width, removed in self._removed.items() if self.ratio and not removed
        ]
        if idle:
            rank_zero_warn(
                f"Neuron({self.ratio:g}) removes nothing from MLPs of {' and '.join(idle)} "
                f"neurons: the ratio is too small, or they are experts, which keep a multiple of "
                f"{_MULTIPLE}."
            )
        if any(self._removed.values()):
            changes = {width: width - removed for width, removed in self._removed.items()}
            find_width_changes(model, changes)

    def removed(self, width: int) -> int:
        """Return how many neurons of an MLP of a width go; `check` is called before."""
        return self._removed[width]

    def _count(self, widths: list[int], experts: set[int]) -> dict[int, int]:
        """Count the neurons to remove by width; that of shared experts may be a multiple."""
        counts: dict[int, int] = {}
        for width in widths:
            times, rest = divmod(width, widths[0])
            first = counts.get(widths[0])
            kept = width - (
                count_removed(self.ratio, width) if first is None or rest else first * times
            )
            if width in experts:
                kept = min(width, max(_MULTIPLE, round(kept / _MULTIPLE) * _MULTIPLE))
            counts[width] = width - kept
        return counts

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        linears = linear_modules(block)
        weights = {own.output: oriented_weight(linears[own.output]) for own in find_neurons(block)}
        kind = UnitNorm if self.score == "activation" else SquaredNorm
        return {
            name: Probe(
                unit_statistic(
                    self.score, self.compensate, weight, kind(weight.shape[1], weight.device)
                )
            )
            for name, weight in weights.items()
        }

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        linears = linear_modules(block)
        for neurons in find_neurons(block):
            output = oriented_weight(linears[neurons.output])
            statistic, inverse = probes[neurons.output].statistic, None
            if self.compensate or self.score == "reconstruction":
                inverse = inverse_gram(statistic, self.damping, neurons.output)
            gone = self._choose(neurons, output.float(), statistic, inverse)
            output.copy_(
                without_columns(output.float(), gone, inverse if self.compensate else None)
            )
            for name in neurons.inputs:
                linear, weight = linears[name], oriented_weight(linears[name])
                rows = neuron_rows(linear, neurons.width)[gone.cpu()].flatten().to(weight.device)
                weight[rows] = 0
                if (bias := getattr(linear, "bias", None)) is not None:
                    bias[rows] = 0

    def _choose(
        self, neurons: Neurons, weight: Tensor, statistic: Statistic, inverse: Tensor | None
    ) -> Tensor:
        """(I,) bool, True for the neurons to remove."""
        count = self._removed[neurons.width]
        if self.score == "reconstruction":
            assert inverse is not None
            return ~keep_by_error(weight, inverse, neurons.width, count)
        scores = scored_value(statistic, neurons.output)
        if self.score == "weight_activation":
            scores = weight.abs().mean(0) * scores
        return ~keep_units(scores, weight, count)


def _check_narrowable(block: nn.Module, found: Sequence[Neurons]) -> None:
    """Refuse an MLP in which something beside its linear maps has an entry for each neuron."""
    if (name := find_tied(block, found)) is not None:
        raise InputError(
            f"The MLP of {type(block).__name__} cannot be made smaller: beside its linear maps, "
            f"{name} has an entry for each neuron too. Prune weights, or drop sublayers or blocks."
        )
