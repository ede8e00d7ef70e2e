"""Stores: places where the blocks of a model wait until they are worked on."""

import mmap
import os
import tempfile

import torch
from torch import nn

_ALIGNMENT = 64  # bytes, more than any dtype needs


class BlockStore:
    """Leave every block at its place."""

    def bring(self, block: nn.Module) -> None:
        """Make a block ready to be worked on."""

    def put_away(self, block: nn.Module) -> None:
        """Free the fast memory that a block takes."""


class MemoryStore(BlockStore):
    """Keep blocks in the memory of the CPU and bring them to a device.

    Args:
        device: place where blocks are worked on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def bring(self, block: nn.Module) -> None:
        block.to(self._device)

    def put_away(self, block: nn.Module) -> None:
        block.to("cpu")


class DiskStore(BlockStore):
    """Keep blocks in files on disk and work on them in the memory of the CPU.

    The files have no name and vanish with the process. Parameters stay usable at any time: the
    system reads them back on access.

    Args:
        blocks: blocks on the CPU; their parameters are moved to the files.
    """

    def __init__(self, blocks: nn.ModuleList) -> None:
        self._maps = [_move_to_disk(block) for block in blocks]

    def put_away(self, block: nn.Module) -> None:
        # All of them: a look at the whole model may have read other blocks too.
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_DONTNEED)


def make_store(blocks: nn.ModuleList, device: torch.device | None) -> BlockStore:
    """Build the store for the device where blocks are worked on.

    Args:
        blocks: blocks of a model, on the CPU unless `device` is None.
        device: a GPU keeps waiting blocks in memory, the CPU keeps them on disk; None moves
            nothing.
    """
    if device is None:
        return BlockStore()
    return DiskStore(blocks) if device.type == "cpu" else MemoryStore(device)


@torch.no_grad()
def _move_to_disk(block: nn.Module) -> mmap.mmap:
    """Move the parameters of `block` to a mapped file."""
    parameters = list(block.parameters())
    starts, size = [], 0
    for parameter in parameters:
        starts.append(size)
        size += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash later
            os.posix_fallocate(file.fileno(), 0, max(size, 1))
        mapped = mmap.mmap(file.fileno(), size)
    for parameter, start in zip(parameters, starts, strict=True):
        count = parameter.numel()
        view = torch.frombuffer(mapped, dtype=parameter.dtype, count=count, offset=start)
        view.copy_(parameter.data.flatten())
        parameter.data = view.view(parameter.shape)
    mapped.madvise(mmap.MADV_DONTNEED)
    return mapped
