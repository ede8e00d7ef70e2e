import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from transformers import PreTrainedModel

from prunelit.core import module
from prunelit.core.datamodule import CalibrationText, PruneData
from prunelit.core.module import PairedLM
from prunelit.core.placement import (
    Needs,
    Placement,
    build_shapes,
    find_needs,
    fits,
    free_memory,
    measure_sizes,
    measure_statistics,
    measure_training,
    tell_choice,
)
from prunelit.core.recovery_text import RecoveryText
from prunelit.errors import InputError
from prunelit.models.architecture import decoder_blocks
from prunelit.pruners import Budget, Heads, Magnitude, Sequence, SparseGPT, Wanda
from prunelit.sparsity import Unstructured
from prunelit.trainer import PruneTrainer

GB = 10**9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_are_those_of_the_model(
    family: str, make_model: Callable[..., PreTrainedModel], dtype: torch.dtype
) -> None:
    model = make_model(family)
    nn.Module.to(model, dtype)
    sizes = measure_sizes(build_shapes(model.config, dtype))
    assert sizes.model == sum(weight.nbytes for weight in model.parameters())
    block = decoder_blocks(model)[1][0]
    assert sizes.block == sum(weight.nbytes for weight in block.parameters())
    assert sizes.blocks == sizes.block * len(decoder_blocks(model)[1])


def test_needs_are_those_of_both_models_or_of_the_blocks_that_are_here(
    model: PreTrainedModel,
) -> None:
    config, cpu = model.config, torch.device("cpu")
    sizes = measure_sizes(model)
    text = CalibrationText("text.jsonl", sequences=8, length=16, batch_size=2)
    find = partial(find_needs, sizes, config, device=cpu, dtype=torch.float32)
    for data in (PruneData(), PruneData(text)):
        both = find(data=data, placement="resident")
        one = find(data=data, placement="resident", models=1)
        away = find(data=data, placement="streamed")
        share = find(data=data, placement="sharded", ranks=3)
        assert both.weights == 2 * one.weights == 2 * sizes.model
        once = find(data=data, placement="resident", skeletons=1)
        assert once.weights == 2 * sizes.model - sizes.skeleton
        assert away.weights == 2 * sizes.skeleton + 2 * sizes.block
        assert share.weights == away.weights + math.ceil(2 * sizes.blocks / 3)
        assert both.activations == away.activations >= share.activations
        assert (both.activations > 0) == (data.calibration is not None)
        assert both.total == both.weights + both.activations


def test_statistics_of_a_method_are_counted(model: PreTrainedModel) -> None:
    shapes = build_shapes(model.config, torch.bfloat16)
    text = model.config
    channels = 3 * text.hidden_size + text.intermediate_size  # of qkv, o, up and gate, down
    half = Unstructured(0.5)
    assert measure_statistics(shapes, Magnitude(half)) == 0
    assert measure_statistics(shapes, Wanda(half)) >= 8 * channels
    assert measure_statistics(shapes, SparseGPT(half)) >= 8 * text.intermediate_size**2
    # A budget keeps what it reads of all blocks, `Heads` that of one.
    gram = 4 * text.hidden_size**2
    assert gram <= measure_statistics(shapes, Heads(count=1)) < 3 * gram
    kept = measure_statistics(shapes, Budget(0.9))
    assert kept >= text.num_hidden_layers * gram
    assert measure_statistics(shapes, Sequence([Budget(0.9), Wanda(half)])) >= kept + 8 * channels


def test_training_keeps_gradients_and_moments(model: PreTrainedModel) -> None:
    config, cpu, sizes = model.config, torch.device("cpu"), measure_sizes(model)
    measure = partial(measure_training, sizes)
    assert measure("resident", 2, 1, adapters=False) == 3 * sizes.model
    assert measure("resident", 2, 2, adapters=False) == 5 * sizes.model // 2  # and shares of both
    assert measure("sharded", 2, 3, adapters=False) == sizes.model
    assert measure("sharded", 2, 2, adapters=True) == 3 * (sizes.model // 100) // 2
    data = PruneData(recovery=RecoveryText("text.jsonl", length=16, batch_size=2))
    find = partial(find_needs, sizes, config, data, cpu, torch.float32, placement="sharded")
    assert find().activations == find().training == 0
    assert find(training=1).training == 1
    block = 4 * config.hidden_size + 3 * config.intermediate_size
    assert find(training=1).activations == 2 * 16 * 3 * block * 4


@pytest.mark.parametrize(
    ("free", "files", "expected"),
    [(2**40, False, "resident"), (0, False, "sharded"), (0, True, "resident")],
)
def test_auto_shards_a_pair_that_is_trained_and_does_not_fit(
    material: Path,
    make_trainer: Callable[..., PruneTrainer],
    monkeypatch: pytest.MonkeyPatch,
    free: int,
    files: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=not files)
    monkeypatch.setattr(strategy, "reduce_boolean_decision", lambda fit, all: fit)
    paired = PairedLM(str(material / "dense"), placement="auto")
    text = RecoveryText(str(material / "text.jsonl"), sequences=8, length=16, batch_size=2)
    data = PruneData(recovery=text)
    trainer: Any = make_trainer(devices=2, strategy=strategy, max_epochs=1)
    paired.trainer = data.trainer = trainer
    trainer.datamodule, trainer.state.fn = data, "fit"
    data.prepare(paired.tokenizer)
    paired.check_run()
    assert paired.weights.placement == expected


def test_only_fit_trains(material: Path, make_trainer: Callable[..., PruneTrainer]) -> None:
    paired, data = PairedLM(str(material / "dense"), placement="parallel"), PruneData()
    trainer: Any = make_trainer(devices=2, strategy="ddp", max_epochs=1)
    paired.trainer = data.trainer = trainer
    trainer.datamodule, trainer.state.fn = data, "fit"
    assert paired.trains
    with pytest.raises(
        InputError, match=r"`trainer\.max_epochs` 0 with .* 'parallel', which trains"
    ):
        paired.check_run()
    trainer.state.fn = "validate"
    assert paired.trained
    assert not paired.trains
    paired.check_run()


def test_a_choice_is_told() -> None:
    resident, streamed = Needs(8 * GB, GB, 0), Needs(2 * GB, GB, 0, GB // 2)
    assert fits(resident, 11 * GB)
    assert not fits(resident, 9 * GB)
    needs: dict[Placement, Needs] = {"resident": resident, "streamed": streamed}
    assert tell_choice("resident", needs, 11 * GB) == (
        "Placement `resident`: the run takes 9.0 GB (weights 8.0 GB, activations 1.0 GB) of 11.0 "
        "GB that are free."
    )
    assert tell_choice("streamed", needs, 9 * GB) == (
        "Placement `streamed`: resident the run would take 9.0 GB (weights 8.0 GB, activations 1.0 "
        "GB), and 9.0 GB are free. So it takes 3.5 GB (weights 2.0 GB, activations 1.0 GB, "
        "statistics 500.0 MB); blocks wait in files."
    )


def test_the_free_memory_of_a_machine_is_known() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**60


@pytest.mark.parametrize(("free", "expected"), [(2**40, "resident"), (0, "streamed")])
def test_auto_takes_what_fits_and_says_so(
    make_config: Callable[[Path], dict[str, Any]],
    save_config: Callable[..., Path],
    cli: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    free: int,
    expected: str,
) -> None:
    monkeypatch.setattr(module, "free_memory", lambda device: free)
    config = make_config(tmp_path)
    config["model"]["placement"] = "auto"
    config["data"]["tasks"] = config["data"]["tasks"][:1]
    cli("fit", "--config", str(save_config(tmp_path, config)))
    assert f"Placement `{expected}`: " in caplog.text
