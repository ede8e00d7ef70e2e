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
SHARDED = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": 2, "tensor_parallel_size": 1},
}


@pytest.fixture(scope="module")
def prepare(make_config: Callable[[Path], dict[str, Any]], save_config: Any) -> Callable[..., None]:
    """`prepare(folder, change)` writes a training of four steps on two processes, in shards."""

    def prepare(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
        config = make_config(folder)
        config["data"]["tasks"] = config["data"]["tasks"][1:2]  # perplexity
        text = config["data"]["calibration"]["path"]
        config["data"]["recovery"] = {"path": text, "sequences": 8, "length": 16, "batch_size": 2}
        config["model"]["recovery"] = {"lm": 0.5, "kl": 1.0}
        config["model"]["optimizer"] = {
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": 0.01, "weight_decay": 0.1},
        }
        config["trainer"] |= {
            "devices": 2,
            "strategy": SHARDED,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
        }
        if change:
            change(config)
        save_config(folder, config)

    return prepare


def fit(folder: Path, forked: Run, *options: str) -> CompletedProcess[str]:
    done = forked(folder, "fit", "--config", "config.yaml", *options, ranks=2)
    assert done.returncode == 0, done.stderr
    return done


def whole(config: dict[str, Any]) -> None:
    config["trainer"]["strategy"] = "ddp"


def written(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    pruned = folder / "run" / "pruned"
    return load_file(pruned / "model.safetensors"), json.loads(
        (pruned / "pruning.json").read_text()
    )


def assert_equal(folder: Path, expected: Path, **tolerance: float) -> None:
    (mine, report), (theirs, expected_report) = written(folder), written(expected)
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, **{"rtol": 0, "atol": 0, **tolerance})
    for key in ("tensors", "sparsity"):
        assert report[key] == expected_report[key]
    masks = [path / "run" / "pruned" / "masks.safetensors" for path in (folder, expected)]
    assert masks[0].read_bytes() == masks[1].read_bytes()


def test_weights_are_those_of_ddp(
    tmp_path: Path, prepare: Callable[..., None], forked: Run
) -> None:
    folders = [tmp_path / "sharded", tmp_path / "ddp"]
    for folder, change in zip(folders, (None, whole), strict=True):
        folder.mkdir()
        prepare(folder, change)
        fit(folder, forked)
    assert_equal(*folders)
    assert_not_dense(folders[0])


def assert_not_dense(folder: Path) -> None:
    weights, report = written(folder)
    for tensor in report["tensors"]:
        assert int((weights[tensor["name"]] == 0).sum()) == tensor["size"] // 2


def harsh(config: dict[str, Any]) -> None:
    """Clip gradients, prune in rounds within training, measure within it and choose the best."""
    config["trainer"] |= {"gradient_clip_val": 0.5, "val_check_interval": 1}
    config["trainer"]["callbacks"] = [
        {
            "class_path": "prunelit.callbacks.BestCheckpoint",
            "init_args": {"monitor": "val/perplexity/nll", "dirpath": "run/checkpoints"},
        }
    ]
    config["pruning"]["init_args"]["schedule"] = {
        "class_path": "prunelit.schedule.Cubic",
        "init_args": {"rounds": 2},
    }


def adapters(config: dict[str, Any]) -> None:
    config["model"]["recovery"]["lora"] = {"rank": 2}


@pytest.mark.parametrize("change", [harsh, adapters])
def test_all_kinds(
    change: Any, tmp_path: Path, prepare: Callable[..., None], forked: Run
) -> None:
    def both(config: dict[str, Any]) -> None:
        change(config)
        whole(config)

    folders = [tmp_path / "sharded", tmp_path / "ddp"]
    for folder, options in zip(folders, (change, both), strict=True):
        folder.mkdir()
        prepare(folder, options)
        fit(folder, forked)
    assert_equal(*folders, atol=1e-6)
    assert_not_dense(folders[0])
