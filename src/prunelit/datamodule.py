"""Calibration tokens and the list of tasks."""

from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.batches import Batch, as_batches
from prunelit.errors import InputError
from prunelit.rows import load_texts
from prunelit.tasks.base import RankBatches, Task
from prunelit.tokens import pack


@dataclass
class Calibration:
    """Text that pruning is calibrated on.

    Args:
        path: text rows, see `prunelit.rows.load_rows`.
        split: of the data set; slice it to keep text apart for the tasks (`train[:70%]`).
        column: that holds the text.
        sequences: S.
        length: L, tokens a sequence.
        batch_size: sequences a forward pass.
        seed: of the order of the documents.
    """

    path: str
    split: str = "train"
    column: str = "text"
    sequences: int = 128
    length: int = 512
    batch_size: int = 8
    seed: int = 0


class PruneData(LightningDataModule):
    """Everything a run reads: what it calibrates on and what it measures.

    Batches of a task are dealt to ranks by stride, without padding, and do not depend on the number
    of ranks.

    Args:
        calibration: the text to calibrate on; None where the pruner is given none.
        tasks: what to measure, each with a name of its own.
    """

    def __init__(self, calibration: Calibration | None = None, tasks: list[Task] | None = None):
        super().__init__()
        self.calibration = calibration
        self.tasks = {task.name: task for task in tasks or []}
        if len(self.tasks) != len(tasks or []):
            names = [task.name for task in tasks or []]
            raise InputError(f"Expected tasks with distinct names but got {names}.")
        self.sizes: dict[str, int] = {}
        self.calibration_tokens: Tensor | None = None
        self._documents: list[str] | None = None
        self._read = False

    def prepare_data(self) -> None:
        """Called by Lightning on one process a machine: fills the caches of hub data sets."""
        self.read()

    def setup(self, stage: str) -> None:
        """Called by Lightning on every rank before the model's weights are loaded."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        self.prepare(module.tokenizer)

    def read(self) -> None:
        """Read all rows; needs no tokenizer.

        Raises:
            InputError: if a file is missing, broken, empty or lacks a column.
        """
        if self._read:
            return
        if self.calibration is not None:
            source = self.calibration
            self._documents = load_texts(source.path, column=source.column, split=source.split)
        for task in self.tasks.values():
            task.read()
        self._read = True

    def prepare(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Read and tokenise; the way to use this class without a Trainer.

        Raises:
            InputError: as `read`, or if there is too little text.
        """
        self.read()
        if self.calibration is not None and self.calibration_tokens is None:
            assert self._documents is not None
            self.calibration_tokens = pack(
                self._documents,
                tokenizer,
                sequences=self.calibration.sequences,
                length=self.calibration.length,
                seed=self.calibration.seed,
            )
        for name, task in self.tasks.items():
            if name not in self.sizes:
                self.sizes[name] = task.prepare(tokenizer)

    def calibration_batches(self) -> list[Batch] | None:
        """The calibration batches of all ranks; None if the configuration gives no text."""
        if self.calibration is None:
            return None
        assert self.calibration_tokens is not None
        return as_batches(self.calibration_tokens, self.calibration.batch_size)

    def train_dataloader(self) -> list[Batch]:
        """Called by Lightning in `fit`, which here has no training steps: calibration batches."""
        return self.calibration_batches() or []

    def val_dataloader(self) -> dict[str, RankBatches]:
        """This rank's batches of every task, by the task's name."""
        assert self.trainer is not None
        rank, world = self.trainer.global_rank, self.trainer.world_size
        return {
            name: task.batches(self.sizes[name], rank, world) for name, task in self.tasks.items()
        }
