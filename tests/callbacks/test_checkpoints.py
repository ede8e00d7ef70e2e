import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from prunelit.callbacks.checkpoints import LastCheckpoint, WholeFileCheckpointIO
from prunelit.errors import InputError


def test_failure_while_a_checkpoint_is_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_half(checkpoint: dict[str, Any], file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    io, path = WholeFileCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    io.save_checkpoint({"step": 1}, path)
    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", write_half)
        with pytest.raises(OSError, match="disk full"):
            io.save_checkpoint({"step": 2}, path)
    assert torch.load(path) == {"step": 1}
    io.save_checkpoint({"step": 3}, path)
    assert torch.load(path) == {"step": 3}
    assert list(path.parent.iterdir()) == [path]


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


def test_checkpoint_of_another_run_or_a_broken_one(
    cli: Callable[..., None],
    configure: Callable[..., str],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    cli("fit", "--config", configure())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert list(last.parent.iterdir()) == [last]
    again = ("--config", configure(), "--ckpt_path", "last")
    ratio = ("--pruning.pruner.sparsity.ratio", "0.4")
    complaint = refused(*again, *ratio)
    assert "was written by a run with another recipe" in complaint
    assert "(pruner.sparsity.ratio: 0.4 now, 0.5 there)" in complaint
    whole = last.read_bytes()
    middle = len(whole) // 2
    for damaged, reason in (
        (whole[:5000], "is damaged and cannot be read"),
        (whole[:middle] + bytes(64) + whole[middle + 64 :], "is damaged: its part '"),
        (b"", "is damaged and cannot be read"),
    ):
        last.write_bytes(damaged)
        for path in ("last", str(last)):
            complaint = refused("--config", configure(), "--ckpt_path", path)
            assert f"The checkpoint {str(last)!r} {reason}" in complaint
            assert "or remove it and start without `ckpt_path`" in complaint
    torch.save({"state_dict": {}}, last)
    complaint = refused("--config", configure(), "--ckpt_path", "last")
    assert "it lacks ['callbacks', 'epoch', 'global_step', 'loops']" in complaint


def test_a_checkpoint_of_unfinished_work_is_not_overwritten(
    cli: Callable[..., None],
    configure: Callable[..., str],
    refused: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    saved: list[int] = []

    def stop(*_: object) -> None:
        saved.append(0)
        if len(saved) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LastCheckpoint, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(SystemExit):
            cli("fit", "--config", configure())
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    complaint = refused("--config", configure())
    assert f"{str(last)!r} is the checkpoint of a training that did not finish" in complaint
    assert "continue it with `--ckpt_path last`, or remove the file" in complaint
    assert last.read_bytes() == before
    cli("fit", "--config", configure(), "--ckpt_path", "last")
    cli("fit", "--config", configure())  # its work is in the pruned model now


def test_steps_between_checkpoints() -> None:
    with pytest.raises(InputError, match="`every_n_train_steps` of at least 1 but got 0"):
        LastCheckpoint("checkpoints", every_n_train_steps=0)


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


def test_what_changes_training_changes_the_recipe(
    cli: Callable[..., None],
    configure: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli("fit", "--config", configure())
    for change in (
        ("--model.optimizer.init_args.betas", "[0.1, 0.2]"),
        ("--trainer.gradient_clip_algorithm", "value"),
        ("--data.recovery.split", "train[:90%]"),
    ):
        with pytest.raises(SystemExit):
            cli("validate", "--config", configure(), *change)
        assert "was pruned by another recipe" in capsys.readouterr().err


def test_training_would_undo_rounding(
    configure: Callable[..., str], refused: Callable[..., str]
) -> None:
    def change(config: dict[str, Any]) -> None:
        arguments = config["pruning"]["init_args"]
        del arguments["schedule"]
        arguments["pruner"] = {"class_path": "prunelit.pruners.Quantize"}

    assert "`trainer.max_epochs` 0 with Quantize" in refused("--config", configure(change))
