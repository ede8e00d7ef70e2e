"""Lightning's rich progress bar with the name of the task."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class TaskProgressBar(RichProgressBar):
    """Shows which task is being measured, its batches and their rate."""

    _task_name = "Validation"

    @property
    def validation_description(self) -> str:
        """The name of the current task."""
        return self._task_name

    def on_validation_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Called by Lightning: a new loader is a new task."""
        self._task_name = list(trainer.datamodule.tasks)[dataloader_idx]  # type: ignore[attr-defined]
        super().on_validation_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
