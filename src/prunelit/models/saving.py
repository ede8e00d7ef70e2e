"""Write a pruned model as a folder that stock `from_pretrained` loads."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prunelit.errors import InputError
from prunelit.models.surgery import Removed, build_exported, find_removed

REPORT_FILE = "pruning.json"
MASKS_FILE = "masks.safetensors"


def check_writable(folder: str | Path) -> None:
    """Refuse a target before the heavy work starts.

    Raises:
        InputError: if `folder` exists and is not a pruned model, or cannot be created.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / REPORT_FILE).is_file() and _has_content(folder):
        raise InputError(
            f"{str(folder)!r} exists and holds no {REPORT_FILE}, so it was not written by "
            "prunelit: choose another output folder or remove it."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent):
            pass
    except OSError as error:
        raise InputError(f"Nothing can be written into {str(folder.parent)!r}: {error}.") from error


def save_pretrained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | Path,
    report: Any,
) -> None:
    """Write weights (safetensors), configuration, tokenizer and `pruning.json`.

    What was removed as a whole (blocks, neurons, sublayers) is not stored; its indices are in
    `pruning.json`. Otherwise `masks.safetensors` holds one bit a weight of every pruned tensor.

    Everything is written under a temporary name beside `folder` and renamed when complete; a pruned
    model that was there before is replaced only then.

    Args:
        model: the pruned model; tied weights stay tied.
        tokenizer: its tokenizer.
        folder: where to; parents are created.
        report: what `prunelit.prune` returned.

    Raises:
        InputError: if `folder` exists and was not written by prunelit.
    """
    folder = Path(folder)
    check_writable(folder)
    partial = _beside(folder, "partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    partial.mkdir()
    try:
        plain = report.as_dict()
        if report.shrinks:
            model, removed = build_exported(model)
            plain["removed"] = removed.as_dict()
            plain["stored_parameters"] = sum(p.numel() for p in model.parameters())
        else:  # names and shapes are those of the folder
            if (before := find_removed(model)) != Removed():  # by an earlier method
                plain["removed"] = before.as_dict()
            save_file(report.masks.pack(), partial / MASKS_FILE)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        text = json.dumps(plain, indent=2, allow_nan=False)
        (partial / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_report(folder: str | Path) -> dict[str, Any] | None:
    """The content of `pruning.json` in `folder`; None if there is no pruned model.

    Raises:
        InputError: if the file is there and is not JSON.
    """
    path = Path(folder) / REPORT_FILE
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{str(path)!r} is not valid JSON: {error}.") from error


def _has_content(folder: Path) -> bool:
    return not folder.is_dir() or any(folder.iterdir())


def _beside(folder: Path, state: str) -> Path:
    """Where `folder` is while it is written, or until another has taken its place."""
    return folder.with_name(f".{folder.name}.{state}")


def _swap(partial: Path, folder: Path) -> None:
    old = _beside(folder, "old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    try:
        partial.rename(folder)
    except BaseException:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
