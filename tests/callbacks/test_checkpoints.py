import json
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from transformers import PreTrainedModel

from prunelit.callbacks.checkpoints import LastCheckpoint, WholeFileCheckpointIO
from prunelit.core.module import PairedLM
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
    saved = torch.load(BytesIO(whole), weights_only=True)
    torch.save(saved | {"callbacks": []}, last)
    complaint = refused("--config", configure(), "--ckpt_path", "last")
    assert "holds no valid callbacks" in complaint
    (key,) = [key for key in saved["callbacks"] if key.startswith("Pruning")]
    state = saved["callbacks"][key]
    plain = json.loads(state["json"])
    for change in (
        {"masks": {}},
        {"json": json.dumps({**plain, "rounds": []})},
    ):
        torch.save(saved | {"callbacks": {**saved["callbacks"], key: {**state, **change}}}, last)
        complaint = refused("--config", configure(), "--ckpt_path", "last")
        assert f"in the checkpoint {str(last)!r} are not those that were written" in complaint
    saved["callbacks"][key]["json"] = "{"
    torch.save(saved, last)
    complaint = refused("--config", configure(), "--ckpt_path", "last")
    assert f"{str(last)!r} is damaged: the state of `Pruning` in it cannot be read" in complaint
    last.unlink()
    last.mkdir()
    assert f"checkpoint at {str(last)!r} but found a folder" in refused("--config", configure())


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


@pytest.mark.parametrize("pruned", [True, False])
def test_a_checkpoint_of_another_model_is_refused_before_its_weights_are_loaded(
    pruned: bool,
    cli: Callable[..., None],
    configure: Callable[..., str],
    refused: Callable[..., str],
    make_model: Callable[..., PreTrainedModel],
    material: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def change(config: dict[str, Any]) -> None:
        config["trainer"]["max_epochs"] = 1
        config["pruning"]["init_args"]["schedule"] = None
        if not pruned:
            del config["pruning"]

    cli("fit", "--config", configure(change))
    other = tmp_path / "other"
    shutil.copytree(material / "dense", other)
    make_model("qwen3").save_pretrained(other)
    again = ("--config", configure(change), "--ckpt_path", "last", "--model.source", str(other))
    if pruned:
        monkeypatch.setattr(PairedLM, "load", None)
        assert "another recipe (model.version.config.json: " in refused(*again)
    else:
        assert "is of another model: 'model.model." in refused(*again)
