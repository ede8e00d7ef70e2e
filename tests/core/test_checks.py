from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import (
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from transformers import LlamaConfig

from prunelit.core.calibration_text import CalibrationText
from prunelit.core.checks import check_data, check_placement, check_trainer, check_training
from prunelit.core.datamodule import PruneData
from prunelit.core.recovery_text import RecoveryText
from prunelit.errors import InputError
from prunelit.pruning.lora import LoRA
from prunelit.pruning.recovery import Recovery
from prunelit.tasks import Deviation, Perplexity, Routing
from prunelit.trainer import PruneTrainer

CONFIG = LlamaConfig(max_position_embeddings=16)


def trainer(**arguments: Any) -> PruneTrainer:
    return PruneTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, **arguments)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_trainer_that_casts_both_models_alike(precision: str) -> None:
    check_trainer(trainer(precision=precision))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "bf16-true"}, r"'bf16-true', which casts the pruned model alone"),
        ({"precision": "64-true"}, r"'64-true', which casts the pruned model alone"),
        ({"limit_val_batches": 1}, r"`trainer\.limit_val_batches` 1\.0 but got 1:"),
        ({"limit_val_batches": 0.5}, r"`trainer\.limit_val_batches` 1\.0 but got 0\.5:"),
        ({"max_epochs": 0, "max_steps": 5}, r"`trainer\.max_steps` 5: 0 epochs train nothing"),
    ],
)
def test_trainer_with_wrong_results(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_trainer(trainer(**arguments))


def test_device_without_float64() -> None:
    strategy = SingleDeviceStrategy("mps")
    apple = SimpleNamespace(precision="32-true", strategy=strategy, limit_val_batches=1.0)
    with pytest.raises(InputError, match=r"set `trainer\.accelerator: cpu`"):
        check_trainer(apple)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_strategy_that_leaves_no_weight_whole(strategy: type[Strategy]) -> None:
    # Made without what its constructor wants: several GPUs, or a package.
    sharded: Any = SimpleNamespace(strategy=strategy.__new__(strategy))
    message = f"`auto` or `ddp` but got {strategy.__name__}: set `model.placement: sharded`"
    with pytest.raises(InputError, match=message):
        check_trainer(sharded)


@pytest.mark.parametrize("sizes", [("auto", "auto"), (1, 2), (2, 2), (1, 1)])
def test_a_matrix_that_is_split(sizes: tuple[Any, Any]) -> None:
    parallel = ModelParallelStrategy(*sizes)
    sharded: Any = SimpleNamespace(strategy=parallel, world_size=2)
    message = rf"2 and `tensor_parallel_size` 1 of .* but got {sizes[0]} and {sizes[1]}:"
    with pytest.raises(InputError, match=message):
        check_trainer(sharded)


def test_placements_that_are_trained() -> None:
    run = trainer(devices=2, strategy=ModelParallelStrategy(2, 1), max_epochs=1)
    for placement in ("auto", "resident", "sharded"):
        check_placement(placement, run, trains=True)
    check_placement("sharded", trainer(devices=2, strategy="ddp"), trains=False)


@pytest.mark.parametrize(
    ("placement", "options", "message"),
    [
        ("streamed", {}, r"'streamed', .* with `trainer\.strategy: ModelParallelStrategy`\."),
        ("sharded", None, "ModelParallelStrategy to train .* but got DDPStrategy, .* 2 and its"),
        ("sharded", {"save_distributed_checkpoint": False}, "`save_distributed_checkpoint` true"),
    ],
)
def test_placements_that_are_not_trained(placement: Any, options: Any, message: str) -> None:
    strategy = "ddp" if options is None else ModelParallelStrategy(2, 1, **options)
    with pytest.raises(InputError, match=message):
        check_placement(placement, trainer(devices=2, strategy=strategy), trains=True)


def test_tasks_that_read_the_dense_model() -> None:
    data = PruneData(None, [Perplexity("text.jsonl"), Deviation("text.jsonl")])
    check_data(data, CONFIG, reference=True)
    with pytest.raises(InputError, match=r"tasks \['deviation'\] need the dense model"):
        check_data(data, CONFIG, reference=False)


def test_sequences_longer_than_the_positions() -> None:
    task = Perplexity("text.jsonl")
    data = PruneData(CalibrationText("text.jsonl", length=16), [task])
    task.longest = 16
    check_data(data, CONFIG, reference=False)
    task.longest = 17
    with pytest.raises(InputError, match=r"16 tokens, .* sequence of the task 'perplexity' has 17"):
        check_data(data, CONFIG, reference=False)
    task.note_longest([9, 17, 17], lambda item: task.name_row(item, "x"))
    named = r"of the task 'perplexity', row 1 \(counted from 0, id 'x'\) of 'text.jsonl', has 17: "
    with pytest.raises(InputError, match=named):
        check_data(data, CONFIG, reference=False)
    data.calibration = CalibrationText("text.jsonl", length=18)
    with pytest.raises(InputError, match=r"16 tokens, .* a calibration sequence has 18"):
        check_data(data, CONFIG, reference=False)


def prepared(text: RecoveryText | None) -> PruneData:
    data = PruneData(recovery=text)
    data.trainer = trainer(max_epochs=1)
    if text is not None:
        data.recovery_tokens = torch.zeros(text.sequences, text.length, dtype=torch.long)
    return data


def test_training_that_lacks_nothing() -> None:
    data = prepared(RecoveryText("text.jsonl", length=16))
    check_training(data, CONFIG, Recovery(), reference=False)
    check_training(data, CONFIG, Recovery(kl=1.0, hidden=1.0), reference=True)


@pytest.mark.parametrize(
    ("text", "recovery", "message"),
    [
        (None, Recovery(), r"text to train on, `data\.recovery`, but got neither"),
        (RecoveryText("text.jsonl", length=17), Recovery(), "a recovery sequence has 17"),
        (RecoveryText("text.jsonl", length=1), Recovery(), "`data.recovery.length` of at least 2"),
        (RecoveryText("text.jsonl", sequences=3, length=8, batch_size=4), Recovery(), "got 3"),
        (RecoveryText("text.jsonl", length=16), Recovery(kl=1.0), "needs the dense model"),
        (RecoveryText("text.jsonl", length=16), Recovery(hidden=1.0), "needs the dense model"),
    ],
)
def test_training_that_lacks_something(
    text: RecoveryText | None, recovery: Recovery, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check_training(prepared(text), CONFIG, recovery, reference=False)


def test_adapters_are_refused_with_a_task_on_routers() -> None:
    data = prepared(RecoveryText("text.jsonl", length=16))
    data.tasks = {"routing": Routing("prunelit:facts.jsonl")}
    check_training(data, CONFIG, Recovery(), reference=True)
    with pytest.raises(InputError, match=r"no `recovery\.lora` with the tasks \['routing'\]"):
        check_training(data, CONFIG, Recovery(lora=LoRA(rank=2)), reference=True)


def test_a_run_that_a_clock_stops() -> None:
    with pytest.raises(InputError, match=r"Expected no `trainer\.max_time`"):
        check_trainer(trainer(max_epochs=1, max_time="00:01:00:00"))
