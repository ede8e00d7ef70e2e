"""Lightning's rich progress bar with the name of the task."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.markup import escape


class TaskProgressBar(RichProgressBar):
    """Show which task is being measured, its batches and their rate.

    The command line adds it to every run, unless `trainer.enable_progress_bar` is false.

    Example:
        >>> from prunelit import PruneTrainer
        >>> from prunelit.callbacks import TaskProgressBar
        >>> bar = TaskProgressBar()
        >>> bar.validation_description
        'Validation'
        >>> trainer = PruneTrainer(accelerator="cpu", callbacks=[bar], logger=False)
    """

    variant = ""  # of a sweep or a search, whose bar leaves the screen when the variant is done
    _task_name = "Validation"

    @property
    def validation_description(self) -> str:
        """Name of the current task, after that of the variant."""
        return f"{self.variant} {self._task_name}" if self.variant else self._task_name

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the bar; that of a variant leaves no line."""
        super().on_validation_start(trainer, pl_module)
        if self.progress is not None:
            self.progress.live.transient = bool(self.variant)

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show the name of the task that the batch belongs to."""
        name = list(trainer.datamodule.tasks)[dataloader_idx]  # type: ignore[attr-defined]
        self._task_name = escape(name)  # rich would read `[red]` as a colour
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
