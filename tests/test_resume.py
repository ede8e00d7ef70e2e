"""A run that was killed and taken up ends as the one that was never killed."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

Run = Callable[..., subprocess.CompletedProcess[str]]
# Six steps an epoch; a checkpoint after every fourth step, so within epochs too.
PLACES = [
    "block 2",
    "block 5",
    "step 3",
    "epoch 1",
    "step 7",
    "step 10",
    "block 8",
    "step 15",
    "step 18",
]


@pytest.fixture(scope="module")
def prepare(make_config: Callable[[Path], dict[str, Any]], save_config: Any) -> Callable[..., None]:
    def prepare(folder: Path) -> None:
        config = make_config(folder)
        material = Path(__file__).parent / "material"
        (folder / "dying.py").write_text((material / "dying.py").read_text())
        config["data"]["tasks"] = []
        config["data"]["recovery"] = {
            "path": config["data"]["calibration"]["path"],
            "sequences": 12,
            "length": 16,
            "batch_size": 1,
        }
        arguments = config["pruning"]["init_args"]
        arguments["pruner"]["class_path"] = "dying.DyingWanda"
        arguments["schedule"] = {
            "class_path": "prunelit.schedule.Cubic",
            "init_args": {"rounds": 3},
        }
        config["model"]["recovery"] = {"lm": 0.5, "kl": 1.0, "hidden": 0.1}
        config["model"]["lr_scheduler"] = {
            "class_path": "torch.optim.lr_scheduler.ExponentialLR",
            "init_args": {"gamma": 0.9},
        }
        checkpoint = {"dirpath": "run/checkpoints", "every_n_train_steps": 4}
        config["trainer"] |= {
            "max_epochs": 3,
            "accumulate_grad_batches": 2,
            "callbacks": [
                {
                    "class_path": "prunelit.callbacks.LastCheckpoint",
                    "init_args": checkpoint,
                },
                {"class_path": "dying.Dying"},
            ],
        }
        save_config(folder, config)

    return prepare


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: Any, prepare: Callable[..., None], console: Run) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    prepare(folder)
    done = console(folder, "fit", "--config", "config.yaml", "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("place", PLACES)
def test_killed_and_taken_up_is_bitwise_the_same(
    place: str,
    tmp_path: Path,
    prepare: Callable[..., None],
    console: Run,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(tmp_path)
    monkeypatch.setenv("DIE_AT", place)
    command = ("fit", "--config", "config.yaml", "--ckpt_path", "last")
    first = console(tmp_path, *command)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert not (tmp_path / "run" / "pruned").exists()
    second = console(tmp_path, *command)
    assert second.returncode == 0, second.stderr
    mine, expected = (
        load_file(folder / "run" / "pruned" / "model.safetensors")
        for folder in (tmp_path, uninterrupted)
    )
    assert mine.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(mine[name], weight), name
