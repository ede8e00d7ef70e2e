"""Processes that train shards of the weights, against processes that train all of them."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prunelit.core.placement import measure_sizes

pytestmark = pytest.mark.distributed

Run = Callable[..., CompletedProcess[str]]
Change = Callable[[dict[str, Any]], None]
MATERIAL = Path(__file__).parents[1] / "material"


def sharding(ranks: int, **more: Any) -> dict[str, Any]:
    """The strategy of so many processes."""
    options = {"data_parallel_size": ranks, "tensor_parallel_size": 1, **more}
    path = "lightning.pytorch.strategies.ModelParallelStrategy"
    return {"class_path": path, "init_args": options}


@pytest.fixture(scope="module")
def prepare(make_config: Callable[[Path], dict[str, Any]], save_config: Any) -> Callable[..., None]:
    """`prepare(folder, *changes)` writes a run in two processes: two epochs of two steps.

    The second round of pruning comes after the second step, after a validation. Every step has its
    checkpoint.
    """

    def prepare(folder: Path, *changes: Change) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("dying.py", "seen.py"):
            (folder / name).write_text((MATERIAL / name).read_text())
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
            "strategy": sharding(2),
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": 2,
            "callbacks": [
                {"class_path": "prunelit.callbacks.LastCheckpoint", "init_args": last},
                {"class_path": "dying.Dying"},
                {"class_path": "seen.Seen"},
            ],
        }
        for change in changes:
            change(config)
        save_config(folder, config)

    return prepare


def whole(config: dict[str, Any]) -> None:
    """Keep all weights on each process."""
    config["trainer"]["strategy"] = "ddp"
    config["model"]["placement"] = "resident"


def shares(config: dict[str, Any]) -> None:
    """Keep a share of each block on each process, from the start to the end."""
    config["model"]["placement"] = "sharded"


def three(config: dict[str, Any]) -> None:
    """Take three processes."""
    config["trainer"] |= {"devices": 3, "strategy": sharding(3)}
    config["data"]["recovery"]["sequences"] = 12


def harsh(config: dict[str, Any]) -> None:
    """Clip gradients, measure between the steps and choose the best weights."""
    config["trainer"] |= {"gradient_clip_val": 0.5, "val_check_interval": 1}
    config["trainer"]["callbacks"].append(
        {
            "class_path": "prunelit.callbacks.BestCheckpoint",
            "init_args": {"monitor": "val/perplexity/nll", "dirpath": "run/checkpoints"},
        }
    )


def gentle(config: dict[str, Any]) -> None:
    """Take smaller steps: AdamW makes a step of a gradient near 0, and of its rounding."""
    config["model"]["optimizer"]["init_args"]["lr"] = 0.001


def hidden(config: dict[str, Any]) -> None:
    """Add the loss of hidden states, whose gradients come together in another order."""
    config["model"]["recovery"]["hidden"] = 0.1
    gentle(config)


def adapters(config: dict[str, Any]) -> None:
    """Train adapters, which allow one round."""
    config["model"]["recovery"]["lora"] = {"rank": 2}
    del config["pruning"]["init_args"]["schedule"]


def narrow(config: dict[str, Any]) -> None:
    """Remove neurons, so that the written model is smaller."""
    config["pruning"]["init_args"]["pruner"] = {
        "class_path": "prunelit.pruners.Neuron",
        "init_args": {"ratio": 0.25},
    }
    del config["pruning"]["init_args"]["schedule"]


def in_one_file(config: dict[str, Any]) -> None:
    """Write checkpoints as one file."""
    config["trainer"]["strategy"] = sharding(2, save_distributed_checkpoint=False)


def fit(folder: Path, forked: Run, *options: str) -> CompletedProcess[str]:
    ranks = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["devices"]
    return forked(folder, "fit", "--config", "config.yaml", *options, ranks=ranks)


def fitted_by(folder: Path, forked: Run) -> Path:
    done = fit(folder, forked)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def ddp(tmp_path_factory: Any, prepare: Callable[..., None], forked: Run) -> Path:
    """The read-only folder of a run with whole weights."""
    folder = tmp_path_factory.mktemp("ddp")
    prepare(folder, whole)
    return fitted_by(folder, forked)


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


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_equal(folder: Path, expected: Path, atol: float = 0, *, recipe: bool = True) -> None:
    """Check that the weights, masks, rounds and results of two runs are equal, and the recipes."""
    mine, theirs = (read_weights(path / "run" / "pruned") for path in (folder, expected))
    assert mine.keys() == theirs.keys()
    for name, weight in theirs.items():
        torch.testing.assert_close(mine[name], weight, rtol=0, atol=atol)
    reports = [
        json.loads((path / "run" / "pruned" / "pruning.json").read_text())
        for path in (folder, expected)
    ]
    masks = [path / "run" / "pruned" / "masks.safetensors" for path in (folder, expected)]
    if "removed" not in reports[0]:
        assert masks[0].read_bytes() == masks[1].read_bytes()
        for tensor in reports[0]["tensors"]:
            assert int((mine[tensor["name"]] == 0).sum()) == tensor["size"] // 2
    for report in reports:
        for entry in report["rounds"]:
            del entry["seconds"]
    for key in ("tensors", "rounds", "removed", *(["recipe"] if recipe else [])):
        assert reports[0].get(key) == reports[1].get(key)
    lines = [
        read_lines(path / "run" / "board" / "only" / "results.jsonl") for path in (folder, expected)
    ]
    for one, other in zip(*lines, strict=True):
        assert one["metric"] == other["metric"]
        assert one["value"] == pytest.approx(
            other["value"], rel=10 * atol, abs=10 * atol, nan_ok=True
        )


def read_seen(folder: Path, place: str) -> list[Any]:
    """Read what `seen.Seen` wrote at a place."""
    return [line["value"] for line in read_lines(folder / "seen.jsonl") if line["place"] == place]


def test_weights_are_those_of_ddp(ddp: Path, sharded: Path) -> None:
    assert_equal(sharded, ddp)


def test_ranks_that_share_the_blocks_never_hold_a_model(
    material: Path,
    ddp: Path,
    sharded: Path,
    tmp_path: Path,
    prepare: Callable[..., None],
    forked: Run,
) -> None:
    prepare(tmp_path, shares)
    folders = (fitted_by(tmp_path, forked), sharded, ddp)
    assert_equal(tmp_path, ddp)
    first, second = read_seen(ddp, "values")
    assert first != second
    for folder in folders:
        assert read_seen(folder, "values") == [first, second]
    sizes = measure_sizes(AutoModelForCausalLM.from_pretrained(material / "dense"))
    pair, outside = 2 * sizes.model, 2 * sizes.skeleton
    for place, expected in {
        "train": (pair / 2, pair / 2, pair),
        "measure": (pair / 2 + outside, pair / 2 + pair, pair),
        "end": (outside + sizes.blocks, pair, pair),  # the blocks of both, half of each
    }.items():
        for folder, size in zip(folders, expected, strict=True):
            assert {*read_seen(folder, place)} == {size}, (place, folder)


@pytest.mark.full
@pytest.mark.parametrize(
    "changes",
    [
        (harsh,),
        (adapters,),
        (hidden, in_one_file, harsh),
        (shares, harsh, hidden),
        (shares, adapters),
        (shares, narrow),
        (three, shares, gentle, harsh),
    ],
)
def test_all_that_training_can_do(
    changes: tuple[Change, ...], tmp_path: Path, prepare: Callable[..., None], forked: Run
) -> None:
    prepare(tmp_path / "sharded", *changes)
    prepare(tmp_path / "ddp", *changes, whole)
    folders = [fitted_by(tmp_path / name, forked) for name in ("sharded", "ddp")]
    assert_equal(*folders, atol=1e-6)


@pytest.mark.full
@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("step 4", ()),
        ("block 5", ()),
        ("step 2", (shares,)),
        ("block 5", (shares,)),
        ("epoch 1", (shares,)),
        ("tokenizer", (shares,)),
    ],
)
def test_killed_and_taken_up_is_bitwise_the_same(
    place: str,
    changes: tuple[Change, ...],
    sharded: Path,
    tmp_path: Path,
    prepare: Callable[..., None],
    forked: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dying(config: dict[str, Any]) -> None:
        config["pruning"]["init_args"]["pruner"]["class_path"] = "dying.DyingWanda"

    own = place.startswith("block")
    prepare(tmp_path, *changes, *([dying] if own else []))
    monkeypatch.setenv("DIE_AT", place)
    assert fit(tmp_path, forked).returncode != 0
    assert (tmp_path / "died").exists()
    assert not (tmp_path / "run" / "pruned").exists()
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt" / ".metadata").is_file()
    second = fit(tmp_path, forked, "--ckpt_path", "last")
    assert second.returncode == 0, second.stderr
    assert_equal(tmp_path, sharded, recipe=not own)


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
