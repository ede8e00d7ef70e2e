"""Checkpoints to resume a stopped training, and the best weights of recovery.

An evaluation that stopped resumes from `prunelit/resume.py`.
"""

import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer, callbacks

from prunelit.core.datamodule import PruneData
from prunelit.core.private_api import optimizer_stepped, validation_follows
from prunelit.core.signals import Stopped, finish_first, requested
from prunelit.errors import InputError, first_line
from prunelit.files import replace_file
from prunelit.recipe import describe


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
            raise Stopped(requested() or signal.SIGTERM)  # the signal of another rank


class BestCheckpoint(callbacks.ModelCheckpoint):
    """Keep `best.ckpt`, the best weights after the last round; `fit` writes them at the end.

    Validations before the last round do not count, since a model that is pruned less scores better.

    Args:
        dirpath: folder of the checkpoint.
        monitor: a logged metric, such as `val/perplexity/nll`.
        mode: `min` if the lowest value is best, `max` if the highest is.

    Example:
        >>> from prunelit.callbacks import BestCheckpoint
        >>> BestCheckpoint("run/checkpoints", monitor="val/perplexity/nll").monitor
        'val/perplexity/nll'
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
        """Compare the metric with the best so far, after the last round."""
        _check_monitor(self, trainer)
        if not _rounds_left(pl_module):
            super().on_validation_end(trainer, pl_module)

    def best_weights(self) -> dict[str, Any]:
        """Load the state of the module with the best `monitor`.

        Raises:
            InputError: if there was no validation after the last round.
        """
        if not self.best_model_path:
            raise InputError(
                f"`BestCheckpoint` never measured {self.monitor!r} after the last round of "
                "pruning, so no pruned model was written: validate more often, or train longer."
            )
        check_checkpoint(self.best_model_path)
        saved = torch.load(self.best_model_path, weights_only=True, map_location="cpu")
        return saved["state_dict"]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint; the best weights must be there.

        Raises:
            InputError: if they are not, or are damaged.
        """
        super().load_state_dict(state_dict)
        if self.best_model_path:
            check_checkpoint(self.best_model_path)


class EarlyStopping(callbacks.EarlyStopping):
    """Stop recovery if a metric no longer improves; validations before the last round do not count.

    Args:
        monitor: a logged metric, such as `val/perplexity/nll`.
        mode: `min` if lower is better, `max` if higher is better.
        patience: number of validations without improvement before the stop.
        min_delta: smallest change that counts as improvement, in the unit of the metric.

    Example:
        >>> from prunelit.callbacks import EarlyStopping
        >>> EarlyStopping(monitor="val/perplexity/nll", patience=2).patience
        2
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
        self._stopped = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not train on if this callback stopped the run before."""
        trainer.should_stop = trainer.should_stop or self._stopped

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look for an improvement, after the last round."""
        _check_monitor(self, trainer)
        if not _rounds_left(pl_module):
            before = trainer.should_stop
            super().on_validation_end(trainer, pl_module)
            self._stopped = self._stopped or (trainer.should_stop and not before)

    def state_dict(self) -> dict[str, Any]:
        """Collect the state for a checkpoint."""
        return {**super().state_dict(), "stopped": self._stopped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        super().load_state_dict(state_dict)
        self._stopped = state_dict["stopped"]


def selection_recipe(trainer: Trainer) -> list[Any]:
    """Describe the callbacks that stop training or choose the weights to write."""
    chosen = []
    for callback in _watchers(trainer):
        described = describe(callback)
        described["init_args"].pop("dirpath", None)
        every = [trainer.val_check_interval, trainer.check_val_every_n_epoch]
        chosen.append({**described, "validation": every})
    return chosen


def check_watchers(trainer: Trainer, data: PruneData) -> None:
    """Refuse callbacks that watch a metric which this run never measures.

    Args:
        trainer: trainer of a run that trains.
        data: prepared.

    Raises:
        InputError: names the callback.
    """
    watchers = _watchers(trainer)
    if sum(isinstance(callback, BestCheckpoint) for callback in watchers) > 1:
        raise InputError(
            "Expected one `BestCheckpoint`, as `fit` writes its weights, but got more."
        )
    for callback in watchers:
        parts = (callback.monitor or "").split("/")
        if len(parts) < 3 or parts[0] != "val" or parts[1] not in data.tasks:
            raise InputError(
                f"Expected `monitor` of `{type(callback).__name__}` as val/<task>/<metric> with a "
                f"task of {sorted(data.tasks)} but got {callback.monitor!r}."
            )
        an_epoch = batches_per_epoch(trainer, len(data.recovery_batches()))
        batches = an_epoch * (trainer.max_epochs or 0)
        if trainer.max_steps > 0:
            most = trainer.max_steps * trainer.accumulate_grad_batches
            batches = min(batches, most) if batches > 0 else most
        interval = trainer.val_check_interval
        never = trainer.check_val_every_n_epoch is None and isinstance(interval, int)
        if never and 0 < batches < interval:
            raise InputError(
                f"`{type(callback).__name__}` would never see a validation: `val_check_interval` "
                f"is {interval} batches and training has {batches}."
            )


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
        if callback.path.is_file() and ((callback.starts_anew and trains) or not to_overwrite)
    ]


def check_checkpoint(path: str | Path) -> dict[str, Any]:
    """Refuse a checkpoint that is missing, damaged or of another kind; compares every checksum.

    Returns:
        The checkpoint; its tensors have shapes but no values.

    Raises:
        InputError: naming the file.
    """
    if not Path(path).is_file():
        raise InputError(f"Expected a checkpoint, or `last`, but there is no file {str(path)!r}.")
    then = "continue from another one, or remove it and start without `ckpt_path`."
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()
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
    keys = {"state_dict", "callbacks", "loops", "epoch", "global_step"}
    if not isinstance(content, dict) or (keys := keys - content.keys()):
        raise InputError(
            f"{str(path)!r} is no checkpoint of a training, since it lacks {sorted(keys)}: {then}"
        )
    return content


def checkpoint_folders(trainer: Trainer) -> list[str]:
    """List the folders of checkpoints; empty if the run writes none."""
    given = [getattr(callback, "dirpath", None) for callback in trainer.checkpoint_callbacks]
    return [str(folder) for folder in given if folder is not None and trainer.max_epochs != 0]


def _stop_requested(trainer: Trainer) -> bool:
    """Return True if a signal asks the process of any rank to end."""
    return trainer.strategy.reduce_boolean_decision(requested() is not None, all=False)


def batches_per_epoch(trainer: Trainer, batches: int) -> int:
    """Count the batches of an epoch under `limit_train_batches`."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _watchers(trainer: Trainer) -> list[BestCheckpoint | EarlyStopping]:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if isinstance(c, BestCheckpoint | EarlyStopping)]


def _check_monitor(callback: BestCheckpoint | EarlyStopping, trainer: Trainer) -> None:
    """Refuse an unknown metric at the first validation, even before the last round."""
    if trainer.sanity_checking:
        return
    known = [name for name in trainer.callback_metrics if name.startswith("val/")]
    if trainer.state.fn == "fit" and callback.monitor not in trainer.callback_metrics:
        raise InputError(
            f"The metric {callback.monitor!r} of `{type(callback).__name__}` is not measured by "
            f"this run, which measures {', '.join(known) or 'nothing'}."
        )


def _rounds_left(module: LightningModule) -> int:
    return getattr(module, "rounds_left", 0)
