"""Checkpoints that a stopped run goes on from, and the best weights of recovery."""

import os
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer, callbacks


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that a kill leaves the one before."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Called by Lightning on rank 0."""
        assert storage_options is None, "Options of remote storage mean nothing to a local file."
        partial = Path(f"{path}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, partial)
        os.replace(partial, path)


class LastCheckpoint(callbacks.ModelCheckpoint):
    """Keeps `last.ckpt`, what `--ckpt_path last` goes on from.

    Every run that trains has one; add another to choose how often it is written.

    Args:
        dirpath: its folder; the command line's own is `checkpoints` under
            `trainer.default_root_dir`.
        every_n_train_steps: written after so many optimizer steps; None is after every epoch.
    """

    def __init__(self, dirpath: str, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename=self.CHECKPOINT_NAME_LAST,
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Keeps `best.ckpt`, the best weights after the last round; `fit` then writes these.

    Earlier rounds do not count: a model that is pruned less scores better.

    Args:
        dirpath: its folder.
        monitor: a logged metric, such as `val/perplexity/nll`.
        mode: whether the lowest (`min`) or the highest (`max`) is best.
    """

    def __init__(self, dirpath: str, monitor: str, mode: Literal["min", "max"] = "min") -> None:
        super().__init__(
            dirpath=dirpath,
            filename="best",
            monitor=monitor,
            mode=mode,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning."""
        if not _rounds_left(pl_module):
            super().on_validation_end(trainer, pl_module)


class EarlyStopping(callbacks.EarlyStopping):
    """Stops recovery when a metric no longer improves, counted from the last round on.

    Args:
        monitor: a logged metric, such as `val/perplexity/nll`.
        mode: whether lower (`min`) or higher (`max`) is better.
        patience: validations without improvement.
        min_delta: a smaller change is no improvement, in the metric's unit.
    """

    def __init__(
        self,
        monitor: str,
        mode: Literal["min", "max"] = "min",
        patience: int = 3,
        min_delta: float = 0.0,
    ) -> None:
        super().__init__(
            monitor=monitor,
            mode=mode,
            patience=patience,
            min_delta=min_delta,
            check_on_train_epoch_end=False,
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Called by Lightning."""
        if not _rounds_left(pl_module):
            super().on_validation_end(trainer, pl_module)


def _rounds_left(module: LightningModule) -> int:
    return getattr(module, "rounds_left", 0)
