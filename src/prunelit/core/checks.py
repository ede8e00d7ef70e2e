"""Checks of a run's settings, made before the weights are read."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from transformers import PreTrainedConfig

from prunelit.core.datamodule import PruneData
from prunelit.core.placement import Placement
from prunelit.core.private_api import parallel_sizes, writes_folders
from prunelit.errors import InputError, close_names
from prunelit.models.architecture import check_length
from prunelit.pruning.recovery import Recovery


def check_trainer(trainer: Trainer) -> None:
    """Refuse settings of the Trainer that would make a run fail or its results wrong.

    Raises:
        InputError: naming the option.
    """
    _check_strategy(trainer)
    if trainer.precision.endswith("-true") and trainer.precision != "32-true":
        raise InputError(
            f"Expected `trainer.precision` '32-true' or a mixed one but got "
            f"{trainer.precision!r}, which casts the pruned model alone: set `model.dtype`."
        )
    if trainer.strategy.root_device.type == "mps":
        raise InputError(
            "prunelit needs float64, which MPS does not support: set `trainer.accelerator: cpu`."
        )
    if trainer.max_epochs == 0 and trainer.max_steps > 0:
        raise InputError(
            f"Expected `trainer.max_epochs` above 0, or -1, with `trainer.max_steps` "
            f"{trainer.max_steps}: 0 epochs train nothing."
        )
    if any(isinstance(c, Timer) and c.time_remaining() is not None for c in trainer.callbacks):  # type: ignore[attr-defined]
        raise InputError(
            "Expected no `trainer.max_time`, and no callback `Timer`: a run that it stops within "
            "an epoch cannot be resumed. Set `max_epochs` or `max_steps` instead, or interrupt the "
            "process."
        )
    # With 0, Lightning divides by zero, or never does what the option counts.
    for name in ("accumulate_grad_batches", "check_val_every_n_epoch", "val_check_interval"):
        value = getattr(trainer, name)
        if value is not None and value <= 0:
            raise InputError(f"Expected `trainer.{name}` above 0 but got {value}: set at least 1.")
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise InputError(
            "Expected no `trainer.fast_dev_run`, which measures a part of the items: set the "
            "`limit` of a task instead."
        )
    limit = trainer.limit_val_batches
    if not (isinstance(limit, float) and limit == 1):  # Lightning's int 1 is a single batch
        raise InputError(
            f"Expected `trainer.limit_val_batches` 1.0 but got {limit}: set the `limit` of a "
            "task to measure fewer items."
        )


def _check_strategy(trainer: Trainer) -> None:
    strategy = trainer.strategy
    check_strategy(type(strategy))
    if isinstance(strategy, ModelParallelStrategy):
        sizes, expected = parallel_sizes(strategy), (trainer.world_size, 1)
        if sizes != expected:
            raise InputError(
                f"Expected `data_parallel_size` {expected[0]} and `tensor_parallel_size` 1 of "
                f"ModelParallelStrategy, one share of the weights for each process, but got "
                f"{sizes[0]} and {sizes[1]}: set both under `trainer.strategy`."
            )


def check_strategy(kind: type[Strategy]) -> None:
    """Refuse strategies that leave no rank a whole weight to prune or to measure.

    Args:
        kind: of the strategy.

    Raises:
        InputError: naming the placement to use.
    """
    allowed = issubclass(kind, SingleDeviceStrategy | DDPStrategy | ModelParallelStrategy)
    if not allowed or issubclass(kind, DeepSpeedStrategy):  # which is a DDPStrategy
        raise InputError(
            f"Expected the strategy `auto` or `ddp` but got {kind.__name__}: set "
            "`model.placement: sharded`, which keeps a share of the weights on each process with "
            "these; to train the shares, set `trainer.strategy: ModelParallelStrategy` too."
        )


def unknown_strategy(name: str) -> InputError:
    """Return the error of a strategy that Lightning has under no name.

    Args:
        name: that was given.
    """
    known = [
        own
        for own in StrategyRegistry.available_strategies()
        if issubclass(StrategyRegistry[own]["strategy"], DDPStrategy)
        and not issubclass(StrategyRegistry[own]["strategy"], DeepSpeedStrategy)
    ]
    near = close_names(name, known)
    hint = f" (similar: {near[0]!r})" if near else ""
    return InputError(
        f"Expected `trainer.strategy` as auto, ddp or ModelParallelStrategy but got {name!r:.60}"
        f"{hint}: write one of them."
    )


def check_placement(
    placement: Placement, trainer: Trainer, *, trains: bool, together: int = 1
) -> None:
    """Refuse a placement that the processes of a run cannot have, or that cannot be trained.

    Args:
        placement: of the models.
        trainer: of the run.
        trains: True if the run trains weights.
        together: number of devices that compute a model together.

    Raises:
        InputError: naming the placement or the strategy to use.
    """
    if placement == "sharded" and trainer.world_size == 1:
        raise InputError(
            "Expected several processes with `model.placement` 'sharded', which keeps a share of "
            "the weights on each, but got one: set `trainer.devices`, or `model.placement: "
            "streamed`."
        )
    if placement == "parallel" and (together == 1 or trainer.num_devices % together):
        raise InputError(
            f"Expected several devices of a machine that compute a model together with "
            f"`model.placement` 'parallel' but got {trainer.num_devices} devices and groups of "
            f"{together}: set `trainer.devices` to a multiple of `model.parallel_degree`, or "
            "`model.placement: resident`."
        )
    if not trains or placement in ("auto", "resident"):
        return
    if placement in ("streamed", "parallel"):
        raise InputError(
            f"Expected `trainer.max_epochs` 0 with `model.placement` {placement!r}, which trains "
            "no weights: prune without recovery, or set `model.placement` to `resident`, or to "
            "`sharded` on several processes with `trainer.strategy: ModelParallelStrategy`."
        )
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        raise InputError(
            f"Expected `trainer.strategy` ModelParallelStrategy to train with `model.placement` "
            f"'sharded' but got {type(strategy).__name__}, which needs whole weights: set it, with "
            f"its `data_parallel_size` {trainer.world_size} and its `tensor_parallel_size` 1, or "
            "set `trainer.max_epochs: 0`."
        )
    if not writes_folders(strategy):
        raise InputError(
            "Expected `save_distributed_checkpoint` true of ModelParallelStrategy with "
            "`model.placement` 'sharded': one file would need the whole model in a process."
        )


def check_data(data: PruneData, config: PreTrainedConfig, reference: bool) -> None:
    """Refuse sequences that are too long for the model, and tasks without their dense model.

    Args:
        data: prepared.
        config: of the model.
        reference: True if the run keeps the dense model.

    Raises:
        InputError: naming the task.
    """
    needing = [name for name, task in data.tasks.items() if task.needs_reference]
    if needing and not reference:
        raise InputError(f"The tasks {needing} need the dense model: set `model.reference: true`.")
    if data.calibration is not None:
        check_length(config, data.calibration.length, "a calibration sequence")
    for name, task in data.tasks.items():
        item = f", {task.longest_name}," if task.longest_name else ""
        check_length(config, task.longest, f"the longest sequence of the task {name!r}{item}")


def check_training(
    data: PruneData, config: PreTrainedConfig, recovery: Recovery, reference: bool
) -> None:
    """Refuse training without text, or distillation without the dense model.

    Args:
        data: prepared.
        config: of the model.
        recovery: the loss.
        reference: True if the run keeps the dense model.

    Raises:
        InputError: naming the option.
    """
    if data.recovery is None:
        raise InputError(
            "Expected `trainer.max_epochs` 0, or text to train on, `data.recovery`, but got "
            "neither: set one of them."
        )
    if data.recovery.length < 2:
        raise InputError(
            f"Expected `data.recovery.length` of at least 2 but got {data.recovery.length}: the "
            "first token of a sequence is not predicted."
        )
    check_length(config, data.recovery.length, "a recovery sequence")
    data.recovery_batches()  # refuses less than a batch for each rank
    routed = [name for name, task in data.tasks.items() if task.needs_experts]
    if routed and recovery.lora is not None:
        raise InputError(
            f"Expected no `recovery.lora` with the tasks {routed}, since routers with adapters are "
            "not those of the model that is written: leave these tasks out, and measure them by "
            "`prunelit validate` later."
        )
    if recovery.needs_reference and not reference:
        raise InputError(
            "Distillation needs the dense model: set `model.reference: true`, or `recovery.kl` "
            "and `recovery.hidden` to 0."
        )
