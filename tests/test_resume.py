"""A run that was killed and resumed ends like a run that was never killed."""

import json
import shutil
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
# One place of each kind in every run: inside pruning, inside recovery, while the folder is written.
OFTEN = ["block 5", "step 10", "rename"]
PLACES = [
    place if place in OFTEN else pytest.param(place, marks=pytest.mark.full)
    for place in [
        "block 2",
        "block 5",
        "step 3",
        "epoch 1",
        "step 7",
        "step 10",
        "block 8",
        "step 15",
        "step 18",
        "tokenizer",
        "rename",
    ]
]
# The same where the run has validations: inside one, and after the last one.
WATCHED_OFTEN = ["validation 14"]
WATCHED_PLACES = [
    place if place in WATCHED_OFTEN else pytest.param(place, marks=pytest.mark.full)
    for place in [
        "step 14",
        "validation 14",
        "step 15",
        "validation 16",
        "step 17",
        "end 1",
        "rename",
    ]
]


@pytest.fixture(scope="module")
def prepare(make_config: Callable[[Path], dict[str, Any]], save_config: Any) -> Callable[..., None]:
    def prepare(folder: Path, every_n_train_steps: int | None = 4, watched: bool = False) -> None:
        config = make_config(folder)
        perplexity = config["data"]["tasks"][1:2]
        material = Path(__file__).parent / "material"
        (folder / "dying.py").write_text((material / "dying.py").read_text())
        del config["data"]["tasks"]
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
        checkpoint = {
            "dirpath": "run/checkpoints",
            "every_n_train_steps": every_n_train_steps,
        }
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
        if watched:
            config["data"]["tasks"] = perplexity
            config["trainer"]["val_check_interval"] = 4  # batches, so after every second step
            watching = {"monitor": "val/perplexity/nll"}
            config["trainer"]["callbacks"] += [
                {
                    "class_path": "prunelit.callbacks.EarlyStopping",
                    "init_args": watching | {"patience": 2, "min_delta": 100.0},
                },
                {
                    "class_path": "prunelit.callbacks.BestCheckpoint",
                    "init_args": watching | {"dirpath": "run/checkpoints"},
                },
            ]
        save_config(folder, config)

    return prepare


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: Any, prepare: Callable[..., None], forked: Run) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    prepare(folder)
    done = forked(folder, "fit", "--config", "config.yaml", "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    return folder


def assert_same(folder: Path, expected: Path) -> None:
    """Check that the pruned models of two runs are equal, except for the time they took."""
    mine, theirs = (path / "run" / "pruned" for path in (folder, expected))
    assert {path.name for path in mine.iterdir()} == {path.name for path in theirs.iterdir()}
    weights = load_file(mine / "model.safetensors")
    expected_weights = load_file(theirs / "model.safetensors")
    assert weights.keys() == expected_weights.keys()
    for name, weight in expected_weights.items():
        assert torch.equal(weights[name], weight), name
    masks = [path / "masks.safetensors" for path in (mine, theirs)]
    assert masks[0].read_bytes() == masks[1].read_bytes()
    rounds = [json.loads((path / "pruning.json").read_text())["rounds"] for path in (mine, theirs)]
    assert len(rounds[0]) == 3
    for entry in [*rounds[0], *rounds[1]]:
        assert entry.pop("seconds") > 0
    assert rounds[0] == rounds[1]


def die_and_go_on(folder: Path, forked: Run) -> None:
    command = ("fit", "--config", "config.yaml", "--ckpt_path", "last")
    first = forked(folder, *command)
    assert first.returncode == -signal.SIGKILL, first.stderr
    assert not (folder / "run" / "pruned").exists()
    second = forked(folder, *command)
    assert second.returncode == 0, second.stderr


@pytest.mark.parametrize("place", PLACES)
def test_killed_and_taken_up_is_bitwise_the_same(
    place: str,
    tmp_path: Path,
    prepare: Callable[..., None],
    forked: Run,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(tmp_path)
    monkeypatch.setenv("DIE_AT", place)
    die_and_go_on(tmp_path, forked)
    assert_same(tmp_path, uninterrupted)


# The last step of an epoch has its checkpoint after the epoch.
@pytest.mark.parametrize(
    ("name", "place", "step"),
    [
        ("SIGTERM", "step 3", 3),
        pytest.param("SIGUSR1", "step 6", 6, marks=pytest.mark.full),
        pytest.param("SIGINT", "step 7", 7, marks=pytest.mark.full),
    ],
)
def test_a_signal_waits_for_a_checkpoint(
    name: str,
    place: str,
    step: int,
    tmp_path: Path,
    prepare: Callable[..., None],
    forked: Run,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(tmp_path, every_n_train_steps=None)
    monkeypatch.setenv("DIE_AT", place)
    monkeypatch.setenv("DIE_BY", name)
    command = ("fit", "--config", "config.yaml", "--ckpt_path", "last")
    first = forked(tmp_path, *command)
    assert first.returncode == 128 + signal.Signals[name], first.stderr
    assert f"prunelit: {name}. The run ends when this step has its checkpoint" in first.stderr
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    sentence = f"prunelit: Stopped by {name}. Continue from {last} with `--ckpt_path last`."
    assert sentence in first.stderr
    assert "Traceback" not in first.stderr
    assert torch.load(last, weights_only=True)["global_step"] == step
    second = forked(tmp_path, *command)
    assert second.returncode == 0, second.stderr
    assert_same(tmp_path, uninterrupted)


def test_killed_when_training_is_over_and_an_older_model_moved_away(
    tmp_path: Path,
    prepare: Callable[..., None],
    forked: Run,
    uninterrupted: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(tmp_path, every_n_train_steps=None)  # so that the last checkpoint has all steps
    older = tmp_path / "run" / "pruned"
    shutil.copytree(uninterrupted / "run" / "pruned", older)
    (older / "leftover").touch()
    monkeypatch.setenv("DIE_AT", "rename")
    die_and_go_on(tmp_path, forked)
    assert_same(tmp_path, uninterrupted)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: Any, prepare: Callable[..., None], forked: Run) -> Path:
    folder = tmp_path_factory.mktemp("watched")
    prepare(folder, every_n_train_steps=1, watched=True)
    done = forked(folder, "fit", "--config", "config.yaml", "--ckpt_path", "last")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("place", WATCHED_PLACES)
def test_what_watches_validations_goes_on_too(
    place: str,
    tmp_path: Path,
    prepare: Callable[..., None],
    forked: Run,
    watched: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(tmp_path, every_n_train_steps=1, watched=True)
    monkeypatch.setenv("DIE_AT", place)
    die_and_go_on(tmp_path, forked)
    assert_same(tmp_path, watched)
    states = [
        torch.load(folder / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (tmp_path, watched)
    ]
    assert states[0]["global_step"] == states[1]["global_step"]
    for name, key in [
        ("EarlyStopping", "wait_count"),
        ("EarlyStopping", "best_score"),
        ("BestCheckpoint", "best_model_score"),
    ]:
        mine, theirs = (
            value[key]
            for state in states
            for kind, value in state["callbacks"].items()
            if kind.startswith(name)
        )
        assert mine == theirs, (name, key)
