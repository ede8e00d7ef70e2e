"""Masked weights: those of a dense block that pruning only removed, as one bit a weight.

A word is as many bytes as the smallest number of a block has. If all numbers have one size, as in
most models, a word is a weight. Bits are equal to those of the weights, also where a weight is -0.0
or NaN.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.stores import WORDS, Store, store_of

_EIGHT_TRUE = 0x0101010101010101
# Words at one time: a CPU has them in its cache, which makes it six times as fast.
_CHUNKS = {"cpu": 2**18}
_CHUNK = 2**24


def pack_mask(run: Tensor, dense: Tensor, itemsize: int) -> Tensor | None:
    """Find which words of a run are those of a dense one, if all others are +0.

    Args:
        run: (N,) uint8, see `prunelit.models.flat_block`; N is a multiple of 64.
        dense: (N,) uint8 of the same layout, on the same device.
        itemsize: bytes of a word.

    Returns:
        (N / itemsize / 8,) uint8: bit i of byte j, least significant first, is word 8 j + i, and
        True keeps it. None if a word is neither.
    """
    own, other = (one.view(WORDS[itemsize]) for one in (run, dense))
    bits = torch.empty(own.numel() // 8, dtype=torch.uint8, device=run.device)
    for part in _parts(bits):
        words = own[8 * part.start : 8 * part.stop]
        keep = words == other[8 * part.start : 8 * part.stop]
        if not ((keep | (words == 0)).view(torch.int64) == _EIGHT_TRUE).all():
            return None
        # Byte i of the factor takes bit i into the highest byte.
        bits[part] = (keep.view(torch.int64) * 0x0102040810204080).view(torch.uint8)[7::8]
    return bits


def apply_mask_(run: Tensor, bits: Tensor) -> None:
    """Set the words of a dense run to 0 that a mask of `pack_mask` removes.

    Args:
        run: (N,) uint8; it is changed.
        bits: (N / itemsize / 8,) uint8, on the same device.
    """
    if not run.numel():
        return
    words = run.view(WORDS[run.numel() // (8 * bits.numel())])
    for part in _parts(bits):
        words[8 * part.start : 8 * part.stop] *= _unpack(bits[part])


def _unpack(bits: Tensor) -> Tensor:
    """Give each bit as a number, least significant first: (8 N,) int8."""
    if bits.device.type == "cpu":
        return torch.from_numpy(np.unpackbits(bits.numpy(), bitorder="little")).view(torch.int8)
    places = torch.arange(8, device=bits.device)
    return (bits[:, None] >> places & 1).to(torch.int8).flatten()


def _parts(bits: Tensor) -> Iterator[slice]:
    """Cut the bytes of a mask into parts that are worked on at one time."""
    size = _CHUNKS.get(bits.device.type, _CHUNK) // 8
    for first in range(0, bits.numel(), size):
        yield slice(first, min(first + size, bits.numel()))


def dense_stores(count: int, dense: PreTrainedModel | None) -> list[Store | None]:
    """Return the stores of blocks that the blocks of a pruned model may rest on.

    Args:
        count: number of blocks of the pruned model.
        dense: the dense model; None if the run has none.

    Returns:
        A store for each block; None everywhere if the models have different numbers of blocks.
    """
    stores = [] if dense is None else [store_of(block) for block in decoder_blocks(dense)[1]]
    return stores if len(stores) == count else [None] * count
