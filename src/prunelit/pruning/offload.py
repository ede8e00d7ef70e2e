"""Keep the blocks of a model out of the way until they are worked on."""

import mmap
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

_ALIGNMENT = 64  # bytes, more than any dtype needs


def offload(
    blocks: nn.ModuleList, device: torch.device
) -> Callable[[int], AbstractContextManager[None]]:
    """Let blocks wait in memory for a GPU, or on disk for the CPU.

    Args:
        blocks: on the CPU. On disk, in a file without a name that goes with the process, their
            parameters stay usable: what is read comes back by itself.
        device: where blocks are worked on.

    Returns:
        Gives a context manager that is open while block i is worked on.
    """
    if device.type != "cpu":

        @contextmanager
        def on_device(index: int) -> Iterator[None]:
            blocks[index].to(device)
            try:
                yield
            finally:
                blocks[index].to("cpu")

        return on_device

    maps = [_to_disk(block) for block in blocks]

    @contextmanager
    def in_memory(index: int) -> Iterator[None]:
        try:
            yield
        finally:
            # Others may have been read by a look at the whole model.
            for mapped in maps:
                mapped.madvise(mmap.MADV_DONTNEED)

    return in_memory


@torch.no_grad()
def _to_disk(block: nn.Module) -> mmap.mmap:
    """Move the parameters of `block` to a mapped file."""
    parameters = list(block.parameters())
    starts, size = [], 0
    for parameter in parameters:
        starts.append(size)
        size += -(-parameter.nbytes // _ALIGNMENT) * _ALIGNMENT
    with tempfile.TemporaryFile() as file:
        file.truncate(size)
        mapped = mmap.mmap(file.fileno(), size)
    for parameter, start in zip(parameters, starts, strict=True):
        count = parameter.numel()
        view = torch.frombuffer(mapped, dtype=parameter.dtype, count=count, offset=start)
        view.copy_(parameter.data.flatten())
        parameter.data = view.view(parameter.shape)
    mapped.madvise(mmap.MADV_DONTNEED)
    return mapped
