"""Whether a run can prune at all, and comes to all its rounds."""

import math

from lightning.pytorch import LightningModule, Trainer

from prunelit.callbacks.checkpoints import batches_per_epoch, check_watchers
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.pruners.base import Pruner
from prunelit.schedule import Schedule


def check_rounds(
    schedule: Schedule, pruner: Pruner, module: PairedLM, data: PruneData, offload: bool
) -> None:
    """Refuse rounds that this run would never come to, or that would undo each other.

    Args:
        schedule: of the rounds.
        pruner: the method.
        module: attached to its Trainer.
        data: prepared.
        offload: whether blocks wait elsewhere.

    Raises:
        InputError: naming the option.
    """
    trainer, rounds = module.trainer, schedule.rounds
    if offload and module.trains:
        raise InputError("Expected `trainer.max_epochs` 0 with `pruning.offload`.")
    if module.trains and not pruner.sparsifies:
        raise InputError(
            f"Expected `trainer.max_epochs` 0 with {type(pruner).__name__}: it removes no weights, "
            "so nothing would keep what it did while the model trains."
        )
    if module.trains:
        check_watchers(trainer, data)
    if rounds == 1:
        return
    if not module.trains:
        raise InputError(
            f"Expected training between {rounds} rounds but `trainer.max_epochs` is 0."
        )
    if module.recovery.lora is not None:
        raise InputError(
            f"Expected one round with `recovery.lora` but got {rounds}: a later round would choose "
            "by weights that lack what the adapters add."
        )
    pruner.scale(schedule.fraction(0))  # refused here if the method has no smaller form
    steps = steps_per_epoch(trainer, len(data.recovery_batches()))
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    total = epochs * steps if epochs > 0 else math.inf
    total = min(total, trainer.max_steps) if trainer.max_steps > 0 else total
    if total == math.inf:
        return  # until something else ends it
    last = int(total) - 1  # optimizer steps before the last one
    reached = schedule.due(last // steps, last)
    if reached < rounds:
        raise InputError(
            f"Expected training long enough for {rounds} rounds but {int(total)} optimizer steps, "
            f"{steps} an epoch, reach only {reached}: raise `trainer.max_epochs` or `max_steps`."
        )


def steps_per_epoch(trainer: Trainer, batches: int) -> int:
    """Optimizer steps of an epoch; at its end what was accumulated makes one more."""
    used = batches_per_epoch(trainer, batches)
    return max(1, math.ceil(used / trainer.accumulate_grad_batches))


def require_prunelit(trainer: Trainer, module: LightningModule) -> tuple[PruneData, PairedLM]:
    """The data and the module, where they are what pruning works on.

    Raises:
        InputError: naming what is not.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(module, PairedLM) or not isinstance(data, PruneData):
        raise InputError("Expected a `PairedLM` and a `PruneData` with the `Pruning` callback.")
    return data, module
