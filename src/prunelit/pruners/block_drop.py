"""Drop the blocks that change their input least."""

import copy
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.activations import MeanDistance, Statistic
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, device_of
from prunelit.pruners.base import Probe, Pruner
from prunelit.pruners.places import BLOCK, Place, drop_places, find_dropped, find_places


class BlockDrop(Pruner):
    """Drop the blocks whose output is closest to their input.

    Blocks are scored one by one (block influence of ShortGPT, Men et al. 2024, arXiv:2403.03853).
    Or runs of `count` neighbours are scored, from the input of the first block to the output of the
    last one (Gromov et al. 2024, arXiv:2403.17887, eq. 6). All weights of a dropped block's
    sublayers are 0 until `prunelit.prune` takes it out of the model.

    Args:
        count: number of blocks to drop.
        consecutive: drop neighbours. Keeps `count` hidden states of every calibration batch in
            memory.
        distance: `cosine`, 1 - cos, or `angular`, arccos(cos) / pi.

    Differs from the source: distances are means over all tokens; Gromov et al. use the last token
    of each sequence.

    Example:
        >>> import torch
        >>> from prunelit import prune
        >>> from prunelit.pruners import BlockDrop
        >>> from transformers import AutoModelForCausalLM, LlamaConfig
        >>> config = LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32,
        ...                      num_hidden_layers=3, num_attention_heads=2)
        >>> model = AutoModelForCausalLM.from_config(config)
        >>> report = prune(model, BlockDrop(1), torch.arange(64).view(4, 16))
        >>> len(model.model.layers), report.sparsity
        (2, 0.3333)
    """

    shrinks = True
    drops_sublayers = True
    drops_blocks = True

    def __init__(
        self,
        count: int = 1,
        consecutive: bool = False,
        distance: Literal["cosine", "angular"] = "cosine",
    ) -> None:
        if count < 1 or distance not in ("cosine", "angular"):
            raise InputError(
                f"Expected `count` of at least 1 and `distance` cosine or angular but got {count} "
                f"and {distance!r}."
            )
        self.count = count
        self.consecutive = consecutive
        self.distance: Literal["cosine", "angular"] = distance

    def scale(self, fraction: float) -> "BlockDrop":
        other = copy.copy(self)
        other.count = math.ceil(round(fraction * self.count, 9))
        return other

    def check(self, model: PreTrainedModel) -> None:
        super().check(model)
        find_places(model, BLOCK, self.count)

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        if len(self._dropped(model)) >= self.count:
            return
        history: deque[list[Tensor]] = deque(maxlen=self._length)
        for block in decoder_blocks(model)[1]:
            history.append([])
            device = device_of(block)
            yield {"block": Probe(_RunDistance(history, self.distance, device), at="residual")}

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        dropped = self._dropped(model)
        if len(dropped) >= self.count:
            return False
        # The score of block i is that of the run of blocks that begins with it.
        scores = {
            last - self._length + 1: float(probes[last]["block"].statistic.value)
            for last in range(self._length - 1, len(probes))
        }
        chosen = self._choose(scores, {index for index, _ in dropped})
        drop_places(model, dropped, [(index, BLOCK) for index in chosen])
        return False

    def _dropped(self, model: PreTrainedModel) -> list[Place]:
        """Blocks that an earlier round dropped."""
        return find_dropped(model, find_places(model, BLOCK, self.count))

    @property
    def _length(self) -> int:
        """Number of blocks that are scored together."""
        return self.count if self.consecutive else 1

    def _choose(self, scores: dict[int, float], before: set[int]) -> list[int]:
        """Choose the indices to drop; the blocks of an earlier round, `before`, are among them."""
        if not self.consecutive:
            ranked = sorted(scores, key=lambda i: (i not in before, scores[i]))
            return ranked[: self.count]
        runs = [first for first in scores if before <= set(range(first, first + self._length))]
        if not runs:
            raise InputError(
                f"Expected the dropped blocks {sorted(before)} of an earlier round to lie within "
                f"{self.count} neighbours, but they are further apart."
            )
        best = min(runs, key=lambda first: scores[first])
        return list(range(best, best + self._length))

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        return {}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Do nothing: `decide` dropped the blocks."""


class _RunDistance(Statistic):
    """Distance over a run of blocks that ends here, from the input of its first block.

    Args:
        history: inputs of the blocks of the run, one list of batches for each; the last list
            belongs to this block.
        kind: kind of distance.
        device: device of the sums.
    """

    def __init__(
        self, history: deque[list[Tensor]], kind: Literal["cosine", "angular"], device: object
    ) -> None:
        self._distance = MeanDistance(kind, device)  # type: ignore[arg-type]
        self._history = history

    def update(self, before: Tensor, after: Tensor) -> None:  # type: ignore[override]
        self._history[-1].append(before)
        if len(self._history) == self._history.maxlen:
            batch = len(self._history[-1]) - 1
            self._distance.update(self._history[0][batch], after)

    def all_reduce_(self) -> None:
        self._distance.all_reduce_()

    @property
    def value(self) -> Tensor:
        """Scalar; the first blocks have none, since no run ends there."""
        return self._distance.value
