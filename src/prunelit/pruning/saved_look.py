"""Keep on disk what a method finds when it looks at a model: another ratio needs no new pass."""

from collections.abc import Sequence
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


class SavedLook:
    """Reads and writes what `Pruner.look` finds, for a method that names its `amounts`.

    It lies beside what the dense model gave to the tasks, see `DenseAnswers`: the name of a file is
    a hash of the weights, the text, the method without its amounts, and the numerics.

    Args:
        model: that is looked at.
        pruner: the method.
        batches: the calibration text of all ranks.
        device: where the blocks compute.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pruner: Pruner,
        batches: Sequence[Batch],
        device: torch.device,
    ) -> None:
        self._model = model
        self._pruner = pruner
        recipe: dict[str, Any] = describe(pruner)
        arguments = recipe["init_args"]
        recipe["init_args"] = {k: v for k, v in arguments.items() if k not in pruner.amounts}
        # The last bits of a sum depend on the processes that share it.
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        self._inputs = [recipe, list(batches), str(device), world]
        self._answers = open_answers(model)
        self._key = ""

    def read(self) -> list[dict[str, Probe]] | None:
        """Read the probes of each block, filled; None if any rank has none for the model as it is.

        Every rank must call it.
        """
        found = None
        if self._answers is not None:
            self._key = self._answers.key(type(self._pruner).look, self._inputs, {})
            found = self._answers.find(self._key)
        if not _all(found is not None, self._model.device) or found is None:
            return None
        where = "" if self._answers is None else f" from {str(self._answers.folder)!r}"
        rank_zero_info(
            f"What {type(self._pruner).__name__} found in the calibration text was read{where}: "
            "`--model.dense_cache false` measures it again."
        )
        probes: list[dict[str, Probe]] = [{} for _ in decoder_blocks(self._model)[1]]
        for name, value in found.items():
            index, _, own = name.partition("/")
            probes[int(index)][own] = Probe(_Known(value.to(self._model.device)))
        return probes

    def write(self, probes: Sequence[dict[str, Probe]]) -> None:
        """Keep the values of the probes of each block; `read` gave none."""
        if self._answers is not None:
            found = {
                f"{index}/{name}": probe.statistic.value
                for index, own in enumerate(probes)
                for name, probe in own.items()
            }
            self._answers.keep(self._key, found)


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
