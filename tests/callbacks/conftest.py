"""A run of three rounds in three epochs, and readers of the files that it writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def configure(
    tmp_path: Path, make_config: Callable[[Path], dict[str, Any]], save_config: Any
) -> Callable[..., str]:
    """`configure(change)` writes a configuration of three rounds in three epochs of six steps."""

    def configure(change: Change | None = None) -> str:
        config = make_config(tmp_path)
        config["data"]["tasks"] = config["data"]["tasks"][1:2]  # perplexity
        config["data"]["recovery"] = {
            "path": config["data"]["calibration"]["path"],
            "sequences": 12,
            "length": 16,
            "batch_size": 2,
        }
        config["pruning"]["init_args"]["schedule"] = {
            "class_path": "prunelit.schedule.Cubic",
            "init_args": {"rounds": 3},
        }
        config["model"]["recovery"] = {"lm": 1.0, "kl": 0.5}
        config["model"]["optimizer"] = {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 0.01, "weight_decay": 0.1},
        }
        config["trainer"] |= {"max_epochs": 3, "num_sanity_val_steps": 0}
        if change:
            change(config)
        return str(save_config(tmp_path, config))

    return configure


@pytest.fixture
def rounds(tmp_path: Path) -> Callable[[], list[dict[str, Any]]]:
    """`rounds()` reads the rounds that `pruning.json` lists."""

    def read() -> list[dict[str, Any]]:
        return json.loads((tmp_path / "run" / "pruned" / "pruning.json").read_text())["rounds"]

    return read


@pytest.fixture
def scalars(tmp_path: Path) -> Callable[[], EventAccumulator]:
    """`scalars()` reads the scalars that TensorBoard was given."""

    def read() -> EventAccumulator:
        folder = str(tmp_path / "run" / "board" / "only")
        events = EventAccumulator(folder, size_guidance={"scalars": 0})
        events.Reload()
        return events

    return read


@pytest.fixture
def linear_weights(tmp_path: Path) -> Callable[[], dict[str, torch.Tensor]]:
    """`linear_weights()` reads the weights that were written, by name."""

    def read() -> dict[str, torch.Tensor]:
        weights = load_file(tmp_path / "run" / "pruned" / "model.safetensors")
        return {name: value for name, value in weights.items() if name.endswith("_proj.weight")}

    return read


@pytest.fixture
def refused(cli: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(*arguments)` runs `fit`, expects status 2, and returns its message."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as left:
            cli("fit", *arguments)
        assert left.value.code == 2
        return capsys.readouterr().err

    return run
