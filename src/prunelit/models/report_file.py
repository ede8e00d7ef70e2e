"""Files that the folder of a pruned model has beside its weights and its tokenizer."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from prunelit.errors import InputError
from prunelit.models.surgery import Removed

REPORT_FILE = "pruning.json"
_PROCESSOR = "prunelit_processor"


def keep_processor(model: nn.Module, files: Sequence[Path]) -> None:
    """Remember the files of a model that turn images and sounds into its inputs."""
    setattr(model, _PROCESSOR, tuple(files))


def copy_processor(model: nn.Module, folder: Path) -> None:
    """Copy the files that `keep_processor` remembers into a folder; none for a model of text."""
    for file in getattr(model, _PROCESSOR, ()):
        shutil.copyfile(file, folder / file.name)


def read_report(folder: str | Path) -> dict[str, Any] | None:
    """Read `pruning.json` of a folder; None if the folder is no pruned model.

    Raises:
        InputError: if the file is not valid JSON.
    """
    path = Path(folder) / REPORT_FILE
    if not os.path.isfile(path):
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is not valid JSON ({error}): prune again, or restore the file."
        ) from error
    removed = report.get("removed", {}) if isinstance(report, dict) else None
    if not isinstance(removed, dict) or not set(removed) <= set(Removed().as_dict()):
        raise InputError(
            f"{str(path)!r} is not as prunelit writes it: prune again, or restore the file."
        )
    for key, value in removed.items():
        if not _fits(key, value):
            named = {
                "widths": "a width",
                "kept_experts": "numbers of experts",
                "experts": "a number of experts",
                "heads": "a number of heads",
                "hidden_size": "a number of channels",
                "fields": "fields of blocks",
            }
            what = named.get(key, "indices of blocks")
            raise InputError(
                f"Expected {what} as `removed.{key}` in {str(path)!r} but got "
                f"{value!r}: prune again, or restore the file."
            )
    return report


def _fits(key: str, value: Any) -> bool:
    """Return True if a value of `Removed` has the form that its name asks for."""
    tables = {
        "returns": _is_text,
        "widths": _is_number,
        "heads": _is_number,
        "kept_experts": _are_different,
        "fields": lambda own: isinstance(own, dict),
    }
    if key in tables:
        return isinstance(value, dict) and all(map(tables[key], value.values()))
    single = key in ("experts", "hidden_size")
    return (value is None or _is_number(value)) if single else _are_numbers(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return type(value) is int and value >= 0


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_different(value: Any) -> bool:
    return _are_numbers(value) and len(set(value)) == len(value)


def experts_before(report: dict[str, Any]) -> set[int]:
    """Find how many experts the mixtures had that lost some, before they did.

    The numbers of `removed.kept_experts` are numbers of these. Another dense model, such as the one
    that an earlier pruning started from, may have more.

    Args:
        report: as `read_report` returns it.

    Raises:
        InputError: if it does not say it.
    """
    kept = report.get("removed", {}).get("kept_experts", {})
    ends = tuple({f".{name.partition('.')[2]}.down_proj" for name in kept})
    try:
        tensors = report["tensors"] if kept else []
        return {tensor["shape"][0] for tensor in tensors if tensor["name"].endswith(ends)}
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise InputError(
            f"Expected names and shapes of the dense weights as `tensors` in {REPORT_FILE!r} but "
            "found others: prune again, or restore the file."
        ) from error
