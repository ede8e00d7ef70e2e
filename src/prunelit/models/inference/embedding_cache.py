"""Store embeddings on disk under a hash of everything that determines them."""

import hashlib
import io
import json
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.errors import InputError
from prunelit.files import replace_file
from prunelit.models.fingerprint import fingerprint
from prunelit.models.gguf import cache_folder
from prunelit.models.parallel import gather
from prunelit.models.stores import one_at_a_time
from prunelit.models.views import original

_CHECKSUM = hashlib.sha256().digest_size  # bytes at the end of a file


def default_folder() -> Path:
    """Return `embeddings` in `PRUNELIT_CACHE`, or else in the user's cache directory."""
    return cache_folder() / "embeddings"


class Fingerprints:
    """Fingerprints of models during one validation, in which weights do not change."""

    def __init__(self) -> None:
        self._known: dict[int, str] = {}
        self._lock = threading.Lock()

    def get(self, model: PreTrainedModel) -> str:
        """Return the fingerprint of a model; it is computed on first use."""
        model = original(model)
        with one_at_a_time(self._lock):
            if id(model) not in self._known:
                self._known[id(model)] = fingerprint(model)
            return self._known[id(model)]


def content_key(model: str, batch: Sequence[Tensor], recipe: Mapping[str, Any]) -> bytes:
    """Compute 16 bytes that are equal for equal embeddings.

    Args:
        model: fingerprint of the model, see `Fingerprints`.
        batch: input of the model with its padding, on which the last bits of an embedding depend.
        recipe: options of the embedding, as plain data.
    """
    device = batch[0].device.type
    around = {
        "autocast": str(torch.get_autocast_dtype(device))
        if torch.is_autocast_enabled(device)
        else None,
        "device": device,
        "matmul": torch.get_float32_matmul_precision(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    digest = hashlib.sha256(json.dumps([model, around, dict(recipe)], sort_keys=True).encode())
    for tensor in batch:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.digest()[:16]


class EmbeddingCache:
    """One `.npy` file per batch, named by its key. Files are never removed.

    A checksum of the key, the shape and the values is at the end of a file. A file that was changed
    is computed anew.

    The folder may be deleted while no run uses it. A run on several machines needs a folder that
    all of them see.

    Args:
        folder: folder of the files. It may be read-only if it already has all embeddings of a run.

    Raises:
        InputError: if the folder does not exist and cannot be created.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        self._told = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # a name may not hold "\0"
            raise self._unwritable(error) from error
        if not os.access(self.folder, os.W_OK):
            rank_zero_warn(
                f"The cache of embeddings {str(self.folder)!r} is read-only: the first text that "
                "it lacks ends the run."
            )

    def fetch(
        self,
        key: bytes,
        count: int,
        compute: Callable[[], Tensor],
        model: PreTrainedModel | None = None,
    ) -> Tensor:
        """Load embeddings from disk, or else compute and store them.

        Args:
            key: see `content_key`.
            count: B, number of texts.
            compute: returns (B, D) float32.
            model: computes them; with other ranks, if each of them has a part of it.

        Returns:
            (B, D) float32, on the CPU.
        """
        path = self._path(key)
        known = _read(path) if path.is_file() else None
        if path.is_file() and (known is None or len(known) != count):
            if not self._told:
                rank_zero_info(
                    f"{str(path)!r} in the cache of embeddings is damaged, or another version "
                    "wrote it: this file, and any other such file, is computed anew."
                )
            self._told, known = True, None
        if all(gather(model, known is not None)) and known is not None:
            return torch.from_numpy(known)
        embeddings = compute().detach().float().cpu()
        self._write(path, embeddings.numpy())
        return embeddings

    def load(self, key: bytes) -> Tensor:
        """Load the embeddings of a batch that any rank stored.

        Returns:
            (B, D) float32, on the CPU.

        Raises:
            InputError: if they are not on disk.
        """
        path = self._path(key)
        known = _read(path) if path.is_file() else None
        if known is None:
            raise InputError(
                f"Expected the embeddings that another process wrote in {str(path)!r} but found "
                "none: give the task a `cache` folder that all machines of the run see, and do not "
                "change it during the run."
            )
        return torch.from_numpy(known)

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / f"{name}.npy"

    def _write(self, path: Path, values: np.ndarray) -> None:
        try:
            content = io.BytesIO()
            np.save(content, values)
            with replace_file(path, shared=True) as partial:
                partial.write_bytes(content.getvalue() + _checksum(path, content.getvalue()))
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> InputError:
        folder = str(self.folder)
        return InputError(
            f"Nothing can be written into {folder!r}, the cache of embeddings: {error}."
        )


def _checksum(path: Path, content: bytes) -> bytes:
    """Hash the content of a file with its name, which is its key."""
    return hashlib.sha256(path.name.encode() + content).digest()


def _read(path: Path) -> np.ndarray | None:
    """Read a file; None if it is damaged."""
    try:
        written = path.read_bytes()
        content, checksum = written[:-_CHECKSUM], written[-_CHECKSUM:]
        if checksum != _checksum(path, content):
            return None
        values = np.load(io.BytesIO(content))
    except (EOFError, OSError, ValueError):
        return None
    whole = values.ndim == 2 and values.dtype == np.float32 and bool(np.isfinite(values).all())
    return values if whole else None
