"""Rounds of pruning with recovery between them, as the command line runs them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

Cli = Callable[..., None]
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


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "pruned" / "pruning.json").read_text())


def scalars(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder / "run" / "board" / "only"), size_guidance={"scalars": 0})
    events.Reload()
    return events


def linear_weights(folder: Path) -> dict[str, torch.Tensor]:
    weights = load_file(folder / "run" / "pruned" / "model.safetensors")
    return {name: value for name, value in weights.items() if name.endswith("_proj.weight")}


def test_rounds_reach_the_ratio_and_training_goes_on_under_the_masks(
    cli: Cli, configure: Callable[..., str], tmp_path: Path, material: Path
) -> None:
    cli("fit", "--config", configure())
    rounds = report(tmp_path)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2, 3]
    assert [entry["epoch"] for entry in rounds] == [0, 1, 2]
    assert [entry["step"] for entry in rounds] == [0, 6, 12]
    expected = [0.5 * fraction for fraction in (19 / 27, 26 / 27, 1)]
    assert [entry["sparsity"] for entry in rounds] == pytest.approx(expected, abs=2e-3)
    dense = load_file(material / "dense" / "model.safetensors")
    weights = linear_weights(tmp_path)
    assert len(weights) == 21
    for name, weight in weights.items():
        assert int((weight == 0).sum()) == weight.numel() // 2, name
        assert not torch.equal(weight, torch.where(weight == 0, 0, dense[name])), name
    logged = scalars(tmp_path)
    assert [event.value for event in logged.Scalars("pruning/sparsity")] == pytest.approx(
        [entry["sparsity"] for entry in rounds]
    )
    assert [event.step for event in logged.Scalars("pruning/fraction")] == [0, 6, 12]
    assert len(logged.Scalars("train/loss")) == 18
    assert {"train/lm", "train/kl_dense_pruned"} <= set(logged.Tags()["scalars"])


def test_rounds_by_steps(cli: Cli, configure: Callable[..., str], tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        schedule = {"rounds": 3, "every_n_steps": 2}
        config["pruning"]["init_args"]["schedule"]["init_args"] = schedule
        config["trainer"] |= {"max_epochs": 2, "accumulate_grad_batches": 2}

    cli("fit", "--config", configure(change))
    assert [entry["step"] for entry in report(tmp_path)["rounds"]] == [0, 2, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_precision_clipping_and_bfloat16_weights(
    cli: Cli, configure: Callable[..., str], tmp_path: Path, dtype: str
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"]["dtype"] = dtype
        config["trainer"] |= {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
        if dtype == "float32":
            config["trainer"]["precision"] = "bf16-mixed"

    cli("fit", "--config", configure(change))
    for name, weight in linear_weights(tmp_path).items():
        assert weight.dtype == getattr(torch, dtype)
        assert int((weight == 0).sum()) >= weight.numel() // 2, name


def test_validate_reads_what_fit_trained(
    cli: Cli, configure: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    with pytest.raises(SystemExit):
        cli("validate", "--config", config)
    assert "holds no pruned model, and this recipe needs training" in capsys.readouterr().err
    cli("fit", "--config", config)
    results = tmp_path / "run" / "board" / "only" / "results.jsonl"
    fitted = results.read_text()
    results.unlink()
    cli("validate", "--config", config)
    assert results.read_text() == fitted
    with pytest.raises(SystemExit):
        cli("validate", "--config", config, "--trainer.max_epochs", "4")
    assert "was pruned by another recipe, and this recipe needs" in capsys.readouterr().err


def test_lora_is_merged_under_the_masks(
    cli: Cli, configure: Callable[..., str], tmp_path: Path, material: Path
) -> None:
    def change(config: dict[str, Any]) -> None:
        del config["pruning"]["init_args"]["schedule"]
        config["model"]["recovery"]["lora"] = {"rank": 2}

    cli("fit", "--config", configure(change))
    dense = load_file(material / "dense" / "model.safetensors")
    saved = load_file(tmp_path / "run" / "pruned" / "model.safetensors")
    assert saved.keys() == dense.keys()
    for name, weight in saved.items():
        if name.endswith("_proj.weight"):
            assert int((weight == 0).sum()) == weight.numel() // 2, name
            assert not torch.equal(weight, torch.where(weight == 0, 0, dense[name])), name
        else:
            assert torch.equal(weight, dense[name]), name


def test_best_weights_after_the_last_round_are_written(
    cli: Cli, configure: Callable[..., str], tmp_path: Path
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["trainer"]["max_epochs"] = 6
        folder = str(tmp_path / "run" / "checkpoints")
        config["model"]["lr_scheduler"] = {  # gets worse in the end
            "class_path": "torch.optim.lr_scheduler.ExponentialLR",
            "init_args": {"gamma": 1.15},
        }
        best = {"dirpath": folder, "monitor": "val/perplexity/nll"}
        config["trainer"]["callbacks"] = [
            {"class_path": "prunelit.callbacks.BestCheckpoint", "init_args": best},
        ]

    cli("fit", "--config", configure(change))
    losses = [event.value for event in scalars(tmp_path).Scalars("val/perplexity/nll")]
    final = losses[-1]  # of the model that was written
    later = losses[2:6]
    assert min(later) < later[-1]
    assert final == pytest.approx(min(later), abs=1e-6)
    for weight in linear_weights(tmp_path).values():
        assert int((weight == 0).sum()) == weight.numel() // 2


def test_early_stopping_waits_for_the_last_round(
    cli: Cli, configure: Callable[..., str], tmp_path: Path
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["trainer"]["max_epochs"] = 9
        stopping = {"monitor": "val/perplexity/nll", "patience": 1, "min_delta": 100.0}
        config["trainer"]["callbacks"] = [
            {"class_path": "prunelit.callbacks.EarlyStopping", "init_args": stopping},
        ]

    cli("fit", "--config", configure(change))
    assert [entry["epoch"] for entry in report(tmp_path)["rounds"]] == [0, 1, 2]
    # The first validation after the last round sets the mark, the next one is no better.
    assert len(scalars(tmp_path).Scalars("train/loss")) == 6 * 4


def refused(
    cli: Cli, capsys: pytest.CaptureFixture[str], *arguments: str, command: str = "fit"
) -> str:
    with pytest.raises(SystemExit) as left:
        cli(command, *arguments)
    assert left.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--trainer.max_epochs", "0"), "Expected training between 3 rounds"),
        (("--trainer.max_epochs", "2"), "2 epochs of 6 steps reach only 2"),
        (("--model.recovery.lora", "{rank: 2}"), "Expected one round with `recovery.lora` but got"),
        (("--data.recovery", "null"), "text to train on, `data.recovery`, but got neither"),
        (("--data.recovery.length", "130"), "but a recovery sequence has 130"),
        (("--model.reference", "false"), "need the dense model|needs the dense model"),
        (("--model.recovery.train", "[nothing]"), "'nothing' of `recovery.train` matches no"),
        (("--ckpt_path", "absent.ckpt"), "found no 'absent.ckpt'"),
        (("--data.recovery.sequences", "1"), "at least a batch of 2 recovery sequences"),
    ],
)
def test_what_cannot_work_is_refused(
    option: tuple[str, str],
    message: str,
    cli: Cli,
    configure: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    fewer = ("--data.recovery.sequences", "4") if "length" in option[0] else ()
    complaint = refused(cli, capsys, "--config", configure(), *option, *fewer)
    assert any(part in complaint for part in message.split("|")), complaint
    assert not (tmp_path / "run" / "pruned").exists()


def test_checkpoint_of_another_run_or_a_broken_one(
    cli: Cli, configure: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cli("fit", "--config", configure())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    again = ("--config", configure(), "--ckpt_path", "last")
    ratio = ("--pruning.pruner.sparsity.ratio", "0.4")
    assert "was written by a run with another recipe" in refused(cli, capsys, *again, *ratio)
    last.write_bytes(last.read_bytes()[:5000])
    complaint = refused(cli, capsys, "--config", configure(), "--ckpt_path", str(last))
    assert "cannot be read" in complaint


def test_fully_sharded_training_is_refused(
    configure: Callable[..., str], console: Callable[..., Any], tmp_path: Path
) -> None:
    def change(config: dict[str, Any]) -> None:
        strategy = "lightning.pytorch.strategies.ModelParallelStrategy"
        config["trainer"]["strategy"] = {"class_path": strategy}

    done = console(tmp_path, "fit", "--config", configure(change))
    assert done.returncode == 2
    assert "ModelParallelStrategy, which shards the weights that pruning reads" in done.stderr
