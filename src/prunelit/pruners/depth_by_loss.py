"""Drop the blocks or sublayers without which the output changes least."""

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from prunelit.errors import InputError, check_whole
from prunelit.models.variation import Variation
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.places import Target, drop_lowest, find_dropped, find_places, variation_at


class DepthByLoss(Pruner):
    """Drop the blocks or sublayers without which the model's output is worst by least.

    The calibration text runs through the model without each of them. Blocks by the loss are those
    of Shortened LLaMA (Kim et al. 2024, arXiv:2402.02834, section 3.2, which takes the perplexity);
    with `rescore`, those of SLEB (Song et al. 2024, arXiv:2402.09025, algorithm 1). The KL
    divergence from the dense model is the default here. `BlockDrop` and `SublayerDrop` compare what
    goes into a part with what comes out of it instead, in one pass.

    One scoring takes about half a forward pass for each part, and one sweep over the weights for
    each batch. The hidden states of a batch are held once for each part.

    Args:
        count: number of parts to drop.
        target: `block`; `attention`; `mixer`, which is attention or what a block has in its place;
            `mlp`; or `both`, which ranks mixers and MLPs together.
        measure: `kl`, KL(dense || pruned) of the next token, mean over tokens, in nats; or `loss`,
            the mean negative log-likelihood of the next token, in nats.
        rescore: measure again after each drop (greedy), `count` times in all.
        tokens: number of tokens of the text at which outputs are compared, spread evenly; None
            compares all. The other tokens are context.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import DepthByLoss
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=3, num_attention_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, DepthByLoss(1), torch.arange(64).view(4, 16))
        >>> len(model.model.layers)
        2
    """

    shrinks = True
    drops_sublayers = True
    settled = ("count", "rescore")

    def __init__(
        self,
        count: int = 1,
        target: Target = "block",
        measure: Literal["kl", "loss"] = "kl",
        rescore: bool = False,
        tokens: int | None = None,
    ) -> None:
        targets, measures = ("block", "attention", "mixer", "mlp", "both"), ("kl", "loss")
        if count < 1 or target not in targets or measure not in measures:
            raise InputError(
                f"Expected `count` of at least 1, `target` {', '.join(targets)} and `measure` kl "
                f"or loss but got {count}, {target!r} and {measure!r}."
            )
        if tokens is not None:
            check_whole("tokens", tokens, 1)
        self.count = count
        self.target: Target = target
        self.measure: Literal["kl", "loss"] = measure
        self.rescore = rescore
        self.tokens = tokens
        self.drops_blocks = target == "block"

    def scale(self, fraction: float) -> "DepthByLoss":
        other = copy.copy(self)
        other.count = math.ceil(round(fraction * self.count, 9))
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        find_places(model, self.target, self.count)

    def measured(self, model: PreTrainedModel) -> tuple[int, int]:
        parts = len(find_places(model, self.target, self.count))
        times = self.count if self.rescore else 1
        return times, sum(parts - number for number in range(times))

    def alternatives(self, model: PreTrainedModel) -> Sequence[Variation]:
        places = find_places(model, self.target, self.count)
        dropped = find_dropped(model, places)
        if len(dropped) >= self.count:
            return []
        return [variation_at(model, place) for place in places if place not in dropped]

    def settle(self, model: PreTrainedModel, changes: Sequence[float]) -> bool:
        places = find_places(model, self.target, self.count)
        dropped = find_dropped(model, places)
        missing = self.count - len(dropped)
        left = [place for place in places if place not in dropped]
        found = dict(zip(left, changes, strict=True))
        drop_lowest(model, dropped, found, 1 if self.rescore else missing)
        return self.rescore and missing > 1

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Do nothing: `settle` dropped the parts."""
