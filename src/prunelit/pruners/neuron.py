"""Structured pruning of the neurons of an MLP."""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.activations import SquaredNorm
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, oriented_weight
from prunelit.models.finite import all_finite
from prunelit.models.neurons import Neurons, find_neurons, find_width_changes, neuron_rows
from prunelit.models.parts import sublayers
from prunelit.pruners.base import Probe, Pruner
from prunelit.sparsity import Ratio, count_removed, keep_highest


class Neuron(Pruner):
    """Remove the neurons of every MLP with the lowest scores (arXiv:2603.24652, public code).

    The score of neuron j is the mean over outputs of |W_down[:, j]| times its mean squared
    activation. Every block loses the same number of neurons. A removed neuron becomes 0 in the rows
    and biases of the first maps and in the column of the last map. `prunelit.prune` then makes
    these maps smaller.

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

    def scale(self, fraction: float) -> "Neuron":
        other = copy.copy(self)
        other.ratio = self.ratio * fraction
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        widths = set()
        for block in decoder_blocks(model)[1]:
            if (neurons := find_neurons(block)) is not None:
                _check_narrowable(block, neurons)
                widths.add(neurons.width)
        if len(widths) != 1:
            raise InputError(
                f"Expected MLPs of one width in {type(model).__name__} but got "
                f"{sorted(widths) or 'no MLP'}: they cannot all be narrowed. Prune weights instead."
            )
        (width,) = widths
        if removed := count_removed(self.ratio, width):
            find_width_changes(model, width - removed)

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        if (neurons := find_neurons(block)) is None:
            return {}
        weight = oriented_weight(block.get_submodule(neurons.output))
        return {neurons.output: Probe(SquaredNorm(weight.shape[1], weight.device))}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        if (neurons := find_neurons(block)) is None:
            return
        weight = oriented_weight(block.get_submodule(neurons.output))
        activation = probes[neurons.output].statistic.value
        if not all_finite(activation):
            raise InputError(
                f"The calibration inputs of {neurons.output!r} or their squares are not finite: "
                "load the model in a wider dtype, such as float32."
            )
        scores = weight.float().abs().mean(0) * activation
        # Neurons of an earlier round are removed first.
        scores = scores.masked_fill(~weight.any(0), -torch.inf)
        width = neurons.width
        gone = ~keep_highest(scores[None], width - count_removed(self.ratio, width))[0]
        weight[:, gone] = 0
        for name in neurons.inputs:
            linear = block.get_submodule(name)
            rows = neuron_rows(block, name, width)[gone.cpu()].reshape(-1).to(weight.device)
            oriented_weight(linear)[rows] = 0
            if getattr(linear, "bias", None) is not None:
                linear.get_parameter("bias")[rows] = 0


def _check_narrowable(block: nn.Module, neurons: Neurons) -> None:
    for part in sublayers(block)["mlp"].parts:
        for name, value in block.get_submodule(part).named_parameters():
            owner = f"{part}.{name}".rpartition(".")[0]
            if neurons.width in value.shape and owner not in (*neurons.inputs, neurons.output):
                raise InputError(
                    f"The MLP of {type(block).__name__} cannot be made smaller: beside its linear "
                    f"maps, {part}.{name} has an entry for each neuron too. Prune weights, or drop "
                    "sublayers or blocks."
                )
