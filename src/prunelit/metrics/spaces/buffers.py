"""Memory that one chunk of tokens after another writes its intermediates into."""

import torch
from torch import Tensor

# Entries of a (tokens, V) intermediate, 4 MB in float32. A comparison passes over several of them
# again and again, so they should stay near the cache of a CPU; with less than this the threads of a
# busy machine spend their time waiting for one another. An accelerator wants few, large kernels.
_CPU_ENTRIES = 2**20
_ACCELERATOR_ENTRIES = 2**23


def rows_per_chunk(tokens: Tensor) -> int:
    """How many of (..., N) tokens to compare at a time; bounds the memory of a comparison."""
    entries = _CPU_ENTRIES if tokens.device.type == "cpu" else _ACCELERATOR_ENTRIES
    return max(1, entries // max(1, tokens.shape[-1]))


class Buffers:
    """Named tensors, allocated on first use and handed out again to the next chunk.

    Fresh pages of memory cost a CPU more time than the arithmetic that fills them. What lives in a
    buffer is valid until the next chunk asks for the same name, and carries no gradient.
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor) -> Tensor:
        """An uninitialised tensor with the shape, type and device of `like`."""
        memory = self._memory.get(name)
        if (
            memory is None
            or memory.numel() < like.numel()
            or memory.dtype != like.dtype
            or memory.device != like.device
        ):
            memory = torch.empty(like.numel(), dtype=like.dtype, device=like.device)
            self._memory[name] = memory
        return memory[: like.numel()].view(like.shape)
