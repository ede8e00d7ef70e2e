"""Structured pruning of the channels of the residual stream."""

import copy
from collections.abc import Iterable, Mapping

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, device_of
from prunelit.models.channels import (
    find_channels,
    find_removed_channels,
    fitting_width,
    width_changes,
    zero_channels_,
)
from prunelit.models.finite import all_finite
from prunelit.models.hidden import check_narrower
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.units import UnitNorm
from prunelit.sparsity import Ratio, check_ratio, keep_highest


class Hidden(Pruner):
    """Remove the channels of the residual stream with the lowest scores (arXiv:2407.14679).

    The score of a channel is its mean absolute value over the tokens behind each norm of a block,
    summed over all norms and blocks of the dense model (section 2.2). A removed channel becomes 0
    in the embeddings, in all maps that write into the stream, and in all maps that read it.
    `prunelit.prune` then makes all tensors of the model narrower, so that they compute the same:
    the weights of maps are scaled, since the norms take their means over fewer channels.

    Only models whose norms are RMSNorm can be narrower without another result. Others are refused
    before any weight changes. The number of channels that stay is the nearest one that the
    configuration takes, a multiple of 8 if the dense model has one.

    Args:
        ratio: share of the channels to remove, in [0, 1).

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import Hidden
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32,
        ...                      num_hidden_layers=2, num_attention_heads=4)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, Hidden(0.25), torch.arange(64).view(4, 16))
        >>> model.config.hidden_size, model.lm_head.weight.shape
        (24, torch.Size([64, 24]))
    """

    shrinks = True
    takes = ("channels",)
    narrows_stream = True
    amounts = ("ratio",)

    def __init__(self, ratio: Ratio = 0.25) -> None:  # type: ignore[valid-type]
        check_ratio(ratio)
        self.ratio = float(ratio)
        self._is_round = False

    def scale(self, fraction: float) -> "Hidden":
        other = copy.copy(self)
        other.ratio, other._is_round = self.ratio * fraction, True
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        width, kept = find_channels(model).width, fitting_width(model, self.ratio)
        if kept < width:
            check_narrower(model, kept)
        elif self.ratio and not self._is_round:
            rank_zero_warn(
                f"Hidden({self.ratio:g}) removes nothing: {width} is the width nearest to that "
                "ratio which the model can have."
            )

    def left_fields(self, model: PreTrainedModel) -> list[dict[str, int]]:
        width, kept = find_channels(model).width, fitting_width(model, self.ratio)
        # Until the last round, zeros stay in their place.
        return [{} if self._is_round or kept == width else width_changes(model, kept)]

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        channels = find_channels(model)
        for index, block in enumerate(decoder_blocks(model)[1]):
            device = device_of(block)
            yield {
                name: Probe(UnitNorm(channels.width, device), at="output")
                for name in channels.norms(index)
            }

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        kept = fitting_width(model, self.ratio)
        values = [probe.statistic.value.cpu() for own in probes for probe in own.values()]
        scores = torch.stack(values).double().sum(0)
        if not all_finite(scores):
            raise InputError(
                "The calibration outputs of the norms are not finite: load the model in a wider "
                "dtype, such as float32."
            )
        before = find_removed_channels(model)  # of an earlier round
        if before is not None:
            scores = scores.masked_fill(before.cpu(), -torch.inf)
        if kept < len(scores):
            gone = ~keep_highest(scores[None], kept)[0]
            zero_channels_(model, gone.to(model.device))
        return False

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Do nothing: `decide` removed the channels."""
