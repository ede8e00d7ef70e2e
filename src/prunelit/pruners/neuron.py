"""Structured pruning of the neurons of an MLP."""

import copy
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import SquaredNorm
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, linear_modules, oriented_weight
from prunelit.models.experts import find_experts
from prunelit.models.finite import all_finite
from prunelit.models.neurons import Neurons, find_neurons, find_width_changes, neuron_rows
from prunelit.models.parts import sublayers
from prunelit.pruners.base import Probe, Pruner
from prunelit.sparsity import Ratio, count_removed, keep_highest

# `grouped_mm`, which stock classes compute experts with, needs strides of 16 bytes.
_MULTIPLE = 8


class Neuron(Pruner):
    """Remove the neurons of every MLP with the lowest scores (arXiv:2603.24652, public code).

    The score of neuron j is the mean over outputs of |W_down[:, j]| times its mean squared
    activation. Every MLP of one width loses the same number of neurons. A removed neuron becomes 0
    in the rows and biases of the first maps and in the column of the last map. `prunelit.prune`
    then makes these maps smaller.

    In a mixture each expert is such an MLP: it loses its own neurons, by the tokens that reach it,
    and all experts the same number; shared experts and MLPs of other blocks lose the same share.

    Args:
        ratio: share of the neurons to remove, in [0, 1).

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

    def __init__(self, ratio: Ratio = 0.25) -> None:  # type: ignore[valid-type]
        if not 0 <= ratio < 1:
            raise InputError(f"Expected `ratio` in [0, 1) but got {ratio}.")
        self.ratio = float(ratio)
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
        return {
            name: Probe(SquaredNorm(weight.shape[1], weight.device))
            for name, weight in weights.items()
        }

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        linears = linear_modules(block)
        for neurons in find_neurons(block):
            gone = self._choose(neurons, linears[neurons.output], probes)
            oriented_weight(linears[neurons.output])[:, gone] = 0
            for name in neurons.inputs:
                linear, weight = linears[name], oriented_weight(linears[name])
                rows = neuron_rows(linear, neurons.width)[gone.cpu()].flatten().to(weight.device)
                weight[rows] = 0
                if (bias := getattr(linear, "bias", None)) is not None:
                    bias[rows] = 0

    def _choose(self, neurons: Neurons, output: nn.Module, probes: Mapping[str, Probe]) -> Tensor:
        """(I,) bool, True for the neurons to remove."""
        weight, activation = oriented_weight(output), probes[neurons.output].statistic.value
        if not all_finite(activation):
            raise InputError(
                f"The calibration inputs of {neurons.output!r} or their squares are not finite: "
                "load the model in a wider dtype, such as float32."
            )
        scores = weight.float().abs().mean(0) * activation
        # Neurons of an earlier round are removed first.
        scores = scores.masked_fill(~weight.any(0), -torch.inf)
        kept = neurons.width - self._removed[neurons.width]
        return ~keep_highest(scores[None], kept)[0]


def _check_narrowable(block: nn.Module, found: Sequence[Neurons]) -> None:
    """Refuse an MLP in which something beside its linear maps has an entry for each neuron."""
    linears = linear_modules(block)
    own = {name for name, _ in block.named_parameters() if name.rpartition(".")[0] in linears}
    for name, experts in find_experts(block).items():
        own |= {f"{name}.{part}" for part, _ in experts.named_parameters(recurse=False)}
    widths = {neurons.width for neurons in found}
    for part in sublayers(block)["mlp"].parts if found else ():
        for name, value in block.get_submodule(part).named_parameters(prefix=part):
            if name not in own and widths.intersection(value.shape):
                raise InputError(
                    f"The MLP of {type(block).__name__} cannot be made smaller: beside its linear "
                    f"maps, {name} has an entry for each neuron too. Prune weights, or drop "
                    "sublayers or blocks."
                )
