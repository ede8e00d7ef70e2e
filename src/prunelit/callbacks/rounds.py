"""Whether a run comes to all its rounds of pruning."""

from prunelit.datamodule import PruneData
from prunelit.errors import InputError
from prunelit.module import PairedLM
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
    if rounds == 1:
        return
    if not module.trains:
        raise InputError(
            f"Expected training between {rounds} rounds but `trainer.max_epochs` is 0."
        )
    if module.recovery.lora is not None:
        raise InputError(
            f"Expected one round with `recovery.lora` but got {rounds}: adapters are merged under "
            "the masks of the last round."
        )
    pruner.scaled(schedule.fraction(0))  # refused here if the method has no smaller form
    epochs = trainer.max_epochs
    if epochs is None or epochs < 0:
        return  # endless, or bounded by steps
    steps = len(data.recovery_batches()) // trainer.accumulate_grad_batches or 1
    reached = schedule.due(epochs - 1, epochs * steps - 1)
    if reached < rounds:
        raise InputError(
            f"Expected training long enough for {rounds} rounds but {epochs} epochs of {steps} "
            f"steps reach only {reached}: raise `trainer.max_epochs`."
        )
