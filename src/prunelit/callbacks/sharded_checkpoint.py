"""Checkpoints of runs that shard weights: folders of `torch.distributed.checkpoint`.

Their index is a pickle, and so is each value that is no tensor. Torch reads these with all that a
pickle can do, so they are read here first, with nothing but what torch writes into them.
"""

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata

from prunelit.core.private_api import index_names

PLAIN = "meta.pt"  # all but tensors
_INDEX = ".metadata"


def is_sharded(path: str | Path) -> bool:
    """Return True if a path is the checkpoint of a run that shards weights, a folder."""
    return os.path.isfile(Path(path) / _INDEX)


def check_shards(folder: Path, checksums: bool) -> str | None:
    """Read the index of a folder, and the values that are no tensors, without running code.

    Args:
        folder: see `is_sharded`.
        checksums: compare the checksum of every tensor, which reads all files.

    Returns:
        The name of a part that is damaged; None if there is none.

    Raises:
        pickle.UnpicklingError: if a pickle is not one that torch writes here.
        Exception: any other, if the index is damaged.
    """
    index = _read_index(folder)
    for part, place in index.storage_data.items():
        tensor = isinstance(index.state_dict_metadata[part.fqn], TensorStorageMetadata)
        with (folder / place.relative_path).open("rb") as file:
            file.seek(place.offset)
            content = file.read(0 if tensor and not checksums else place.length)
            short = file.seek(0, os.SEEK_END) < place.offset + place.length
        zipped = checksums and zipfile.is_zipfile(io.BytesIO(content))
        if short or (zipped and zipfile.ZipFile(io.BytesIO(content)).testzip() is not None):
            return part.fqn
        if getattr(place, "transform_descriptors", None):  # torch would read other bytes
            raise pickle.UnpicklingError(f"{part.fqn!r} is compressed, which prunelit never does")
        if not tensor:
            torch.load(io.BytesIO(content), weights_only=True)
    return None


def _read_index(folder: Path) -> Metadata:
    with (folder / _INDEX).open("rb") as file:
        index = _Unpickler(file).load()
    if not isinstance(index, Metadata):
        raise pickle.UnpicklingError(f"{_INDEX} holds a {type(index).__name__} and no index")
    return index


class _Unpickler(pickle.Unpickler):
    """Finds what torch writes into an index and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        known = index_names()
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{_INDEX} would call {module}.{name}, which is not done")
        return known[module, name]
