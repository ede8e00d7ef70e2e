"""Drop the mixers or MLPs that change their input least."""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from prunelit.activations import MeanDistance
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, device_of
from prunelit.models.parts import KINDS
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.places import drop_lowest, find_dropped, find_places


class SublayerDrop(Pruner):
    """Drop the sublayers that change the residual stream least (He et al. 2024, arXiv:2406.15786).

    The importance of a sublayer is 1 - cos between the residual stream before and after it, as a
    mean over tokens. All weights of a dropped sublayer are 0 until `prunelit.prune` takes it out of
    the model.

    Args:
        count: number of sublayers to drop.
        target: `attention`; `mixer`, which is attention or what a block has in its place, such as a
            state space; `mlp`; or `both`, which ranks mixers and MLPs together.
        rescore: compute new scores after each drop; this costs one pass over the calibration tokens
            for each.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import SublayerDrop
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=3, num_attention_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, SublayerDrop(2), torch.arange(64).view(4, 16))
        >>> sum(hasattr(block.self_attn, "o_proj") for block in model.model.layers)
        1
    """

    shrinks = True
    drops_sublayers = True

    def __init__(
        self,
        count: int = 1,
        target: Literal["attention", "mixer", "mlp", "both"] = "attention",
        rescore: bool = False,
    ) -> None:
        if count < 1 or target not in ("attention", "mixer", "mlp", "both"):
            raise InputError(
                f"Expected `count` of at least 1 and `target` attention, mixer, mlp or both but "
                f"got {count} and {target!r}."
            )
        self.count = count
        self.target: Literal["attention", "mixer", "mlp", "both"] = target
        self.rescore = rescore

    def scale(self, fraction: float) -> "SublayerDrop":
        other = copy.copy(self)
        other.count = math.ceil(round(fraction * self.count, 9))
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        find_places(model, self.target, self.count)

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        places = find_places(model, self.target, self.count)
        if len(find_dropped(model, places)) >= self.count:
            return
        for index, block in enumerate(decoder_blocks(model)[1]):
            device = device_of(block)
            yield {
                kind: Probe(MeanDistance("cosine", device), at="residual")
                for kind in KINDS
                if (index, kind) in places
            }

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        places = find_places(model, self.target, self.count)
        dropped = find_dropped(model, places)
        missing = self.count - len(dropped)
        if missing <= 0:
            return False
        distances = {
            place: float(probes[place[0]][place[1]].statistic.value)
            for place in places
            if place not in dropped
        }
        drop_lowest(model, dropped, distances, 1 if self.rescore else missing)
        return self.rescore and missing > 1

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Do nothing: `decide` dropped the sublayers."""
