"""Checkpoints to resume a stopped training.

An evaluation that stopped resumes from `prunelit/core/resume.py`.
"""

import os
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer, callbacks

from prunelit.arguments import checked
from prunelit.callbacks.sharded_checkpoint import PLAIN, check_shards, is_sharded
from prunelit.core.private_api import optimizer_stepped, validation_follows
from prunelit.core.signals import Stopped, finish_first, requested
from prunelit.errors import InputError, first_line
from prunelit.files import replace_file


class WholeFileCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint to a temporary file and rename it; a kill leaves the last one."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write the file; rank 0 only."""
        assert storage_options is None, "Expected no `storage_options` for a local file."
        size = sum(tensor.nbytes for tensor in _tensors(checkpoint))
        with replace_file(path, size=size) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _tensors(item)


@checked
class LastCheckpoint(callbacks.ModelCheckpoint):
    """Keep `last.ckpt`, from which `--ckpt_path last` continues a run.

    The command line adds one to every run that trains; add another to choose how often it is
    written. If a validation is due after this step, the checkpoint waits for the next step or the
    end of the epoch, so that it includes the callbacks' new state.

    A signal that asks the run to end (see `prunelit.PruneTrainer`) makes a checkpoint due, and the
    run ends when it is written.

    Args:
        dirpath: folder of the checkpoint; the command line uses `checkpoints` under
            `trainer.default_root_dir`.
        every_n_train_steps: number of optimizer steps between two checkpoints; None writes one
            after every epoch.

    Example:
        >>> from prunelit.callbacks import LastCheckpoint
        >>> LastCheckpoint("run/checkpoints", every_n_train_steps=100).every_n_train_steps
        100
    """

    def __init__(self, dirpath: str, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise InputError(
                f"Expected `every_n_train_steps` of at least 1 but got {every_n_train_steps}."
            )
        super().__init__(
            dirpath=dirpath,
            filename=self.CHECKPOINT_NAME_LAST,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.every_n_train_steps = every_n_train_steps
        self.starts_anew = False  # True in `PruneTrainer.fit` without `ckpt_path`
        self._due = False

    @property
    def path(self) -> Path:
        """Path of the checkpoint."""
        assert self.dirpath is not None
        return Path(self.dirpath) / f"{self.filename}.ckpt"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal wait for a checkpoint."""
        super().on_train_start(trainer, pl_module)
        notice = "The run ends when this step has its checkpoint; another signal ends it at once."
        finish_first(notice if trainer.is_global_zero else "")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a signal end the run at once."""
        finish_first(None)
        super().on_train_end(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Let a signal end the run at once."""
        finish_first(None)
        super().on_exception(trainer, pl_module, exception)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write if enough optimizer steps are done and no validation is due now."""
        if not optimizer_stepped(trainer):
            return
        every, stop = self.every_n_train_steps, _stop_requested(trainer)
        self._due = self._due or stop or (every is not None and trainer.global_step % every == 0)
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if last or validation_follows(trainer):
            return
        if self._due:
            self._save(trainer, stop)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write after an epoch and its validation."""
        stop = _stop_requested(trainer)
        if self.every_n_train_steps is None or self._due or stop:
            self._save(trainer, stop)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write nothing: the callbacks' state is not complete yet."""

    def _save(self, trainer: Trainer, stop: bool) -> None:
        self._due = False
        trainer.save_checkpoint(self.path)
        if stop:
            # Without a signal here, another rank has one.
            raise Stopped(requested() or signal.SIGTERM, everywhere=True)


def last_callbacks(trainer: Trainer) -> list[LastCheckpoint]:
    """List the callbacks of a run that write its last checkpoint."""
    return [c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)]


def last_checkpoints(trainer: Trainer, to_overwrite: bool = False) -> list[Path]:
    """List the files of `LastCheckpoint` that exist.

    Args:
        trainer: of the run.
        to_overwrite: only those that a training which starts anew will overwrite.
    """
    trains = trainer.max_epochs != 0
    return [
        callback.path
        for callback in last_callbacks(trainer)
        if callback.path.exists() and ((callback.starts_anew and trains) or not to_overwrite)
    ]


def read_checkpoint(path: str | Path, *, checksums: bool = False) -> dict[str, Any]:
    """Read a checkpoint without the values of its tensors, which have shapes only.

    It runs no code. What it has read can be read again by Lightning and torch, which would.

    Args:
        path: of the file, or of the folder of a run that shards weights.
        checksums: compare the checksum of every tensor. This reads the whole file; Lightning reads
            it again, since torch compares no checksums.

    Raises:
        InputError: naming the file that is missing, damaged, with code, or of another kind.
    """
    if not os.path.isfile(path) and not is_sharded(path):
        raise InputError(f"Expected a checkpoint, or `last`, but there is no file {str(path)!r}.")
    then = "continue from another one, or remove it and start without `ckpt_path`."
    try:
        if is_sharded(path):
            damaged = check_shards(Path(path), checksums)
            path = Path(path) / PLAIN
        else:
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip() if checksums else None
        content = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    except Exception as error:
        raise InputError(
            f"The checkpoint {str(path)!r} is damaged and cannot be read "
            f"({first_line(error)}): {then}"
        ) from error
    if damaged is not None:
        raise InputError(
            f"The checkpoint {str(path)!r} is damaged: its part {damaged!r} is not what was "
            f"written: {then}"
        )
    kinds = {"callbacks": dict, "loops": dict, "epoch": int, "global_step": int}
    if Path(path).name != PLAIN:
        kinds["state_dict"] = dict
    keys = set(kinds)
    if not isinstance(content, dict) or (keys := keys - content.keys()):
        raise InputError(
            f"{str(path)!r} is no checkpoint of a training, since it lacks {sorted(keys)}: {then}"
        )
    if other := sorted(key for key in kinds if not isinstance(content[key], kinds[key])):
        raise InputError(f"The checkpoint {str(path)!r} holds no valid {', '.join(other)}: {then}")
    return content


def checkpoint_folders(trainer: Trainer) -> list[str]:
    """List the folders of checkpoints; empty if the run writes none."""
    given = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [str(folder) for folder in given if folder is not None and trainer.max_epochs != 0]


def _stop_requested(trainer: Trainer) -> bool:
    """Return True if a signal asks the process of any rank to end."""
    return trainer.strategy.reduce_boolean_decision(requested() is not None, all=False)
