"""Stores of blocks that wait in the memory of the CPU or on disk while one is worked on."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prunelit.models.stores import Store, check_here, keep_in

_ALIGNMENT = 64  # bytes, more than any dtype needs


class MemoryStore(Store):
    """Keep a block in the memory of the CPU and bring it to a device.

    Args:
        block: a decoder block, on the CPU.
        device: place where it is worked on.
    """

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        super().__init__()
        self._block = block
        self._device = device

    def fetch(self) -> None:
        self._block.to(self._device)

    def leave(self, edited: bool) -> None:
        self._block.to("cpu")


class DiskStore(Store):
    """Keep a block in a file on disk and work on it in the memory of the CPU.

    The file has no name and vanishes with the process. Parameters stay usable at any time: the
    system reads them back on access.

    Args:
        block: a decoder block, on the CPU; its parameters are moved to the file.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._map = _move_to_disk(block)

    def fetch(self) -> None:
        """Do nothing: the system reads what is used."""

    def leave(self, edited: bool) -> None:
        self._map.madvise(mmap.MADV_DONTNEED)


@contextmanager
def offloaded(blocks: nn.ModuleList, device: torch.device | None) -> Iterator[None]:
    """Let blocks wait away from the place where they are worked on, within the context.

    Args:
        blocks: blocks of a model, on the CPU unless `device` is None.
        device: place where blocks are worked on. A GPU keeps waiting blocks in memory, the CPU
            keeps them on disk; None moves nothing.

    Raises:
        InputError: if the blocks wait in stores already.
    """
    if device is None:
        yield
        return
    check_here(blocks, "`offload_to`")
    try:
        for block in blocks:
            own = DiskStore(block) if device.type == "cpu" else MemoryStore(block, device)
            keep_in(block, own)
        yield
    finally:
        for block in blocks:
            keep_in(block, None)


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
