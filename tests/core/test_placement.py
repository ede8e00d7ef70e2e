from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from prunelit.core import module
from prunelit.core.datamodule import CalibrationText, PruneData
from prunelit.core.placement import Needs, choose, find_needs, free_memory, measure_sizes
from prunelit.models.architecture import decoder_blocks

GIB = 2**30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sizes_are_those_of_the_model(
    family: str, make_model: Callable[..., PreTrainedModel], dtype: torch.dtype
) -> None:
    model = make_model(family)
    nn.Module.to(model, dtype)
    sizes = measure_sizes(model.config, dtype)
    assert sizes.model == sum(weight.nbytes for weight in model.parameters())
    block = decoder_blocks(model)[1][0]
    assert sizes.block == sum(weight.nbytes for weight in block.parameters())
    assert sizes.blocks == sizes.block * len(decoder_blocks(model)[1])


def test_needs_are_those_of_both_models_or_of_one_block(model: PreTrainedModel) -> None:
    config, cpu = model.config, torch.device("cpu")
    sizes = measure_sizes(config, torch.float32)
    text = CalibrationText("text.jsonl", sequences=8, length=16, batch_size=2)
    for data in (PruneData(), PruneData(text)):
        both = find_needs(sizes, config, data, cpu, torch.float32, models=2, streamed=False)
        one = find_needs(sizes, config, data, cpu, torch.float32, models=1, streamed=False)
        away = find_needs(sizes, config, data, cpu, torch.float32, models=2, streamed=True)
        assert both.weights == 2 * one.weights == 2 * sizes.model
        assert away.weights == 2 * sizes.skeleton + sizes.block
        assert both.activations == away.activations
        assert (both.activations > 0) == (data.calibration is not None)
        assert both.total == both.weights + both.activations


def test_a_run_that_fits_is_resident() -> None:
    resident, streamed = Needs(8 * GIB, GIB, 0), Needs(2 * GIB, GIB, 0)
    assert choose(resident, streamed, 11 * GIB) == (
        False,
        "Placement `resident`: the run takes 9 GiB (weights 8 GiB, activations 1 GiB, logits 0 "
        "GiB) of 11 GiB that are free.",
    )
    chosen, why = choose(resident, streamed, 9 * GIB)
    assert chosen
    assert why == (
        "Placement `streamed`: resident the run would take 9 GiB (weights 8 GiB, activations 1 "
        "GiB, logits 0 GiB), and 9 GiB are free. Streamed it takes 3 GiB (weights 2 GiB, "
        "activations 1 GiB, logits 0 GiB); blocks wait in files."
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
