"""GGUF files: converted once to safetensors in a cache folder, then loaded from there."""

import functools
import hashlib
import importlib.util
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import platformdirs
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoModelForCausalLM, AutoTokenizer

from prunelit.errors import InputError, first_line

# Part of the cache key: raise it when the conversion writes other bytes.
_CONVERSION = 1
# What the parser of transformers lets through where bytes are wrong or missing.
_DAMAGED = (ArithmeticError, LookupError, OSError, RuntimeError, ValueError, struct.error)


def cache_folder() -> Path:
    """`PRUNELIT_CACHE`, or else the user's cache directory."""
    return Path(os.environ.get("PRUNELIT_CACHE") or platformdirs.user_cache_dir("prunelit"))


def convert_gguf(gguf: Path) -> Path:
    """The folder that holds `gguf` as float32 safetensors with its tokenizer.

    Converts on the first call (about 20 s for 135M parameters). Two processes may start at once:
    one converts, the other waits. The folder appears under its final name only when complete.

    Raises:
        InputError: if the extra `gguf` is not installed or the file cannot be read.
    """
    status = gguf.stat()
    digest = _digest(gguf, status.st_size, status.st_mtime_ns)
    target = cache_folder() / "gguf" / f"{gguf.stem}-{digest[:16]}"
    if target.is_dir():
        return target
    missing = [name for name in ("gguf", "accelerate") if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(
            f"Reading {gguf.name} needs {' and '.join(missing)}: run "
            "`pip install 'prunelit[gguf]'`."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            rank_zero_info(f"Converting {gguf.name} to safetensors in {target} (once).")
            _convert(gguf, target)
    return target


@functools.cache
def _digest(gguf: Path, size: int, modified: int) -> str:
    """Hash of the content; size and time make a file that changed another key."""
    digest = hashlib.sha256(f"{_CONVERSION}".encode())
    with gguf.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _convert(gguf: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a conversion that was killed
    try:
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, output_loading_info=True
            )
            model, info = loaded
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        except _DAMAGED as error:
            raise InputError(
                f"{gguf} cannot be read as a GGUF model: {first_line(error)}"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise InputError(
                f"{gguf} cannot be read as a GGUF model: it lacks {len(missing)} weights of "
                f"{type(model).__name__}, the first is {missing[0]!r}."
            )
        # The loaded model counts as quantised, and refuses to be saved, although its weights are
        # plain float32: an ordinary model of the same class takes them over.
        del model.config.quantization_config
        plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
        plain.load_state_dict(model.state_dict())
        plain.generation_config = model.generation_config
        plain.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
