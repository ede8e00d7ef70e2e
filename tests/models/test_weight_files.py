"""Files of weights; `tests/models/test_streaming.py` streams models from them."""

import os
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from prunelit.models.flat_block import FlatBlock
from prunelit.models.weight_files import FoundFiles, MappedWeights, WrittenFile, write_all

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux tells the files of weights in memory"
)


@pytest.fixture
def stored(tmp_path: Path) -> nn.Module:
    """Weights of 12, 20 and 600 bytes that are mapped from their file, which begins with names."""
    values = {"a": torch.arange(3.0), "b": -torch.arange(5.0), "c": torch.arange(150.0)}
    save_file(values, tmp_path / "model.safetensors")
    block = nn.Module()
    for name, value in load_file(tmp_path / "model.safetensors").items():
        block.register_parameter(name, nn.Parameter(value))
    return block


def run_of(flat: FlatBlock) -> Tensor:
    run = torch.zeros(flat.size, dtype=torch.uint8)
    flat.copy_into(run)
    return run


def test_a_part_is_read_and_gaps_are_zeros(stored: nn.Module, tmp_path: Path) -> None:
    flat = FlatBlock(stored.modules())
    found = MappedWeights().find(flat)
    assert found is not None
    written = write_all(flat.copy_into, flat.size, tmp_path)
    assert written.nbytes == flat.size == 64 + 64 + 640
    assert torch.equal(written.map(), run_of(flat))
    for source in (found, written):
        for low in range(0, flat.size, 64):
            for high in range(low, flat.size + 1, 64):
                part = torch.full((high - low,), 9, dtype=torch.uint8)
                source.read(part, low)
                assert torch.equal(part, run_of(flat)[low:high]), (low, high)
    assert os.listdir(tmp_path) == ["model.safetensors"]


def test_a_weight_that_was_joined_is_found_by_its_parts(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = {name: torch.randn(2, 20) for name in "abcd"}
    tensors["b"] = tensors["a"].clone()  # either is right
    save_file(tensors, tmp_path / "parts.safetensors")
    parts = list(load_file(tmp_path / "parts.safetensors").values())
    mapped = MappedWeights()
    block = nn.Module()
    block.joined = nn.Parameter(torch.stack([tensors[name] for name in "dabc"]))
    flat = FlatBlock([block])
    found = mapped.find(flat, parts)
    assert found is not None
    run = torch.empty(flat.size, dtype=torch.uint8)
    found.read(run)
    assert torch.equal(run, run_of(flat))
    assert mapped.find(flat) is None
    assert mapped.find(flat, parts[1:3]) is None  # there is more than they have
    block.joined.data[3, 1, 19] = 7
    assert mapped.find(flat, parts) is None


def test_equal_places_are_equal(stored: nn.Module, tmp_path: Path) -> None:
    flat = FlatBlock(stored.modules())
    found, again = (MappedWeights().find(flat) for _ in range(2))
    assert found == again
    other = FlatBlock([nn.Module()])
    assert found != MappedWeights().find(other)
    assert found != write_all(flat.copy_into, flat.size, tmp_path)


@pytest.mark.parametrize("change", ["value", "columns", "gone", "another file", "memory"])
def test_a_weight_that_is_not_in_its_file_is_not_found(
    stored: nn.Module, tmp_path: Path, change: str
) -> None:
    file = tmp_path / "model.safetensors"
    assert isinstance(MappedWeights().find(FlatBlock(stored.modules())), FoundFiles)
    own = stored.get_parameter("c")
    if change == "value":
        own.data[0] = 3
    elif change == "columns":
        own.data = own.data.view(10, 15).T
    elif change == "memory":
        own.data = own.data.clone()
    else:
        content = file.read_bytes()
        file.unlink()
        if change == "another file":
            (tmp_path / "other").write_bytes(b"")  # may have the inode of the first one
            file.write_bytes(content)
    mapped = MappedWeights()
    assert mapped.find(FlatBlock(stored.modules())) is None


def test_files_are_closed_once_nothing_reads_them(stored: nn.Module) -> None:
    before = len(os.listdir("/proc/self/fd"))
    flat = FlatBlock(stored.modules())
    sources = [MappedWeights().find(flat), write_all(flat.copy_into, flat.size, None)]
    assert len(os.listdir("/proc/self/fd")) == before + 2
    sources.clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_is_an_error() -> None:
    file = WrittenFile(None)
    file._file.number = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match="No space"):
        file.write(torch.zeros(64, dtype=torch.uint8), 0)
    os.close(file._file.number)
