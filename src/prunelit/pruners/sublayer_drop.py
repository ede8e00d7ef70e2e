"""Drop the attention or MLP sublayers that change their input least."""

import copy
import math
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from prunelit.activations import MeanDistance
from prunelit.errors import InputError
from prunelit.models.architecture import KINDS, decoder_blocks, sublayers
from prunelit.models.stores import each_whole
from prunelit.models.surgery import drop_, is_dropped
from prunelit.pruners.base import Probe, Pruner


class SublayerDrop(Pruner):
    """Drop the sublayers that change the residual stream least (He et al. 2024, arXiv:2406.15786).

    The importance of a sublayer is 1 - cos between the residual stream before and after it, as a
    mean over tokens. A dropped sublayer has zeros in its last linear map until `prunelit.prune`
    takes it out of the model.

    Args:
        count: number of sublayers to drop.
        target: `attention`, `mlp`, or `both`, which ranks them together.
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

    def __init__(
        self,
        count: int = 1,
        target: Literal["attention", "mlp", "both"] = "attention",
        rescore: bool = False,
    ) -> None:
        if count < 1 or target not in ("attention", "mlp", "both"):
            raise InputError(
                f"Expected `count` of at least 1 and `target` attention, mlp or both but got "
                f"{count} and {target!r}."
            )
        self.count = count
        self.target = target
        self.rescore = rescore

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of sublayers that compete."""
        return KINDS if self.target == "both" else (self.target,)

    def scale(self, fraction: float) -> "SublayerDrop":
        other = copy.copy(self)
        other.count = math.ceil(round(fraction * self.count, 9))
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        places = len(decoder_blocks(model)[1]) * len(self.kinds)
        if self.count >= places:
            raise InputError(
                f"Expected `count` below the {places} sublayers of the model ({self.target}) but "
                f"got {self.count}."
            )

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        if len(self._left(model)) <= self._kept(model):
            return
        for block in decoder_blocks(model)[1]:
            device = next(block.parameters()).device
            yield {
                kind: Probe(MeanDistance("cosine", device), at="residual") for kind in self.kinds
            }

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        left = self._left(model)
        missing = len(left) - self._kept(model)
        if missing <= 0:
            return False
        distances = {place: float(probes[place[0]][place[1]].statistic.value) for place in left}
        chosen = sorted(left, key=lambda place: distances[place])  # stable: first block first
        blocks = decoder_blocks(model)[1]
        for index, kind in chosen[: 1 if self.rescore else missing]:
            drop_(blocks[index], kind)
        return self.rescore and missing > 1

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        sublayers(block)  # raises if the family is unknown
        return {}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Do nothing: `decide` dropped the sublayers."""

    def _left(self, model: PreTrainedModel) -> list[tuple[int, str]]:
        """Block index and kind of each sublayer that no earlier round dropped."""
        return [
            (index, kind)
            for index, block in enumerate(each_whole(decoder_blocks(model)[1]))
            for kind in self.kinds
            if not is_dropped(block, kind)
        ]

    def _kept(self, model: PreTrainedModel) -> int:
        """Number of sublayers that stay in the end."""
        return len(decoder_blocks(model)[1]) * len(self.kinds) - self.count
