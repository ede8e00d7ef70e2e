"""Folders of shards are read without running what their pickles name."""

import io
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING, Metadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from prunelit.callbacks.checkpoints import read_checkpoint
from prunelit.errors import InputError

CONTENT = {"callbacks": {}, "loops": {}, "epoch": 1, "global_step": 2}
single = pytest.mark.filterwarnings("ignore:.*in a single process")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with a tensor and a value that is none."""
    path = tmp_path / "last.ckpt"
    weights = {"model.weight": torch.arange(1000.0)}
    content = {"state_dict": weights, "optimizer_0": {"lr": 0.1}}
    with pytest.warns(UserWarning, match="save in a single process"):
        save_shards(content, checkpoint_id=path, no_dist=True)
    torch.save(CONTENT, path / "meta.pt")
    return path


def test_a_folder_of_shards_and_a_damaged_one(folder: Path) -> None:
    assert read_checkpoint(folder, checksums=True) == CONTENT
    (shards,) = folder.glob("*.distcp")
    whole = shards.read_bytes()
    middle = len(whole) // 2
    for damaged, reason in (
        (whole[:middle], r"its part 'state_dict\.model\.weight' is not what was written"),
        (whole[:middle] + bytes(64) + whole[middle + 64 :], "is not what was written"),
    ):
        shards.write_bytes(damaged)
        with pytest.raises(InputError, match=reason):
            read_checkpoint(folder, checksums=True)
    shards.unlink()
    with pytest.raises(InputError, match="is damaged and cannot be read"):
        read_checkpoint(folder)
    shards.write_bytes(whole)
    (folder / ".metadata").write_bytes(b"")
    with pytest.raises(InputError, match="is damaged and cannot be read"):
        read_checkpoint(folder)
    (folder / ".metadata").unlink()
    with pytest.raises(InputError, match="there is no file"):
        read_checkpoint(folder)


class Evil:
    """Makes a folder when it is read as a pickle."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self._path),)


@single
def test_an_index_that_runs_code_is_refused(folder: Path, tmp_path: Path) -> None:
    index = FileSystemReader(folder).read_metadata()
    ran = tmp_path / "ran"
    content = pickle.dumps(replace(index, planner_data=Evil(ran)))
    (folder / ".metadata").write_bytes(content)
    with pytest.raises(InputError, match=r"\.metadata would call \w+\.mkdir, which is not done"):
        read_checkpoint(folder)
    assert not ran.exists()
    FileSystemReader(folder).read_metadata()  # which Lightning and torch call
    assert ran.exists()


class Taken:
    """Takes an attribute when it is read, as some versions of Python write an enumeration."""

    def __init__(self, owner: object, name: str) -> None:
        self._call = owner, name

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, str]]:
        return getattr, self._call


@single
@pytest.mark.parametrize(
    ("taken", "sentence"),
    [
        (Taken(_MEM_FORMAT_ENCODING, "TORCH_CHANNELS_LAST"), None),
        (Taken(_MEM_FORMAT_ENCODING, "mro"), "damaged and cannot be read"),
        (Taken(Metadata, "__init__"), "it would take '__init__' of .*, which is not done"),
    ],
)
def test_only_a_memory_format_is_taken_by_name(
    folder: Path, taken: Taken, sentence: str | None
) -> None:
    index = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(replace(index, planner_data=taken)))
    if sentence is None:
        assert read_checkpoint(folder) == CONTENT
    else:
        with pytest.raises(InputError, match=sentence):
            read_checkpoint(folder)


@single
@pytest.mark.parametrize("checksums", [False, True])
def test_a_value_that_runs_code_is_refused(folder: Path, tmp_path: Path, checksums: bool) -> None:
    index = FileSystemReader(folder).read_metadata()
    (place,) = [place for part, place in index.storage_data.items() if part.fqn == "optimizer_0.lr"]
    ran, value = tmp_path / "ran", io.BytesIO()
    torch.save(Evil(ran), value)
    place.relative_path, place.offset, place.length = "evil", 0, len(value.getvalue())
    (folder / "evil").write_bytes(value.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(InputError, match=r"damaged and cannot be read \(Weights only load failed"):
        read_checkpoint(folder, checksums=checksums)
    assert not ran.exists()
    load_shards({"optimizer_0": {"lr": 0.0}}, checkpoint_id=folder, no_dist=True)
    assert ran.exists()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda index: {"a": 1}, "holds a dict and no index"),
        (
            lambda index: (
                [
                    setattr(place, "transform_descriptors", ["stream.zstd"])
                    for place in index.storage_data.values()
                ]
                and index
            ),
            "is compressed, which prunelit never does",
        ),
    ],
)
def test_an_index_of_another_kind_is_refused(
    folder: Path, change: Callable[[Metadata], Any], sentence: str
) -> None:
    index = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(change(index)))
    with pytest.raises(InputError, match=sentence):
        read_checkpoint(folder)
