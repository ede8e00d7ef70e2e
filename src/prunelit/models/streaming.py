"""Streaming: the blocks of a model wait in files and come to a device one at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunelit.models.architecture import decoder_blocks
from prunelit.models.flat_block import FlatBlock, check_flat, new_run
from prunelit.models.masked import dense_stores
from prunelit.models.parallel import is_split
from prunelit.models.sharing import share_outside
from prunelit.models.stores import (
    Store,
    align,
    bring,
    check_here,
    keep_in,
    place_outside,
    store_of,
)
from prunelit.models.unread import Unread
from prunelit.models.weight_files import (
    MappedWeights,
    Read,
    Source,
    WrittenFile,
    write_all,
    write_mask,
)


class FileStore(Store):
    """Keeps the weights of a block in files, and reads them into new memory when they come.

    So they lie at aligned addresses on every device. While the block is away, its parameters are on
    `meta`. Weights that are edited go to a file without a name, which vanishes with the process:
    all of them, or a mask of those that were read, see `keep_masked`.

    Args:
        block: a decoder block on the CPU.
        folder: of files without a name, on a disk; None is the system's temporary folder.
        device: where the block is worked on; None is the CPU.
        mapped: knows which weights lie in files already; others are written at once.
        parts: mapped tensors that some weights were joined of, see `MappedWeights.find`.

    Attributes:
        device: see above.

    Raises:
        OSError: if the disk is full.
    """

    def __init__(
        self,
        block: nn.Module,
        folder: Path | None = None,
        device: torch.device | None = None,
        mapped: MappedWeights | None = None,
        parts: Sequence[Tensor] = (),
    ) -> None:
        super().__init__()
        self.device = device or torch.device("cpu")
        self._block = block
        self._folder = folder
        self._coming: Coming | None = None
        self._flat = FlatBlock(block.modules())
        found = mapped and mapped.find(self._flat, parts)
        self._kept: Source = found or self._write()
        # What an edited block may rest on, with its bytes; these files are there in any case.
        self._dense: tuple[Source, int] | None = (found, self._flat.size) if found else None
        self._flat.hide()

    def prefetch(self) -> None:
        if self._coming is None and not self._inside:
            self._coming = self._come()

    def fetch(self) -> None:
        coming, self._coming = self._coming or self._come(), None
        self._flat.show(coming.wait())

    def leave(self, edited: bool) -> None:
        if edited:
            self._flat = FlatBlock(self._block.modules())
            self._kept = self._mask(self._flat.copy_into) or self._write()
        self._flat.hide()

    def keep_masked(self, dense: Store) -> None:
        if isinstance(dense, FileStore) and dense._flat.size == self._flat.size:
            self._dense = dense._kept, dense._flat.size
            same = self._kept == dense._kept  # in the same files
            self._kept = dense._kept if same else self._mask(self._kept.read) or self._kept

    def give(self) -> None:
        """Let the weights stay in their file without a name, mapped into memory, from now on."""
        assert isinstance(self._kept, WrittenFile)
        self._flat.show(self._kept.map())

    def _come(self) -> "Coming":
        return Coming(self._kept, self._flat.size, self.device)

    def _mask(self, read: Read) -> Source | None:
        if self._dense is None or self._dense[1] != self._flat.size:
            return None
        return write_mask(read, *self._dense, self._flat.itemsize, self._folder)

    def _write(self) -> Source:
        return write_all(self._flat.copy_into, self._flat.size, self._folder)


class Coming:
    """Run of bytes that a thread brings to a device.

    Args:
        source: has the bytes.
        size: their number.
        device: any.
    """

    @torch.inference_mode(False)
    def __init__(self, source: Source, size: int, device: torch.device) -> None:
        self._device = device
        pinned = device.type == "cuda"
        run = torch.empty(size, dtype=torch.uint8, pin_memory=True) if pinned else new_run(size)
        pool = ThreadPoolExecutor(1)
        self._found: Future[tuple[Tensor, torch.cuda.Event | None]] = pool.submit(
            self._bring, source, run
        )
        pool.shutdown(wait=False)

    def wait(self) -> Tensor:
        """Return the bytes, (size,) uint8 on the device.

        Raises:
            OSError: if the disk failed.
        """
        run, event = self._found.result()
        if event is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(event)
            run.record_stream(current)
        return run

    def _bring(self, source: Source, run: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        source.read(run)
        if self._device.type != "cuda":
            return run.to(self._device), None
        event = torch.cuda.Event()
        with torch.cuda.stream(_side_stream(self._device)):
            there = run.to(self._device, non_blocking=True)
            event.record()
        return there, event


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def stream(
    model: PreTrainedModel,
    folder: Path | None = None,
    dense: PreTrainedModel | None = None,
) -> None:
    """Let the blocks of a model wait in files; the rest lies in a mapped file, at aligned places.

    Weights that `from_pretrained` mapped from their files, in the dtype of the run, stay in these,
    and so do those that it joined. Others are written into files without a name, and so are all
    where the system is not Linux.

    Args:
        model: on the CPU.
        folder: see `FileStore`.
        dense: a model that was streamed before. Blocks that only lost weights of its blocks are
            kept as these and a mask, now and after each edit.

    Raises:
        InputError: before any change, if the blocks cannot wait one by one.
        OSError: if the disk is full.
    """
    check_flat(model)
    blocks, mapped = decoder_blocks(model)[1], MappedWeights()
    waiting = list(map(store_of, blocks))  # keep their files mapped to the end
    stores = dense_stores(len(blocks), dense)
    for block, unread, other in zip(blocks, waiting, stores, strict=True):
        parts = unread.parts() if isinstance(unread, Unread) and not unread.mapped else ()
        bring(block)
        keep_in(block, store := FileStore(block, folder, mapped=mapped, parts=parts))
        if other is not None:
            store.keep_masked(other)
    inside = {module for block in blocks for module in block.modules()}
    rest = FlatBlock([module for module in model.modules() if module not in inside])
    file = write_all(rest.copy_into, rest.size, folder)
    rest.hide()
    rest.show(file.map())
    if dense is not None:
        share_outside(model, dense)


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
            keep_in(block, FileStore(block, device=device))
        yield
    finally:
        for block in blocks:
            if isinstance(store := store_of(block), FileStore):
                store.give()
            keep_in(block, None)


def place_model(model: PreTrainedModel, device: torch.device) -> None:
    """Move a model to a device; blocks in a `FileStore` come there when they are worked on.

    On the CPU, weights that do not begin at a multiple of 64 bytes are copied there, since last
    bits of results can depend on it. Weights that were mapped from their files then take memory.
    A model whose ranks share the blocks, or compute it together, is where it belongs already.

    Args:
        model: any.
        device: where it computes.
    """
    if is_split(model):
        return
    blocks = decoder_blocks(model)[1]
    stores = [store for block in blocks if (store := store_of(block))]
    if not stores:
        model.to(device)  # type: ignore[arg-type]
    elif moving := [store for store in stores if isinstance(store, FileStore)]:
        for store in moving:
            store.device = device
        place_outside(model, blocks, device)
    if device.type == "cpu":
        align(model)
