"""Structured pruning of MLP neurons."""

import copy
from collections.abc import Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, oriented_weight, sublayers
from prunelit.models.finite import all_finite
from prunelit.models.surgery import neuron_rows
from prunelit.pruners.base import Probe, Pruner
from prunelit.sparsity import Ratio, count_removed, keep_highest
from prunelit.statistics import SquaredNorm


class Neuron(Pruner):
    """Remove the neurons of every MLP that matter least (arXiv:2603.24652, public code).

    The score of neuron j is the mean over outputs of |W_down[:, j]| times its mean squared
    activation. Every block loses the same number. Its rows of the first maps, their biases and its
    column of the last become 0; saving the model narrows the maps.

    Args:
        ratio: share of the neurons that go, in [0, 1).
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
        for block in decoder_blocks(model)[1]:
            _check_narrowable(block)

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        mlp = sublayers(block)["mlp"]
        weight = oriented_weight(block.get_submodule(mlp.output))
        return {mlp.output: Probe(SquaredNorm(weight.shape[1], weight.device))}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        mlp = sublayers(block)["mlp"]
        weight = oriented_weight(block.get_submodule(mlp.output))
        activation = probes[mlp.output].statistic.value
        if not all_finite(activation):
            raise InputError(
                f"The calibration inputs of {mlp.output!r} are not finite or their squares "
                "overflow: load the model in a wider dtype."
            )
        scores = weight.float().abs().mean(0) * activation
        # What an earlier round removed goes first.
        scores = scores.masked_fill(~weight.any(0), -torch.inf)
        width = len(scores)
        gone = ~keep_highest(scores[None], width - count_removed(self.ratio, width))[0]
        weight[:, gone] = 0
        for name in mlp.inputs:
            linear = block.get_submodule(name)
            rows = neuron_rows(block, name, width)[gone.cpu()].reshape(-1).to(weight.device)
            oriented_weight(linear)[rows] = 0
            if getattr(linear, "bias", None) is not None:
                linear.get_parameter("bias")[rows] = 0


def _check_narrowable(block: nn.Module) -> None:
    mlp = sublayers(block)["mlp"]
    width = oriented_weight(block.get_submodule(mlp.output)).shape[1]
    for name in mlp.inputs:
        neuron_rows(block, name, width)  # refuses what does not fit
    for part in mlp.parts:
        for name, value in block.get_submodule(part).named_parameters():
            owner = f"{part}.{name}".rpartition(".")[0]
            if width in value.shape and owner not in (*mlp.inputs, mlp.output):
                raise InputError(
                    f"{part}.{name} has an entry for each neuron, beside the linear maps: the "
                    f"MLP of {type(block).__name__} cannot be narrowed."
                )
