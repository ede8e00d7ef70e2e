"""Keep on disk what a method finds in a model: another ratio needs no new pass."""

import platform
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.activations import Statistic
from prunelit.data.batches import Batch
from prunelit.models.architecture import decoder_blocks
from prunelit.models.dense_answers import open_answers
from prunelit.pruners.base import Probe, Pruner
from prunelit.recipe import describe


class _Saved:
    """Findings of a method, beside what the dense model gave to the tasks, see `DenseAnswers`.

    The name of a file is a hash of the weights, the text, the method without some options, and the
    numerics.

    Args:
        model: that is looked at.
        pruner: the method.
        amounts: its options that decide nothing of what it finds.
        batches: the calibration text of all ranks.
        device: where the blocks compute.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pruner: Pruner,
        amounts: Sequence[str],
        batches: Sequence[Batch],
        device: torch.device,
    ) -> None:
        self._model = model
        self._pruner = pruner
        recipe: dict[str, Any] = describe(pruner)
        arguments = recipe["init_args"]
        recipe["init_args"] = {k: v for k, v in arguments.items() if k not in amounts}
        # The last bits of a sum depend on the processes that share it.
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self._inputs = [recipe, list(batches), str(device), world]
        self._answers = open_answers(model)
        self._key = ""

    def _find(
        self,
        function: Callable[..., Any],
        more: Sequence[Any] = (),
        what: str = "found in the calibration text",
    ) -> dict[str, Tensor] | None:
        """Read what a function found; None if any rank has nothing for the model as it is.

        Every rank must call it.

        Args:
            function: of the method.
            more: what its result depends on beside the inputs of all.
            what: it did, in words.
        """
        found = None
        if self._answers is not None:
            self._key = self._answers.key(function, [*self._inputs, *more], {})
            found = self._answers.find(self._key)
        if not _all(found is not None, self._model.device) or found is None:
            return None
        where = "" if self._answers is None else f" from {str(self._answers.folder)!r}"
        rank_zero_info(
            f"What {type(self._pruner).__name__} {what} was read{where}: "
            "`--model.dense_cache false` measures it again."
        )
        return found

    def _keep(self, found: dict[str, Tensor]) -> None:
        """Keep what was found; `_find` gave nothing."""
        if self._answers is not None:
            self._answers.keep(self._key, found)


class SavedLook(_Saved):
    """Reads and writes what `Pruner.look` finds, for a method that names its `amounts`."""

    def read(self) -> list[dict[str, Probe]] | None:
        """Read the probes of each block, filled; None if there are none.

        Every rank must call it.
        """
        if (found := self._find(type(self._pruner).look)) is None:
            return None
        probes: list[dict[str, Probe]] = [{} for _ in decoder_blocks(self._model)[1]]
        for name, value in found.items():
            index, _, own = name.partition("/")
            probes[int(index)][own] = Probe(_Known(value.to(self._model.device)))
        return probes

    def write(self, probes: Sequence[dict[str, Probe]]) -> None:
        """Keep the values of the probes of each block; `read` gave none."""
        self._keep(
            {
                f"{index}/{name}": probe.statistic.value
                for index, own in enumerate(probes)
                for name, probe in own.items()
            }
        )


class SavedChanges(_Saved):
    """Reads and writes what was measured of the first `Pruner.alternatives`, and times."""

    def read(self) -> list[float] | None:
        """Read what `settle` gets; None if there is nothing. Every rank must call it."""
        found = self._find(type(self._pruner).alternatives)
        return None if found is None else found["changes"].tolist()

    def write(self, changes: Sequence[float]) -> None:
        """Keep what `settle` gets; `read` gave nothing."""
        self._keep({"changes": torch.tensor(changes, dtype=torch.float64)})

    def read_times(self) -> list[float] | None:
        """Read what `Pruner.times` gave on this machine; None if there is nothing."""
        options = [vars(self._pruner)[name] for name in self._pruner.timed]
        more = [platform.node(), str(self._model.dtype), options]
        found = self._find(type(self._pruner).times, more, "timed on this machine")
        return None if found is None else found["seconds"].tolist()

    def write_times(self, seconds: Sequence[float]) -> None:
        """Keep what `Pruner.times` gave; `read_times` gave nothing."""
        self._keep({"seconds": torch.tensor(seconds, dtype=torch.float64)})


class _Known(Statistic):
    """A statistic of which only the result is known.

    Args:
        value: the result.
    """

    def __init__(self, value: Tensor) -> None:
        self._value = value

    def update(self, *x: Any) -> None:
        raise AssertionError("it has all tokens already")

    def all_reduce_(self) -> None:
        """Do nothing: it is that of all ranks."""

    @property
    def value(self) -> Tensor:
        return self._value


def _all(value: bool, device: torch.device) -> bool:
    """Return True if it is true on every rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return value
    agreed = torch.tensor(value, dtype=torch.int32, device=device)
    dist.all_reduce(agreed, dist.ReduceOp.MIN)
    return bool(agreed)
