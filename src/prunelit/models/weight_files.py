"""Files that hold the weights of a block as one run of bytes, see `prunelit.models.flat_block`.

None of them is changed after it was made, so that one may rest on another.
"""

import mmap
import os
import tempfile
import weakref
from bisect import bisect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from prunelit.models.fingerprint import content_of
from prunelit.models.flat_block import FlatBlock, new_run
from prunelit.models.masked import apply_mask_, pack_mask

_MAPPINGS = Path("/proc/self/maps")  # of Linux
_CHUNK = 2**24  # bytes that are in memory while a file is written
_SAMPLE = 4096  # bytes of a weight that show if it lies at a place in a file
_HEAD = 64  # bytes by which a part of a weight is looked up

# Fills a run, (N,) uint8, with the bytes from `low` on.
Read = Callable[[Tensor, int], None]


class Source(Protocol):
    """Place of a run of bytes."""

    def read(self, run: Tensor, low: int = 0) -> None:
        """Read a part.

        Args:
            run: (N,) uint8 on the CPU; it is filled.
            low: its first byte, a multiple of 64.

        Raises:
            OSError: if the disk fails.
        """


class OpenFile:
    """A file that is closed once nothing has it any more.

    Args:
        number: its descriptor.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        weakref.finalize(self, os.close, number)


class WrittenFile:
    """A file without a name, which vanishes with the process.

    Args:
        folder: place of the file; None is the system's temporary folder.
    """

    def __init__(self, folder: Path | None) -> None:
        with tempfile.TemporaryFile(dir=folder) as file:
            self._file = OpenFile(os.dup(file.fileno()))

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return os.fstat(self._file.number).st_size

    def write(self, run: Tensor, low: int) -> None:
        """Write (N,) uint8 from byte `low` on.

        Raises:
            OSError: if the disk is full.
        """
        left = run.numpy().data
        while left:
            count = os.pwrite(self._file.number, left, low)
            left, low = left[count:], low + count

    def read(self, run: Tensor, low: int = 0) -> None:
        _read(self._file, run, low)

    def map(self) -> Tensor:
        """Return the content as (N,) uint8, which the system reads on access and may forget."""
        if not self.nbytes:
            return torch.empty(0, dtype=torch.uint8)
        return torch.frombuffer(mmap.mmap(self._file.number, self.nbytes), dtype=torch.uint8)


class FoundFiles:
    """Weights that lie in the files of a model.

    Args:
        pieces: of each weight, or part of one, its first byte in the run, and its number of bytes;
            then its file, and its first byte there.
    """

    def __init__(self, pieces: Sequence[tuple[int, int, OpenFile, int]]) -> None:
        self._pieces = pieces

    def __eq__(self, other: object) -> bool:
        """Compare the places, not the content."""
        return isinstance(other, FoundFiles) and self._places() == other._places()

    __hash__ = None  # type: ignore[assignment]

    def read(self, run: Tensor, low: int = 0) -> None:
        done = 0
        for start, count, file, place in self._pieces:
            first, last = max(low, start), min(low + run.numel(), start + count)
            if first < last:
                run[done : first - low].zero_()  # between two weights
                _read(file, run[first - low : last - low], place + first - start)
                done = last - low
        run[done:].zero_()

    def _places(self) -> list[tuple[int, int, int, int, int]]:
        own = [(piece, os.fstat(piece[2].number)) for piece in self._pieces]
        return [(p[0], p[1], stat.st_dev, stat.st_ino, p[3]) for p, stat in own]


class MaskedFile:
    """Weights that are those of a dense block, or 0.

    Args:
        dense: has the dense ones.
        bits: which words are kept, see `prunelit.models.masked`.
        itemsize: bytes of a word.
    """

    def __init__(self, dense: Source, bits: WrittenFile, itemsize: int) -> None:
        self.bits = bits
        self._dense = dense
        self._bytes = 8 * itemsize  # of weights, whose bits are one byte

    def read(self, run: Tensor, low: int = 0) -> None:
        self._dense.read(run, low)
        bits = torch.empty(run.numel() // self._bytes, dtype=torch.uint8)
        self.bits.read(bits, low // self._bytes)
        apply_mask_(run, bits)


class MappedWeights:
    """Finds the files that weights in memory are mapped from, as those of `from_pretrained` are.

    Only Linux tells them; elsewhere it finds none.
    """

    def __init__(self) -> None:
        self._open: dict[str, OpenFile] = {}
        self._known: list[tuple[int, int, int, int, str]] = []
        lines = os.fsdecode(_MAPPINGS.read_bytes()).splitlines() if _MAPPINGS.exists() else []
        for line in lines:
            bounds, _, offset, _, number, *path = line.split(maxsplit=5)
            if path and path[0].startswith("/"):
                start, end = (int(bound, 16) for bound in bounds.split("-"))
                self._known.append((start, end, int(offset, 16), int(number), path[0]))

    def find(self, flat: FlatBlock, parts: Sequence[Tensor] = ()) -> FoundFiles | None:
        """Find the weights of a block; None unless all lie in files.

        Args:
            flat: the block.
            parts: mapped tensors that some weights were joined of, in any order. They are found by
                their content, so that no rule says which ones.
        """
        heads: dict[bytes, list[Tensor]] = {}
        for part in parts:
            heads.setdefault(_head(run := _bytes(part)), []).append(run)
        pieces = []
        for weight in flat.weights:
            own, start = weight.here.detach(), weight.start
            if own.is_meta or not own.is_contiguous():
                return None
            run = _bytes(own)
            for part in _split(run, heads) if self._find(run) is None else [run]:
                if (place := self._find(part)) is None:
                    return None
                pieces.append((start, part.nbytes, *place))
                start += part.nbytes
            if start != weight.start + own.nbytes:
                return None
        return FoundFiles(pieces)

    def _find(self, run: Tensor) -> tuple[OpenFile, int] | None:
        """Find the file of (N,) uint8, and its first byte there."""
        address = run.data_ptr()
        index = bisect(self._known, address, key=lambda one: one[0]) - 1
        if index < 0 or not run.nbytes or address + run.nbytes > self._known[index][1]:
            return None
        start, _, offset, number, path = self._known[index]
        if path not in self._open:
            try:
                self._open[path] = OpenFile(os.open(path, os.O_RDONLY))
            except OSError:  # it was removed since
                return None
        file, place = self._open[path], address - start + offset
        if os.fstat(file.number).st_ino != number:  # another one has its name now
            return None
        # A weight that was changed in memory is not that of the file.
        sample = content_of(run[:_SAMPLE])
        return (file, place) if os.pread(file.number, len(sample), place) == sample else None


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.flatten().view(torch.uint8)


def _head(run: Tensor) -> bytes:
    return bytes(content_of(run[:_HEAD]))


def _split(run: Tensor, heads: Mapping[bytes, Sequence[Tensor]]) -> list[Tensor]:
    """Find the parts that follow one another in a run, until none follows.

    Args:
        run: (N,) uint8.
        heads: parts, (M,) uint8 each, by their first bytes.
    """
    found, low = [], 0
    while low < run.numel():
        rest = run[low:]
        same = (part for part in heads.get(_head(rest), ()) if part.equal(rest[: part.numel()]))
        if (part := next(same, None)) is None:
            break
        found.append(part)
        low += part.numel()
    return found


def write_all(read: Read, size: int, folder: Path | None) -> WrittenFile:
    """Write a run into a file without a name, a part at a time.

    Args:
        read: gives the content.
        size: bytes.
        folder: see `WrittenFile`.

    Raises:
        OSError: if the disk is full.
    """
    file, room = WrittenFile(folder), new_run(min(_CHUNK, size))
    for low in range(0, size, _CHUNK):
        part = room[: size - low].zero_()
        read(part, low)
        file.write(part, low)
    return file


def write_mask(
    read: Read, dense: Source, size: int, itemsize: int, folder: Path | None
) -> MaskedFile | None:
    """Write the mask of a run into a file without a name; None if there is more than a mask.

    Args:
        read: gives the content.
        dense: of the same size.
        size: bytes.
        itemsize: bytes of a word.
        folder: see `WrittenFile`.

    Raises:
        OSError: if the disk is full.
    """
    file, own, other = WrittenFile(folder), *(new_run(min(_CHUNK, size)) for _ in range(2))
    for low in range(0, size, _CHUNK):
        parts = own[: size - low].zero_(), other[: size - low]
        read(parts[0], low)
        dense.read(parts[1], low)
        bits = pack_mask(*parts, itemsize)
        if bits is None:
            return None
        file.write(bits, low // (8 * itemsize))
    return MaskedFile(dense, file, itemsize)


def _read(file: OpenFile, run: Tensor, place: int) -> None:
    """Fill (N,) uint8 from a place in a file on; threads may read it at once."""
    left = run.numpy().data
    while left:
        count = os.preadv(file.number, [left], place)
        if not count:
            raise OSError("A file of weights has become shorter since it was opened.")
        left, place = left[count:], place + count
