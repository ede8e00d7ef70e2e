"""Reusable memory for the intermediates of one chunk of tokens after another."""

import torch
from torch import Tensor

# Entries of a (tokens, V) intermediate, 4 MB in float64. A comparison passes over several of them
# many times, so they should fit into the cache of a CPU. With fewer entries the threads of a busy
# machine mostly wait for each other. An accelerator wants few, large kernels.
_CPU_ENTRIES = 2**19
_ACCELERATOR_ENTRIES = 2**22


def rows_per_chunk(tokens: Tensor) -> int:
    """Number of (..., N) tokens to compare at a time, which bounds the memory of a comparison."""
    entries = _CPU_ENTRIES if tokens.device.type == "cpu" else _ACCELERATOR_ENTRIES
    return max(1, entries // max(1, tokens.shape[-1]))


class Buffers:
    """Named tensors, allocated on first use and used again for the next chunk.

    Fresh pages of memory cost a CPU more time than the arithmetic that fills them. The content of a
    buffer is valid until the next chunk asks for the same name. It carries no gradient.

    Example:
        >>> import torch
        >>> from prunelit.metrics import Buffers
        >>> buffers = Buffers()
        >>> first = buffers.get("difference", torch.zeros(2, 3))
        >>> second = buffers.get("difference", torch.zeros(1, 3))
        >>> second.shape, second.data_ptr() == first.data_ptr()
        (torch.Size([1, 3]), True)
    """

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def get(self, name: str, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return an uninitialised tensor with the shape and device of `like`.

        Args:
            name: of the memory.
            like: gives shape and device.
            dtype: of the result; None is that of `like`.
        """
        dtype = dtype or like.dtype
        memory = self._memory.get(name)
        if (
            memory is None
            or memory.numel() < like.numel()
            or memory.dtype != dtype
            or memory.device != like.device
        ):
            memory = torch.empty(like.numel(), dtype=dtype, device=like.device)
            self._memory[name] = memory
        return memory[: like.numel()].view(like.shape)
