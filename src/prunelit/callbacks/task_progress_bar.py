"""Lightning's rich progress bar with the name of the task."""

import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.markup import escape
from rich.progress import TaskID


class TaskProgressBar(RichProgressBar):
    """Show which task is being measured, its batches and their rate.

    If batches are measured together, see `model.flight`, a batch of the bar is a flight of them,
    and a second bar counts the blocks of the model that came, with their rate.

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
    _blocks: TaskID | None = None  # bar of the blocks

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
        if isinstance(batch, list) and self.progress is not None:
            self._show_blocks(batch_idx == 0)
            pl_module.evaluation.watch = self._count_block  # type: ignore[union-attr]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hide the bar of the blocks."""
        super().on_validation_epoch_end(trainer, pl_module)
        if self._blocks is not None and self.progress is not None:
            self.progress.update(self._blocks, visible=False)
        self._blocks = None

    def _show_blocks(self, begins: bool) -> None:
        """Show the blocks of a task, which begins with its first flight."""
        assert self.progress is not None
        if begins and self._blocks is not None:
            self.progress.update(self._blocks, visible=False)
        if begins or self._blocks is None:
            # Nobody knows how many steps a text will take.
            style, words = self.theme.description, f"{self.validation_description} blocks"
            words = f"[{style}]{words}" if style else words
            self._blocks = self.progress.add_task(words, total=math.inf)

    def _count_block(self) -> None:
        assert self.progress is not None
        assert self._blocks is not None
        self.progress.update(self._blocks, advance=1)
        self.refresh()
