"""Read the rows of a local file: JSON, parquet, CSV or text, gzipped or not.

Every read opens the file under exactly its name and takes its content, so nothing is cached. Values
keep the type that they have in the file: a text that looks like a date stays a text.
"""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow
import pyarrow.parquet

from prunelit.errors import InputError, first_line
from prunelit.files import POINTER, is_pointer

Kind = Literal["json", "parquet", "csv", "tsv", "text"]
Row = dict[str, Any]

KINDS: dict[str, Kind] = {
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".utf8": "text",
}
_LARGEST_CELL = 2**31 - 1


@dataclass
class Table:
    """Rows of which columns are still to be chosen.

    Args:
        names: of all columns.
        take: returns all rows with the given columns; None where a row has no value.
    """

    names: list[str]
    take: Callable[[Sequence[str]], list[Row]]


def file_kind(path: str | Path) -> Kind:
    """Return the kind of a file by the ending of its name.

    Raises:
        InputError: if the ending is not known; it lists the known ones.
    """
    name = Path(path).name.lower()
    kind = KINDS.get(Path(name.removesuffix(".gz")).suffix)
    if kind is None:
        raise InputError(
            f"Expected a file ending in {', '.join(KINDS)} (or one of these with .gz) but got "
            f"{Path(path).name!r}."
        )
    return kind


def open_table(file: Path, *, keep: Sequence[str] | None = None) -> Table:
    """Read a file of rows.

    * json: one object per line, or a list of objects, or a list of texts (column `text`);
    * csv, tsv: the first line has the names; cells are texts, quoted as CSV writers do. Cells of a
      csv file are separated by commas, or else by what its first line has of ``;``, tab and ``|``;
    * text: a row per line, column `text`.

    Args:
        file: exists.
        keep: the columns that are held in memory; None holds all.

    Raises:
        InputError: if the file cannot be read; names the line.
    """
    if os.path.isdir(file):
        raise InputError(f"Expected a file but {str(file)!r} is a folder: name one of its files.")
    kind = file_kind(file)
    with _explained(file):
        if not file.is_file():  # reading a pipe or a device may never end
            raise InputError("it is not a regular file")
        if kind == "parquet":
            return _parquet(file)
        names: dict[str, None] = {}
        rows: list[Row] = []
        with _open(file) as stream:
            for row in _READERS[kind](stream, names):
                names.update(dict.fromkeys(row))
                rows.append(row if keep is None else {n: row[n] for n in keep if n in row})
    return Table(
        list(names), lambda wanted: [{name: row.get(name) for name in wanted} for row in rows]
    )


@contextmanager
def _explained(file: Path) -> Iterator[None]:
    """Turn every error of a reader into one sentence that names the file."""
    try:
        yield
    except InputError as error:
        raise InputError(f"No rows could be read from {str(file)!r}: {error}.") from error
    except (OSError, EOFError, ValueError, zlib.error, pyarrow.ArrowException) as error:
        reason = getattr(error, "strerror", None) or first_line(error).rstrip(".")
        raise InputError(f"No rows could be read from {str(file)!r}: {reason}.") from error


def _open(file: Path) -> BinaryIO:
    """Open a file for reading; the content tells if it is gzipped."""
    if is_pointer(file):
        raise InputError(f"it is {POINTER}")
    with file.open("rb") as stream:
        start = stream.read(2)
    if not start:
        raise InputError("it is empty: put rows into it, or name another file")
    return gzip.open(file) if start == b"\x1f\x8b" else file.open("rb")  # type: ignore[return-value]


def _lines(stream: BinaryIO) -> Iterator[str]:
    """Decode a file line by line; a line keeps its end."""
    for number, raw in enumerate(stream, 1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"line {number} is not UTF-8: convert the file, for example with "
                "`iconv -f ENCODING -t UTF-8`"
            ) from None
        if "\0" in line:
            raise InputError(
                f"line {number} holds a NUL character: if the file is UTF-16, convert it with "
                "`iconv -f UTF-16 -t UTF-8`"
            )
        yield line


def _read_json(stream: BinaryIO, names: dict[str, None]) -> Iterator[Row]:
    lines, is_list = _lines(stream), True
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        if is_list and line.lstrip().startswith("["):
            yield from _read_list("".join([line, *lines]), number)
            return
        is_list = False
        yield _as_row(_parse(line, number), f"in line {number}")


def _read_list(text: str, first: int) -> Iterator[Row]:
    items = _parse(text, first)
    texts = all(isinstance(item, str) for item in items)
    for number, item in enumerate(items):
        yield (
            {"text": item}
            if texts
            else _as_row(item, f"as item {number} (counted from 0) of the list")
        )


def _parse(text: str, first: int) -> Any:
    """Parse JSON whose first line has the number `first` in the file."""
    try:
        value = json.loads(text.rstrip(), object_pairs_hook=_unique)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # an escape may be half a character
    except json.JSONDecodeError as error:
        line = first + error.lineno - 1
        raise InputError(
            f"JSON parse error in line {line}: {error.msg} (expected one object per line, or a "
            "list of objects): correct the line"
        ) from None
    except UnicodeEncodeError:
        raise InputError(
            f"JSON parse error in line {first}: \\u names half a character: correct the line"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"JSON parse error in line {first}: {first_line(error)}: correct the line"
        ) from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its keys and values; `json` would take the last value of a key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is given twice")
    return found


def _as_row(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise InputError(f"expected an object {{...}} {place} but got a {type(value).__name__}")
    return value


def _read_csv(stream: BinaryIO, names: dict[str, None], signs: str = ",;\t|") -> Iterator[Row]:
    """Read rows of cells.

    Args:
        stream: of the file.
        names: gets the names of the columns.
        signs: that may separate cells; the first one of them that the first line has, does.
    """
    lines = _lines(stream)
    first = next(lines, "")
    unquoted = re.sub('"[^"]*"', "", first)
    delimiter = next((sign for sign in signs if sign in unquoted), signs[0])
    reader = csv.reader(chain([first], lines), delimiter=delimiter, strict=True)
    old = csv.field_size_limit(_LARGEST_CELL)
    try:
        header = next(reader, [])
        names.update(dict.fromkeys(header))
        _check_names(header)
        for cells in reader:
            # Spreadsheets leave lines of empty cells; a single column may hold an empty text.
            if not cells or (len(header) > 1 and not any(cell.strip() for cell in cells)):
                continue
            if len(cells) != len(header):
                raise InputError(
                    f"expected {len(header)} cells as in the first line, separated by "
                    f"{delimiter!r}, but line {reader.line_num} has {len(cells)}"
                )
            yield dict(zip(header, cells, strict=True))
    except csv.Error as error:
        reason = str(error)
        if "new-line character" in reason:  # Python's advice is for programmers
            reason = "it holds a carriage return without quotes: save it with usual line ends"
        raise InputError(f"CSV parse error in line {reader.line_num}: {reason}") from None
    finally:
        csv.field_size_limit(old)


def _check_names(names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        raise InputError(f"its columns need different names but are {list(names)}")


def _read_tsv(stream: BinaryIO, names: dict[str, None]) -> Iterator[Row]:
    return _read_csv(stream, names, "\t")


def _read_text(stream: BinaryIO, names: dict[str, None]) -> Iterator[Row]:
    for line in _lines(stream):
        for part in line.removesuffix("\n").removesuffix("\r").split("\r"):
            yield {"text": part}


_READERS: dict[str, Callable[[BinaryIO, dict[str, None]], Iterator[Row]]] = {
    "json": _read_json,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "text": _read_text,
}


def _parquet(file: Path) -> Table:
    # `ParquetFile` takes no columns from the names of folders ("seed=1"), as `read_table` does.
    with _open(file) as stream:
        names = pyarrow.parquet.ParquetFile(stream).schema_arrow.names
    _check_names(names)

    def take(wanted: Sequence[str]) -> list[Row]:
        with _explained(file), _open(file) as stream:
            table = pyarrow.parquet.ParquetFile(stream).read(columns=list(wanted))
            return table.select(list(wanted)).to_pylist()

    return Table(names, take)
