"""Two processes that train shards of the weights, against two that train all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed

Run = Callable[..., CompletedProcess[str]]
Change = Callable[[dict[str, Any]], None]
SHARDED = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1},
}


@pytest.fixture(scope="module")
def prepare(make_config: Callable[[Path], dict[str, Any]], save_config: Any) -> Callable[..., None]:
    """`prepare(folder, *changes)` writes a run in two processes: two epochs of two steps.

    The second round of pruning comes after the second step. Every step has its checkpoint.
    """

    def prepare(folder: Path, *changes: Change) -> None:
        folder.mkdir(exist_ok=True)
        material = Path(__file__).parents[1] / "material"
        (folder / "dying.py").write_text((material / "dying.py").read_text())
        config = make_config(folder)
        config["data"]["tasks"] = config["data"]["tasks"][1:2]  # perplexity
        text = config["data"]["calibration"]["path"]
        config["data"]["recovery"] = {"path": text, "sequences": 8, "length": 16, "batch_size": 2}
        config["model"]["recovery"] = {"lm": 0.5, "kl": 1.0}
        config["model"]["optimizer"] = {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 0.01, "weight_decay": 0.1},
        }
        config["pruning"]["init_args"]["schedule"] = {
            "class_path": "prunelit.schedule.Cubic",
            "init_args": {"rounds": 2},
        }
        last = {"dirpath": "run/checkpoints", "every_n_train_steps": 1}
        config["trainer"] |= {
            "devices": 2,
            "strategy": SHARDED,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": 1000,
            "callbacks": [
                {"class_path": "prunelit.callbacks.LastCheckpoint", "init_args": last},
                {"class_path": "dying.Dying"},
            ],
        }
        for change in changes:
            change(config)
        save_config(folder, config)

    return prepare


def whole(config: dict[str, Any]) -> None:
    """Keep all weights on each process."""
    config["trainer"]["strategy"] = "ddp"


def harsh(config: dict[str, Any]) -> None:
    """Clip gradients, measure between the steps and choose the best weights."""
    config["trainer"] |= {"gradient_clip_val": 0.5, "val_check_interval": 1}
    config["trainer"]["callbacks"].append(
        {
            "class_path": "prunelit.callbacks.BestCheckpoint",
            "init_args": {"monitor": "val/perplexity/nll", "dirpath": "run/checkpoints"},
        }
    )


def hidden(config: dict[str, Any]) -> None:
    """Add the loss of hidden states, whose gradients come together in another order."""
    config["model"]["recovery"]["hidden"] = 0.1


def adapters(config: dict[str, Any]) -> None:
    """Train adapters, which allow one round."""
    config["model"]["recovery"]["lora"] = {"rank": 2}
    del config["pruning"]["init_args"]["schedule"]


def in_one_file(config: dict[str, Any]) -> None:
    """Write checkpoints as one file."""
    options = {**SHARDED["init_args"], "save_distributed_checkpoint": False}  # type: ignore[dict-item]
    config["trainer"]["strategy"] = {**SHARDED, "init_args": options}


def fit(folder: Path, forked: Run, *options: str) -> CompletedProcess[str]:
    return forked(folder, "fit", "--config", "config.yaml", *options, ranks=2)


def fitted_by(folder: Path, forked: Run) -> Path:
    done = fit(folder, forked)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: Any, prepare: Callable[..., None], forked: Run) -> Path:
    """The read-only folder of a run in shards."""
    folder = tmp_path_factory.mktemp("sharded")
    prepare(folder)
    return fitted_by(folder, forked)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all files of weights; a model whose ranks share its blocks has one for each block."""
    files = folder.glob("model*.safetensors")
    return {name: weight for file in files for name, weight in load_file(file).items()}


def assert_equal(folder: Path, expected: Path, atol: float = 0) -> None:
    """Check that the weights, masks, rounds and results of two runs are equal."""
    mine, theirs = (read_weights(path / "run" / "pruned") for path in (folder, expected))
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=atol)
    masks = [path / "run" / "pruned" / "masks.safetensors" for path in (folder, expected)]
    assert masks[0].read_bytes() == masks[1].read_bytes()
    reports = [
        json.loads((path / "run" / "pruned" / "pruning.json").read_text())
        for path in (folder, expected)
    ]
    for tensor in reports[0]["tensors"]:
        assert int((mine[tensor["name"]] == 0).sum()) == tensor["size"] // 2
    for report in reports:
        for entry in report["rounds"]:
            del entry["seconds"]
    for key in ("tensors", "rounds", "recipe"):
        assert reports[0][key] == reports[1][key]
    lines = [
        (path / "run" / "board" / "only" / "results.jsonl").read_text().splitlines()
        for path in (folder, expected)
    ]
    for one, other in zip(*(map(json.loads, text) for text in lines), strict=True):
        assert one["metric"] == other["metric"]
        assert one["value"] == pytest.approx(
            other["value"], rel=10 * atol, abs=10 * atol, nan_ok=True
        )


def test_weights_are_those_of_ddp(
    sharded: Path, tmp_path: Path, prepare: Callable[..., None], forked: Run
) -> None:
    prepare(tmp_path, whole)
    assert_equal(sharded, fitted_by(tmp_path, forked))


@pytest.mark.full
@pytest.mark.parametrize("changes", [(harsh,), (adapters,), (hidden, in_one_file, harsh)])
def test_all_that_training_can_do(
    changes: tuple[Change, ...], tmp_path: Path, prepare: Callable[..., None], forked: Run
) -> None:
    prepare(tmp_path / "sharded", *changes)
    prepare(tmp_path / "ddp", *changes, whole)
    folders = [fitted_by(tmp_path / name, forked) for name in ("sharded", "ddp")]
    assert_equal(*folders, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize("place", ["step 4", "step 2", "block 5", "epoch 1"])
def test_killed_and_taken_up_is_bitwise_the_same(
    place: str,
    sharded: Path,
    tmp_path: Path,
    prepare: Callable[..., None],
    forked: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dying(config: dict[str, Any]) -> None:
        config["pruning"]["init_args"]["pruner"]["class_path"] = "dying.DyingWanda"

    prepare(tmp_path, *([dying] if place.startswith("block") else []))
    monkeypatch.setenv("DIE_AT", place)
    assert fit(tmp_path, forked).returncode != 0
    assert (tmp_path / "died").exists()
    assert not (tmp_path / "run" / "pruned").exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt" / ".metadata").is_file()
    second = fit(tmp_path, forked, "--ckpt_path", "last")
    assert second.returncode == 0, second.stderr
    if place.startswith("step"):
        assert_equal(tmp_path, sharded)


@pytest.mark.full
def test_shards_of_another_number_of_processes_and_of_another_strategy(
    tmp_path: Path, prepare: Callable[..., None], forked: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(tmp_path)
    monkeypatch.setenv("DIE_AT", "step 2")
    assert fit(tmp_path, forked).returncode != 0
    go_on = ("fit", "--config", "config.yaml", "--ckpt_path", "last", "--trainer.devices", "1")
    one = forked(tmp_path, *go_on, "--trainer.strategy.init_args.data_parallel_size", "1")
    assert one.returncode == 2
    assert "was written by a run with another recipe (processes: 1 now, 2 there)" in one.stderr
    plain = forked(tmp_path, *go_on, "--trainer.strategy", "auto")
    assert plain.returncode == 2
    assert "last.ckpt' but found a folder, and SingleDeviceStrategy writes a file" in plain.stderr
