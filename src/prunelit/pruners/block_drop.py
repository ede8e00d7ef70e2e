"""Drop whole blocks that change their input least."""

import copy
import math
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks, sublayers
from prunelit.models.surgery import drop_, is_dropped
from prunelit.pruners.base import Probe, Pruner
from prunelit.statistics import MeanDistance, Statistic


class BlockDrop(Pruner):
    """Drop blocks whose output is most like their input.

    Apart, each scored alone (ShortGPT, Men et al. 2024, arXiv:2403.03853, block influence); or the
    best run of `count` neighbours, scored from the input of its first block to the output of its
    last (Gromov et al. 2024, arXiv:2403.17887, eq. 6). Dropping zeroes the last linear maps of
    both sublayers; saving the model removes the blocks.

    Args:
        count: blocks that are dropped in the end.
        consecutive: drop neighbours. Holds `count` hidden states of every calibration batch.
        distance: `cosine`, 1 - cos, or `angular`, arccos(cos) / pi.

    Differs from the source: distances are means over all tokens; Gromov et al. read the last token
    of each sequence.
    """

    shrinks = True

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
        count = len(decoder_blocks(model)[1])
        if self.count >= count:
            raise InputError(
                f"Expected fewer than the model's {count} blocks but got `count` {self.count}."
            )

    def look(self, model: PreTrainedModel) -> Iterable[dict[str, Probe]]:
        _, blocks = decoder_blocks(model)
        if len(_find_dropped(blocks)) >= self.count:
            return
        history: deque[list[Tensor]] = deque(maxlen=self._length)
        for block in blocks:
            history.append([])
            device = next(block.parameters()).device
            yield {"block": Probe(_RunDistance(history, self.distance, device), at="residual")}

    def decide(self, model: PreTrainedModel, probes: list[dict[str, Probe]]) -> bool:
        _, blocks = decoder_blocks(model)
        before = _find_dropped(blocks)
        if len(before) >= self.count:
            return False
        # The score of block i is that of the run of blocks that begins with it.
        scores = {
            last - self._length + 1: float(probes[last]["block"].statistic.value)
            for last in range(self._length - 1, len(blocks))
        }
        for index in self._choose(scores, before):
            for kind in ("attention", "mlp"):
                drop_(blocks[index], kind)
        return False

    @property
    def _length(self) -> int:
        """Number of blocks that are scored together."""
        return self.count if self.consecutive else 1

    def _choose(self, scores: dict[int, float], before: set[int]) -> list[int]:
        """Indices to drop; those of `before`, an earlier round's, are among them."""
        if not self.consecutive:
            ranked = sorted(scores, key=lambda i: (i not in before, scores[i]))
            return ranked[: self.count]
        runs = [first for first in scores if before <= set(range(first, first + self._length))]
        if not runs:
            raise InputError(
                f"Expected the blocks {sorted(before)}, which are dropped already, to lie within "
                f"{self.count} neighbours."
            )
        best = min(runs, key=lambda first: scores[first])
        return list(range(best, best + self._length))

    def watch(self, block: nn.Module) -> dict[str, Probe]:
        sublayers(block)  # refuses what it does not know
        return {}

    def prune_block(self, block: nn.Module, probes: Mapping[str, Probe]) -> None:
        """Do nothing: `decide` dropped the blocks."""


def _find_dropped(blocks: nn.ModuleList) -> set[int]:
    """Indices of the blocks that an earlier round dropped."""
    return {
        index
        for index, block in enumerate(blocks)
        if is_dropped(block, "attention") and is_dropped(block, "mlp")
    }


class _RunDistance(Statistic):
    """Distance from the input of the block `length` - 1 places before to this block's output.

    Args:
        history: hidden states before the last `length` blocks, a list of batches each; the last
            list is this block's own.
        kind: of distance.
        device: where to accumulate.
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
        """Scalar; raises for the first blocks, where no run ends."""
        return self._distance.value
