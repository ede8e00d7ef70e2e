"""Callbacks that watch a metric."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def test_best_weights_after_the_last_round_are_written(
    cli: Callable[..., None],
    configure: Callable[..., str],
    linear_weights: Callable[[], dict[str, torch.Tensor]],
    scalars: Callable[[], Any],
    tmp_path: Path,
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
    losses = [event.value for event in scalars().Scalars("val/perplexity/nll")]
    final = losses[-1]  # of the model that was written
    later = losses[2:6]
    assert min(later) < later[-1]
    assert final == pytest.approx(min(later), abs=1e-6)
    for weight in linear_weights().values():
        assert int((weight == 0).sum()) == weight.numel() // 2


def test_early_stopping_waits_for_the_last_round(
    cli: Callable[..., None],
    configure: Callable[..., str],
    rounds: Callable[[], list[dict[str, Any]]],
    linear_weights: Callable[[], dict[str, torch.Tensor]],
    scalars: Callable[[], Any],
    tmp_path: Path,
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["trainer"]["max_epochs"] = 9
        stopping = {"monitor": "val/perplexity/nll", "patience": 1, "min_delta": 100.0}
        config["trainer"]["callbacks"] = [
            {"class_path": "prunelit.callbacks.EarlyStopping", "init_args": stopping},
        ]

    cli("fit", "--config", configure(change))
    assert [entry["epoch"] for entry in rounds()] == [0, 1, 2]
    # The first validation after the last round sets the mark, the next one is no better.
    assert len(scalars().Scalars("train/loss")) == 6 * 4
    before = linear_weights()
    shutil.rmtree(tmp_path / "run" / "pruned")
    cli("fit", "--config", configure(change), "--ckpt_path", "last")
    assert len(scalars().Scalars("train/loss")) == 6 * 4
    for name, weight in linear_weights().items():
        assert weight.equal(before[name]), name


@pytest.mark.parametrize("name", ["BestCheckpoint", "EarlyStopping"])
def test_a_metric_that_is_not_measured(
    cli: Callable[..., None],
    configure: Callable[..., str],
    refused: Callable[..., str],
    scalars: Callable[[], Any],
    tmp_path: Path,
    name: str,
) -> None:
    def change(config: dict[str, Any]) -> None:
        arguments = {"monitor": "val/perplexity/nill"}
        if name == "BestCheckpoint":
            arguments["dirpath"] = str(tmp_path / "run" / "checkpoints")
        config["trainer"]["callbacks"] = [
            {"class_path": f"prunelit.callbacks.{name}", "init_args": arguments},
        ]

    complaint = refused("--config", configure(change))
    assert f"'val/perplexity/nill' of `{name}` is not measured by this run" in complaint
    assert "val/perplexity/nll" in complaint
    assert len(scalars().Scalars("train/loss")) == 6  # two rounds before the last one


def test_best_weights_that_no_validation_measured(
    configure: Callable[..., str], refused: Callable[..., str], tmp_path: Path
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["trainer"]["check_val_every_n_epoch"] = 2  # after the second of three rounds
        best = {"dirpath": str(tmp_path / "checkpoints"), "monitor": "val/perplexity/nll"}
        config["trainer"]["callbacks"] = [
            {"class_path": "prunelit.callbacks.BestCheckpoint", "init_args": best},
        ]

    complaint = refused("--config", configure(change))
    assert "never measured 'val/perplexity/nll' after the last round" in complaint
    assert not (tmp_path / "run" / "pruned").exists()


@pytest.mark.parametrize(
    ("watchers", "trainer", "message"),
    [
        (["EarlyStopping"], {}, "with a task of ['perplexity'] but got 'val/perplexty/nll'"),
        (["BestCheckpoint", "BestCheckpoint"], {}, "Expected one `BestCheckpoint`"),
        (
            ["BestCheckpoint"],
            {"check_val_every_n_epoch": None, "val_check_interval": 1000},
            "`BestCheckpoint` would never see a validation",
        ),
        (
            ["BestCheckpoint"],
            {"check_val_every_n_epoch": None, "val_check_interval": 10, "limit_train_batches": 3},
            "`val_check_interval` is 10 batches and training has 9",
        ),
        (
            ["BestCheckpoint"],
            {"check_val_every_n_epoch": None, "val_check_interval": 8, "max_steps": 7},
            "`val_check_interval` is 8 batches and training has 7",
        ),
    ],
)
def test_watchers_that_would_see_nothing(
    watchers: list[str],
    trainer: dict[str, Any],
    message: str,
    configure: Callable[..., str],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["trainer"] |= trainer
        monitor = "val/perplexty/nll" if watchers == ["EarlyStopping"] else "val/perplexity/nll"
        config["trainer"]["callbacks"] = [
            {
                "class_path": f"prunelit.callbacks.{name}",
                "init_args": {"monitor": monitor}
                | ({"dirpath": str(tmp_path / str(i))} if name == "BestCheckpoint" else {})
                | ({"mode": "max"} if i else {}),
            }
            for i, name in enumerate(watchers)
        ]

    assert message in refused("--config", configure(change))
