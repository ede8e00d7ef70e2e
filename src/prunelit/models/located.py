"""Locate a model: a folder, a GGUF file, or a commit on the hub."""

import json
import pickle
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME, find_adapter_config_file

from prunelit.data.hub import explain, is_cache_alone, resolve_commit
from prunelit.data.sources import is_hub_name, local_path, split_revision
from prunelit.errors import InputError, close_names, first_line
from prunelit.files import POINTER, is_pointer
from prunelit.models.gguf import convert_gguf

# Exceptions whose message is a sentence; others are a name or a number, and need their type.
_TELLING = (ImportError, OSError, RuntimeError, ValueError)
_JSON_FILES = (CONFIG_NAME, GENERATION_CONFIG_NAME, "tokenizer_config.json", "tokenizer.json")
# Transformers would attach the adapter, and its matrices would be pruned in place of the model's.
_ADAPTER = (
    "Expected a complete model but {source!r} holds an adapter ({file}): merge it with "
    "`merge_and_unload()` of peft and save the result, or take the adapter's files away."
)


def locate(source: str, revision: str | None) -> tuple[str, dict[str, Any]]:
    """Return what transformers reads `source` from, a folder or a name, and the options of both.

    For a name on the hub the options are its commit, and if the cache alone is read.
    """
    if is_hub_name(source):
        commit = _find_commit(source, revision)
        local = is_cache_alone(source, "model", commit)
        return source, {"revision": commit, "local_files_only": local}
    if revision is not None:
        raise InputError(
            f"Expected no `revision` with {source!r}, which is not on the hub, but got "
            f"{revision!r}: leave it out."
        )
    path = local_path(source)
    if path.suffix.lower() == ".gguf":
        if path.is_file() and is_pointer(path):
            raise InputError(f"{source!r} is {POINTER}.")
        return str(convert_gguf(path)), {}
    if (path / ADAPTER_CONFIG_NAME).is_file():
        raise InputError(_ADAPTER.format(source=source, file=ADAPTER_CONFIG_NAME))
    if not path.is_dir() or not (path / "config.json").is_file():
        raise InputError(
            f"Expected {source!r} to be a model folder with a config.json, or a .gguf file."
        )
    _check_pointers(path)
    _check_json(path)
    return str(path), {}


def pin_revision(source: str, revision: str | None = None) -> str | None:
    """Return the commit that a revision of a model on the hub stands for now; None for a folder.

    Configuration, tokenizer and weights that are read at a commit belong together, even if the
    branch moves on between two reads.

    Args:
        source: see `load_pretrained`.
        revision: branch, tag or commit on the hub.

    Raises:
        InputError: if there is no such model or revision, or if it is an adapter.
    """
    return locate(source, revision)[1].get("revision")


def _find_commit(source: str, revision: str | None) -> str:
    """Return the commit of a complete model on the hub."""
    name, other = split_revision(source)
    if other is not None:
        raise InputError(
            f"Expected a model without a revision but got {source!r}: give {name!r} as the source "
            f"and {other!r} as `revision`."
        )
    try:
        commit = resolve_commit(source, "model", revision)
        local = is_cache_alone(source, "model", commit)
        adapter = find_adapter_config_file(source, revision=commit, local_files_only=local)
    except Exception as error:  # the hub's own types, and those of its transport
        raise refuse_source("model", source, error, revision) from error
    if adapter:
        raise InputError(_ADAPTER.format(source=source, file=ADAPTER_CONFIG_NAME))
    return commit


def _check_json(folder: Path) -> None:
    """Refuse a folder whose small files are damaged: libraries tell of their own code instead."""
    for name in _JSON_FILES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            found = f"no JSON ({first_line(error)})"
        else:
            if isinstance(content, dict):
                continue
            found = f"JSON of type {type(content).__name__}"
        raise InputError(
            f"Expected {str(path)!r} to be a JSON object but it is {found}: copy it from the model "
            "again."
        )


def _check_pointers(folder: Path) -> None:
    """Refuse a clone of a repository without its large files."""
    for file in sorted(folder.iterdir()):
        if file.is_file() and is_pointer(file):
            raise InputError(f"{str(file)!r} is {POINTER}.")


def refuse_source(
    what: str, source: str, error: Exception, revision: str | None = None
) -> InputError:
    """Return the error of a source that a library cannot read.

    A damaged file can raise any exception in these libraries.
    """
    if is_hub_name(source):
        folder = Path(source)
        near = close_names(folder.name, _names(folder.parent))
        hint = f" Is the folder {str(folder.parent / near[0])!r} meant?" if near else ""
        return InputError(
            f"No {what} could be loaded from {source!r}, which is no folder; on the hub: "
            f"{explain(error, source, 'model', revision)}.{hint}"
        )
    if isinstance(error, pickle.UnpicklingError):
        reason = (
            "its weights are damaged, or pickled with code, which is not run: save the model again "
            "as safetensors, with `save_pretrained`"
        )
    else:
        reason = first_line(error) if isinstance(error, _TELLING) else _with_type(error)
    return InputError(f"No {what} could be loaded from {source!r}: {reason}")


def _with_type(error: Exception) -> str:
    line = first_line(error)
    return line if line == type(error).__name__ else f"{line} ({type(error).__name__})"


def _names(folder: Path) -> list[str]:
    """List the folders in a folder; nothing if there is no such folder."""
    return [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
