"""Streaming: the blocks of a model wait in files and come to a device one at a time."""

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.parallel import is_split
from prunelit.models.stores import Store, check_here, keep_in, place_outside, store_of

_ALIGNMENT = 64  # bytes, more than any dtype needs


class FileStore(Store):
    """Keeps the weights of a block in files that are mapped into memory.

    A weight that is away is a tensor on the CPU, which the system reads from its file on access. On
    a GPU `fetch` copies it to the device. Weights that are edited move to a file without a name,
    which vanishes with the process.

    Args:
        block: a decoder block on the CPU; weights that `from_pretrained` read in their own dtype
            lie in the files of the model.
        folder: of the file of edited weights, on a disk; None is the system's temporary folder.
        device: where the block is worked on; None is the CPU.
    """

    def __init__(
        self, block: nn.Module, folder: Path | None = None, device: torch.device | None = None
    ) -> None:
        super().__init__()
        self.device = device or torch.device("cpu")
        self._block = block
        self._folder = folder
        self._away: list[Tensor] = []
        self._file: MappedFile | None = None

    def fetch(self) -> None:
        if self.device.type != "cpu":
            self._away = [weight.data for weight in self._block.parameters()]
            for weight in self._block.parameters():
                weight.data = weight.data.to(self.device)

    def leave(self, edited: bool) -> None:
        weights = list(self._block.parameters())
        if edited:
            self.keep(weights)
        elif self.device.type != "cpu":
            for weight, away in zip(weights, self._away, strict=True):
                weight.data = away
        elif self._file is not None:
            self._file.release()
        self._away = []

    def keep(self, weights: Sequence[nn.Parameter]) -> None:
        """Move the weights of the block to its file.

        Args:
            weights: its present ones; a smaller block has other ones.

        Raises:
            OSError: if the disk is full.
        """
        if self._file is None or not self._file.fits(weights):
            self._file = MappedFile(weights, self._folder)
        self._file.take(weights)


class MappedFile:
    """A file without a name that holds tensors.

    Args:
        tensors: gives shapes and dtypes.
        folder: place of the file; None is the system's temporary folder.

    Raises:
        OSError: if the disk is full.
    """

    def __init__(self, tensors: Iterable[Tensor], folder: Path | None) -> None:
        tensors = list(tensors)
        starts, size = [], 0
        for tensor in tensors:
            starts.append(size)
            size += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(max(size, 1))
            if hasattr(os, "posix_fallocate"):  # a full disk is an error here, and a crash later
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
            self._mapped = mmap.mmap(file.fileno(), max(size, 1))
        self._views = [
            torch.frombuffer(
                self._mapped, dtype=tensor.dtype, count=tensor.numel(), offset=start
            ).view(tensor.shape)
            for tensor, start in zip(tensors, starts, strict=True)
        ]

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Return True if the tensors have the shapes and dtypes of this file."""
        kinds = ([(one.shape, one.dtype) for one in many] for many in (tensors, self._views))
        return next(kinds) == next(kinds)

    @torch.no_grad()
    def take(self, weights: Sequence[nn.Parameter]) -> None:
        """Move weights to the file, in its dtypes; they stay usable. It frees their memory."""
        for weight, view in zip(weights, self._views, strict=True):
            if weight.data_ptr() != view.data_ptr():
                view.copy_(weight.data)
                weight.data = view
        self.release()

    def release(self) -> None:
        """Give up the memory that holds the content; the next access reads it from the file."""
        self._mapped.madvise(mmap.MADV_DONTNEED)


def stream(model: PreTrainedModel, dtype: torch.dtype, folder: Path | None = None) -> None:
    """Let the blocks of a model wait in files.

    Args:
        model: on the CPU, as `from_pretrained` read it in its own dtype.
        dtype: of the weights; another one than their own is written into files without a name.
        folder: see `FileStore`.
    """
    blocks = decoder_blocks(model)[1]
    parts = [list(block.parameters()) for block in blocks]
    inside = {id(weight) for part in parts for weight in part}
    parts.append([weight for weight in model.parameters() if id(weight) not in inside])
    for part in parts:
        if any(weight.dtype != dtype for weight in part):
            MappedFile((weight.to("meta", dtype) for weight in part), folder).take(part)
    model.config.dtype = dtype
    for block in blocks:
        keep_in(block, FileStore(block, folder))


@contextmanager
def offloaded(blocks: nn.ModuleList, device: torch.device | None) -> Iterator[None]:
    """Let blocks wait in files, away from the place where they are worked on, within the context.

    Args:
        blocks: blocks of a model, on the CPU unless `device` is None.
        device: place where blocks are worked on; None moves nothing.

    Raises:
        InputError: if the blocks wait in stores already.
    """
    if device is None:
        yield
        return
    check_here(blocks, "`offload_to`")
    try:
        for block in blocks:
            store = FileStore(block, device=device)
            store.keep(list(block.parameters()))  # out of the memory that they take now
            keep_in(block, store)
        yield
    finally:
        for block in blocks:
            keep_in(block, None)


def place_model(model: PreTrainedModel, device: torch.device) -> None:
    """Move a model to a device; blocks in a `FileStore` come there when they are worked on.

    A model whose ranks share the blocks, or compute it together, is where it belongs already.

    Args:
        model: any.
        device: where it computes.
    """
    blocks = decoder_blocks(model)[1]
    stores = [store for block in blocks if (store := store_of(block))]
    if is_split(model):
        return
    if not stores:
        model.to(device)  # type: ignore[arg-type]
        return
    for store in stores:
        if not isinstance(store, FileStore):
            return
        store.device = device
    place_outside(model, blocks, device)
