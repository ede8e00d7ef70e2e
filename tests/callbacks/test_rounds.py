"""Rounds of pruning with recovery between them, as the command line runs them."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file

from prunelit.callbacks import Pruning

Cli = Callable[..., None]


def test_rounds_reach_the_ratio_and_training_goes_on_under_the_masks(
    cli: Cli,
    configure: Callable[..., str],
    rounds: Callable[[], list[dict[str, Any]]],
    linear_weights: Callable[[], dict[str, torch.Tensor]],
    scalars: Callable[[], Any],
    material: Path,
) -> None:
    cli("fit", "--config", configure())
    written = rounds()
    assert [entry["round"] for entry in written] == [1, 2, 3]
    assert [entry["epoch"] for entry in written] == [0, 1, 2]
    assert [entry["step"] for entry in written] == [0, 6, 12]
    expected = [0.5 * fraction for fraction in (19 / 27, 26 / 27, 1)]
    assert [entry["sparsity"] for entry in written] == pytest.approx(expected, abs=2e-3)
    dense = load_file(material / "dense" / "model.safetensors")
    weights = linear_weights()
    assert len(weights) == 21
    for name, weight in weights.items():
        assert int((weight == 0).sum()) == weight.numel() // 2, name
        assert not torch.equal(weight, torch.where(weight == 0, 0, dense[name])), name
    logged = scalars()
    assert [event.value for event in logged.Scalars("pruning/sparsity")] == pytest.approx(
        [entry["sparsity"] for entry in written]
    )
    assert [event.step for event in logged.Scalars("pruning/fraction")] == [0, 6, 12]
    assert len(logged.Scalars("train/loss")) == 18
    assert {"train/lm", "train/kl_dense_pruned"} <= set(logged.Tags()["scalars"])


def test_rounds_by_steps(
    cli: Cli, configure: Callable[..., str], rounds: Callable[[], list[dict[str, Any]]]
) -> None:
    def change(config: dict[str, Any]) -> None:
        schedule = {"rounds": 3, "every_n_steps": 2}
        config["pruning"]["init_args"]["schedule"]["init_args"] = schedule
        config["trainer"] |= {"max_epochs": 2, "accumulate_grad_batches": 2}

    cli("fit", "--config", configure(change))
    assert [entry["step"] for entry in rounds()] == [0, 2, 4]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixed_precision_clipping_and_bfloat16_weights(
    cli: Cli,
    configure: Callable[..., str],
    linear_weights: Callable[[], dict[str, torch.Tensor]],
    dtype: str,
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["model"]["dtype"] = dtype
        config["trainer"] |= {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
        if dtype == "float32":
            config["trainer"]["precision"] = "bf16-mixed"

    cli("fit", "--config", configure(change))
    for name, weight in linear_weights().items():
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
    complaint = capsys.readouterr().err
    assert "was pruned by another recipe (training.max_epochs: 4 now, 3 there)" in complaint
    assert "and this recipe needs training" in complaint


def test_lora_is_merged_under_the_masks(
    cli: Cli,
    configure: Callable[..., str],
    tmp_path: Path,
    material: Path,
    scalars: Callable[[], Any],
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
    *_, trained, written = [event.value for event in scalars().Scalars("val/perplexity/nll")]
    assert trained == pytest.approx(written, rel=1e-6)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--trainer.max_epochs", "0"), "Expected training between 3 rounds"),
        (("--trainer.max_epochs", "2"), "12 optimizer steps, 6 an epoch, reach only 2"),
        (("--model.recovery.lora", "{rank: 2}"), "Expected one round with `recovery.lora` but got"),
        (("--data.recovery", "null"), "text to train on, `data.recovery`, but got neither"),
        (("--data.recovery.length", "130"), "but a recovery sequence has 130"),
        (("--model.reference", "false"), "need the dense model|needs the dense model"),
        (("--model.recovery.train", "[nothing]"), "'nothing' of `recovery.train` matches no"),
        (("--ckpt_path", "absent.ckpt"), "there is no file 'absent.ckpt'"),
        (("--data.recovery.sequences", "1"), "at least a batch of 2 recovery sequences"),
    ],
)
def test_what_cannot_work_is_refused(
    option: tuple[str, str],
    message: str,
    configure: Callable[..., str],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    fewer = ("--data.recovery.sequences", "4") if "length" in option[0] else ()
    complaint = refused("--config", configure(), *option, *fewer)
    assert any(part in complaint for part in message.split("|")), complaint
    assert not (tmp_path / "run" / "pruned").exists()


@pytest.mark.parametrize(
    ("every", "stop", "before", "sequence"),
    [(4, 5, [1], False), (None, 8, [1, 2], False), (None, 8, [1, 2], True)],
    ids=["steps", "epochs", "sequence"],
)
def test_a_run_that_goes_on_prunes_no_round_of_its_checkpoint_again(
    every: int | None,
    stop: int,
    before: list[int],
    sequence: bool,
    cli: Cli,
    configure: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(config: dict[str, Any]) -> None:
        arguments = {"dirpath": str(tmp_path / "last"), "every_n_train_steps": every}
        last = {"class_path": "prunelit.callbacks.LastCheckpoint", "init_args": arguments}
        config["trainer"]["callbacks"] = [last]
        if sequence:
            pruning = config["pruning"]["init_args"]
            neuron = {"class_path": "prunelit.pruners.Neuron"}
            methods = {"methods": [neuron, pruning["pruner"]]}
            pruning["pruner"] = {"class_path": "prunelit.pruners.Sequence", "init_args": methods}

    done: list[int] = []
    apply = Pruning.apply

    def note(self: Pruning, *arguments: Any) -> Any:
        done.append(len(self._rounds) + 1)
        return apply(self, *arguments)

    def content() -> dict[str, bytes]:
        folder = tmp_path / "run" / "pruned"
        return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}

    monkeypatch.setattr(Pruning, "apply", note)
    cli("fit", "--config", configure(change))
    assert done == [1, 2, 3]
    whole = content()
    assert len(whole) == 2 - sequence  # weights, and masks unless parts are taken out
    shutil.rmtree(tmp_path / "run")
    shutil.rmtree(tmp_path / "last")
    done.clear()

    def die(_: Any, trainer: Trainer, *__: Any) -> None:
        if trainer.global_step == stop:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Pruning, "on_train_batch_end", die)
        with pytest.raises(SystemExit):
            cli("fit", "--config", configure(change))
    assert done == before
    assert not content()
    done.clear()
    cli("fit", "--config", configure(change), "--ckpt_path", "last")
    assert done == [2, 3]
    assert content() == whole
