"""Checks of a run that prunes: its module, its data and its rounds."""

import math

from lightning.pytorch import LightningModule, Trainer

from prunelit.callbacks.watchers import batches_per_epoch, check_watchers
from prunelit.core.datamodule import PruneData
from prunelit.core.module import PairedLM
from prunelit.errors import InputError
from prunelit.pruners.base import Pruner
from prunelit.schedule import Schedule


def check_stream(pruner: Pruner, data: PruneData) -> None:
    """Refuse tasks on hidden states of one width with a method that makes them narrower.

    Args:
        pruner: the method.
        data: the tasks.

    Raises:
        InputError: names the tasks and the method.
    """
    names = [name for name, task in data.tasks.items() if "hidden_size" in task.needs_equal]
    narrow = [type(step).__name__ for step in pruner.steps if step.narrows_stream]
    if names and narrow:
        raise InputError(
            f"Expected no task that compares hidden states of one width but got {names}: the "
            f"model has fewer channels after {narrow[0]}. Leave the task out, or take another "
            "method."
        )


def check_rounds(schedule: Schedule, pruner: Pruner, module: PairedLM, data: PruneData) -> None:
    """Refuse rounds that this run cannot reach, or options that do not fit together.

    Args:
        schedule: the rounds.
        pruner: the method.
        module: attached to its Trainer.
        data: prepared.

    Raises:
        InputError: names the option.
    """
    trainer, rounds = module.trainer, schedule.rounds
    rounding = [type(step).__name__ for step in pruner.steps if not step.sparsifies]
    if module.trains and rounding:
        raise InputError(
            f"Expected `trainer.max_epochs` 0 with {rounding[0]}: it removes no weights, so "
            "training would undo its work."
        )
    if module.trains:
        check_watchers(trainer, data)
    if rounds == 1:
        return
    if not module.trains:
        raise InputError(
            f"Expected training between {rounds} rounds but `trainer.max_epochs` is 0: raise it "
            "or set one round."
        )
    if module.recovery.lora is not None:
        raise InputError(
            f"Expected one round with `recovery.lora` but got {rounds}: a later round would choose "
            "weights without the updates of the adapters."
        )
    pruner.scale(schedule.fraction(0))  # raises if the method cannot prune in rounds
    steps = steps_per_epoch(trainer, len(data.recovery_batches()))
    epochs = trainer.max_epochs if trainer.max_epochs is not None else -1
    total = epochs * steps if epochs > 0 else math.inf
    total = min(total, trainer.max_steps) if trainer.max_steps > 0 else total
    if total == math.inf:
        return  # training has no fixed end
    last = int(total) - 1  # number of optimizer steps before the last one
    reached = schedule.due(last // steps, last)
    if reached < rounds:
        raise InputError(
            f"Expected training long enough for {rounds} rounds but {int(total)} optimizer steps, "
            f"{steps} an epoch, reach only {reached}: raise `trainer.max_epochs` or `max_steps`."
        )


def steps_per_epoch(trainer: Trainer, batches: int) -> int:
    """Count the optimizer steps of an epoch; an incomplete accumulation at its end is one step."""
    used = batches_per_epoch(trainer, batches)
    return max(1, math.ceil(used / trainer.accumulate_grad_batches))


def require_prunelit(trainer: Trainer, module: LightningModule) -> tuple[PruneData, PairedLM]:
    """Return the data and the module of a run, if they are those of prunelit.

    Raises:
        InputError: if the run has another data or module class, or a candidate, which is measured
            as it is.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(module, PairedLM) or not isinstance(data, PruneData):
        raise InputError(
            "Expected a `PairedLM` and a `PruneData` with the `Pruning` callback but got "
            f"{type(module).__name__} and {type(data).__name__}."
        )
    if module.weights.candidate is not None:
        raise InputError(
            f"Expected `pruning` or `model.candidate` but got both: the candidate "
            f"{module.weights.candidate.source!r} is measured as it is, so take one of them away."
        )
    return data, module
