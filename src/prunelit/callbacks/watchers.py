"""Callbacks that watch a metric: they keep the best weights of recovery, or stop it."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer, callbacks
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as load_sharded
from torch.distributed.tensor import DTensor

from prunelit.arguments import checked
from prunelit.callbacks.checkpoints import read_checkpoint
from prunelit.callbacks.sharded_checkpoint import is_sharded
from prunelit.core.datamodule import PruneData
from prunelit.errors import InputError
from prunelit.recipe import describe


@checked
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

    def restore(self, module: LightningModule) -> None:
        """Give a module the weights with the best `monitor`; every rank must call it.

        Args:
            module: with plain weights, or with shards.

        Raises:
            InputError: if there was no validation after the last round.
        """
        if not self.best_model_path:
            raise InputError(
                f"`BestCheckpoint` never measured {self.monitor!r} after the last round of "
                "pruning, so no pruned model was written: validate more often, or train longer."
            )
        read_checkpoint(self.best_model_path, checksums=True)
        if is_sharded(self.best_model_path):
            weights = module.state_dict()  # which shares its memory with the module
            load_sharded({"state_dict": weights}, checkpoint_id=self.best_model_path)
            module.load_state_dict(weights)
            return
        saved = torch.load(self.best_model_path, weights_only=True, map_location="cpu")
        if any(isinstance(weight, DTensor) for weight in module.parameters()):
            own_part = StateDictOptions(full_state_dict=True)
            set_model_state_dict(module, saved["state_dict"], options=own_part)
        else:
            module.load_state_dict(saved["state_dict"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of a checkpoint; the best weights must be there.

        Raises:
            InputError: if they are not, or are damaged.
        """
        super().load_state_dict(state_dict)
        if self.best_model_path:
            read_checkpoint(self.best_model_path, checksums=True)


@checked
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
