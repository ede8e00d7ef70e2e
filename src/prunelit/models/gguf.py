"""Convert GGUF files once to safetensors in a cache folder, to load them from there."""

import functools
import hashlib
import importlib.util
import json
import os
import re
import tempfile
import zlib
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunelit.errors import InputError, first_line, visible
from prunelit.files import is_text, replace_folder
from prunelit.models.gguf_header import GGUFHeader

# Part of the cache key. Raise it if the conversion writes other bytes.
_CONVERSION = 4
_CHECKSUMS = "checksums.json"


def cache_folder() -> Path:
    """Return the cache folder: `PRUNELIT_CACHE`, or else the user's cache directory."""
    folder = Path(os.environ.get("PRUNELIT_CACHE") or platformdirs.user_cache_dir("prunelit"))
    if not is_text(str(folder)):  # tokenizers cannot write there
        raise InputError(
            f"Expected a cache whose path is UTF-8 text but got {str(folder)!r}: set the variable "
            "PRUNELIT_CACHE to another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"The cache {str(folder)!r} cannot be written: {error.strerror}. Set the variable "
            "PRUNELIT_CACHE to a folder that can."
        ) from error
    return folder


def convert_gguf(gguf: Path) -> Path:
    """Convert a GGUF file to float32 safetensors with its tokenizer, unless the cache has it.

    The first call takes about 20 s for 135M parameters. If two processes start at once, one of them
    converts and the other waits. The folder gets its final name only when it is complete. Checksums
    of its files show if one was damaged; then the file is converted anew.

    Args:
        gguf: the file.

    Returns:
        The folder.

    Raises:
        InputError: if the extra `gguf` is not installed or the file cannot be read.
    """
    digest = _digest(gguf, _state(gguf.stat()))
    name = re.sub(r"[^\w.-]", "_", gguf.stem, flags=re.ASCII)[:100]
    target = cache_folder() / "gguf" / f"{name}-{digest[:16]}"
    if _is_whole(target):
        return target
    missing = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(
            f"Reading {gguf.name} needs {' and '.join(missing)}: run "
            "`pip install 'prunelit[gguf]'`."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not _is_whole(target):
            if target.is_dir():
                rank_zero_info(f"The converted copy in {target} is damaged.")
            rank_zero_info(f"Converting {visible(gguf.name)} to safetensors in {target} (once).")
            _convert(gguf, target)
    return target


@functools.cache
def _digest(gguf: Path, state: tuple[int, ...]) -> str:
    """Hash the content; `state` makes the cache of this process miss a file that changed."""
    digest = hashlib.sha256(f"{_CONVERSION}".encode())
    with gguf.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _is_whole(folder: Path) -> bool:
    """Return True if a converted folder exists with the bytes that were written."""
    try:
        written = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        return isinstance(written, dict) and written == _checksums(folder)
    except (OSError, ValueError):
        return False


def _checksums(folder: Path) -> dict[str, int]:
    paths = sorted(path for path in folder.iterdir() if path.name != _CHECKSUMS)
    status = {path: path.stat() for path in paths}
    return {p.name: _checksum(p, _state(s)) for p, s in status.items()}


def _state(status: os.stat_result) -> tuple[int, ...]:
    """Return what differs after a change of a file, even if its size and its time are set back."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


@functools.cache
def _checksum(path: Path, state: tuple[int, ...]) -> int:
    """Read a file once a process; `state` makes the cache miss a later change."""
    checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _convert(gguf: Path, target: Path) -> None:
    with replace_folder(target) as partial:
        try:
            header = GGUFHeader(gguf)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
            model, info = loaded
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        # Wrong or missing bytes can raise anything in these libraries.
        except Exception as error:
            raise InputError(
                f"{gguf} cannot be read as a GGUF model: {first_line(error)}"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"{gguf} cannot be read as a GGUF model: it lacks {len(missing)} weights of "
                f"{type(model).__name__}, the first is {missing[0]!r}."
            )
        header.set_positions(model.config.get_text_config(decoder=True))
        header.set_splits(tokenizer)
        header.check_model(model)
        # The loaded model is marked as quantised and cannot be saved, although its weights are
        # float32. Another model of the same class takes the weights.
        del model.config.quantization_config
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        text = json.dumps(_checksums(partial))
        (partial / _CHECKSUMS).write_text(text, encoding="utf-8")
