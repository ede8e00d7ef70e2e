"""The data of a run: text to calibrate on, text to train on, and the tasks."""

from dataclasses import replace
from typing import Any

from lightning.pytorch import LightningDataModule
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prunelit.arguments import checked
from prunelit.core.calibration_text import CalibrationText
from prunelit.core.conveyor import Flights
from prunelit.core.recovery_text import EpochBatches, RecoveryText
from prunelit.data.batches import Batch, as_batches
from prunelit.data.rows import load_texts
from prunelit.data.tokens import pack
from prunelit.errors import InputError
from prunelit.tasks import MultipleChoice
from prunelit.tasks.base import RankBatches, Task
from prunelit.tasks.triad import triad_tasks


@checked
class PruneData(LightningDataModule):
    """The data of a run: text to calibrate on, text to train on, and the tasks.

    Rank r of R gets the batches r, r + R, r + 2R, ... of a task. The batches are the same for every
    number of ranks.

    Args:
        calibration: the text to calibrate on; None for pruners that need none.
        tasks: measured on both models; each needs its own name. None measures nothing, for `fit`.
        recovery: the text to train on; needed if `trainer.max_epochs` is not 0.
        allow_code_execution: run programs that a model wrote, in tasks that judge them by running.
        triad: add a retrieval task and a generation task on the rows of every `MultipleChoice`
            task, see `prunelit.tasks.triad`.

    Example:
        >>> from prunelit import CalibrationText, PruneData
        >>> from prunelit.tasks import MultipleChoice
        >>> facts = MultipleChoice("prunelit:facts.jsonl", name="facts")
        >>> text = CalibrationText("prunelit:facts.jsonl", column="context", sequences=8, length=64)
        >>> data = PruneData(text, [facts], triad=True)
        >>> list(data.tasks)
        ['facts', 'facts_retrieval', 'facts_generation']
    """

    def __init__(
        self,
        calibration: CalibrationText | None = None,
        tasks: list[Task] | None = None,
        recovery: RecoveryText | None = None,
        allow_code_execution: bool = False,
        triad: bool = False,
    ):
        super().__init__()
        self.calibration = calibration
        self.recovery = recovery
        if tasks is not None and not tasks:
            raise InputError(
                "Expected at least one task in `data.tasks` but got none: give one, or leave "
                "`tasks` out, and `fit` prunes without a measurement."
            )
        every = list(tasks or [])
        if triad:
            choices = [task for task in every if isinstance(task, MultipleChoice)]
            if not choices:
                raise InputError("Expected a `MultipleChoice` task with `triad` but there is none.")
            every += [further for task in choices for further in triad_tasks(task)]
        self.tasks = {task.name: task for task in every}
        if len(self.tasks) != len(every):
            names = [task.name for task in every]
            raise InputError(f"Expected tasks with distinct names but got {names}.")
        if allow_code_execution:
            for task in self.tasks.values():
                task.allow_code_execution()
        self.sizes: dict[str, int] = {}
        self.calibration_tokens: Tensor | None = None
        self.recovery_tokens: Tensor | None = None
        self.measures = True  # False gives no batch of any task, for a run that only checks
        self._documents: dict[str, list[str]] = {}
        self._read = False

    def uses(self) -> list[str]:
        """Return the uses of the model that the tasks measure."""
        return list(dict.fromkeys(task.use for task in self.tasks.values() if task.use is not None))

    def prepare_data(self) -> None:
        """Read all rows in one process per machine, which fills the cache of the hub."""
        self.read()

    def setup(self, stage: str) -> None:
        """Read and tokenise all data on every rank, before the weights are read."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        self.prepare(module.tokenizer, module.weights.other_tokenizer)

    def read(self) -> None:
        """Read all rows; needs no tokenizer.

        Raises:
            InputError: if a file is missing, broken, empty or lacks a column.
        """
        if self._read:
            return
        for name, source in (("calibration", self.calibration), ("recovery", self.recovery)):
            if source is not None:
                self._documents[name] = load_texts(
                    source.path,
                    column=source.column,
                    split=source.split,
                    documents=source.documents,
                    name=source.subset,
                )
        for task in self.tasks.values():
            task.read()
        self._read = True

    def prepare(
        self, tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase | None = None
    ) -> None:
        """Read and tokenise all data; call it to use this class without a Trainer.

        Args:
            tokenizer: of the model.
            other: of a candidate with another vocabulary.

        Raises:
            InputError: as `read`, or if there is too little text.
        """
        self.read()
        if self.calibration is not None and self.calibration_tokens is None:
            self.calibration_tokens = self._pack("calibration", self.calibration, tokenizer)
        if self.recovery is not None and self.recovery_tokens is None:
            self.recovery_tokens = self._pack("recovery", self.recovery, tokenizer)
        for name, task in self.tasks.items():
            if name not in self.sizes:
                self.sizes[name] = task.prepare(tokenizer)
            task.prepare_twin(other if task.own_tokenizers else None)

    def draw_calibration(self, seed: int) -> None:
        """Take other calibration text: the next `prepare` draws it from the same documents.

        Args:
            seed: of the order of the documents.
        """
        assert self.calibration is not None
        if seed != self.calibration.seed:
            self.calibration = replace(self.calibration, seed=seed)
            self.calibration_tokens = None

    def _pack(
        self, name: str, text: CalibrationText | RecoveryText, tokenizer: PreTrainedTokenizerBase
    ) -> Tensor:
        return pack(
            self._documents[name],
            tokenizer,
            sequences=text.sequences,
            length=text.length,
            seed=text.seed,
            bos=text.bos,
        )

    def recovery_batches(self) -> EpochBatches:
        """Return this rank's batches of recovery text.

        Raises:
            InputError: if there is no recovery text, or not a whole batch for each rank.
        """
        assert self.trainer is not None
        if self.recovery is None or self.recovery_tokens is None:
            raise InputError(
                "Expected `data.recovery`, text to train on, since max_epochs is not 0."
            )
        batches = EpochBatches(
            self.recovery_tokens,
            self.recovery.batch_size,
            self.recovery.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            lambda: self.trainer.current_epoch,  # type: ignore[union-attr]
        )
        if not len(batches):
            raise InputError(
                f"Expected at least a batch of {self.recovery.batch_size} recovery sequences for "
                f"each of {self.trainer.world_size} ranks but got {self.recovery.sequences}."
            )
        return batches

    def calibration_batches(self) -> list[Batch] | None:
        """Return the calibration batches of all ranks; None without a calibration text."""
        if self.calibration is None:
            return None
        assert self.calibration_tokens is not None
        return as_batches(self.calibration_tokens, self.calibration.batch_size)

    def train_dataloader(self) -> list[Batch] | EpochBatches:
        """Return the batches to train on; without training, any that are not empty."""
        assert self.trainer is not None
        if self.trainer.max_epochs == 0:
            return self.calibration_batches() or [{}]
        return self.recovery_batches()

    def val_dataloader(self) -> dict[str, RankBatches] | dict[str, Flights]:
        """Return this rank's batches of every task, or flights of them, by the task's name."""
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        # The ranks that compute a model together have the same batches.
        rank, world = (
            n // module.together for n in (self.trainer.global_rank, self.trainer.world_size)
        )
        tasks = self.tasks if self.measures else {}
        every = {name: task.batches(self.sizes[name], rank, world) for name, task in tasks.items()}
        if module.in_flight is None:
            return every
        return {name: Flights(batches, module.in_flight) for name, batches in every.items()}
