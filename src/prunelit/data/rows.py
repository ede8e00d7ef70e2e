"""Read rows of a data set on the hub or of a local file, with the library `datasets`."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets

from prunelit.data.sources import is_hub_name, local_path
from prunelit.errors import InputError, first_line

_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_TEXT = {".tsv", ".txt", ".text", ".utf8"}


def load_rows(
    path: str,
    *,
    columns: Sequence[str] | Callable[[Sequence[str]], Sequence[str]],
    split: str = "train",
    name: str | None = None,
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Read some columns of all rows.

    Args:
        path: data set on the hub; local json, jsonl, parquet or text file (one row per line, column
            `text`), gzipped or not; `pypi:DIST/PATH`, a file inside an installed distribution; or
            `prunelit:FILE`, a file that prunelit ships.
        columns: names of the columns; or a function that chooses them from the names that the data
            set has.
        split: of the hub data set. A local file has the one split `train`, which can be sliced:
            `train[:80%]`.
        name: of the configuration on the hub.
        limit: number of rows; None reads all.

    Raises:
        InputError: if the file or a column is missing, or the file is empty or not valid.

    Example:
        >>> from prunelit.data import load_rows
        >>> load_rows("prunelit:facts.jsonl", columns=["id", "label"], limit=1)
        [{'id': 'body/cover', 'label': 0}]
    """
    if limit is not None and limit < 0:
        raise InputError(f"Expected `limit` of at least 1 but got {limit}.")
    try:
        if is_hub_name(path):
            data = datasets.load_dataset(path, name, split=split)
        else:
            file = local_path(path)
            data = datasets.load_dataset(_builder(file), data_files=str(file), split=split)
    except InputError:
        raise
    except Exception as error:  # datasets raises its own, pyarrow's, zlib's and the hub's types
        raise InputError(f"No rows could be read from {path!r}: {_reason(error)}") from error
    wanted = columns(data.column_names) if callable(columns) else columns
    if missing := sorted(set(wanted) - set(data.column_names)):
        raise InputError(
            f"Expected rows with {missing} in {path!r} but its columns are {data.column_names}."
        )
    rows = [dict(row) for row in data.select_columns(list(wanted))][:limit]
    if not rows:
        raise InputError(f"{path!r} (split {split!r}) holds no rows.")
    return rows


def load_texts(path: str, *, column: str, split: str) -> list[str]:
    """Read one column of strings.

    Args:
        path: see `load_rows`.
        column: that holds the strings.
        split: see `load_rows`.

    Raises:
        InputError: see `load_rows`; or if a value is not a string.

    Example:
        >>> from prunelit.data import load_texts
        >>> load_texts("prunelit:facts.jsonl", column="context", split="train")[0]
        'What is the organ that covers the whole body?'
    """
    rows = load_rows(path, columns=[column], split=split)
    for number, row in enumerate(rows):
        if not isinstance(row[column], str):
            raise InputError(f"Row {number} of {path!r}: `{column}` must be a string.")
    return [row[column] for row in rows]


def hash_rows(rows: Sequence[Any]) -> str:
    """Return the SHA-256 of rows as JSON. It does not depend on the file that they came from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _builder(file: Path) -> str:
    suffixes = [suffix for suffix in file.suffixes if suffix != ".gz"]
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _TEXT:
        return "text"
    if suffix not in _BUILDERS:
        raise InputError(
            f"Expected a file ending in {', '.join(sorted([*_BUILDERS, *_TEXT]))} (or one of these "
            f"with .gz) but got {file.name!r}."
        )
    return _BUILDERS[suffix]


def _reason(error: Exception) -> str:
    # `datasets` wraps the error of the parser, which describes the problem in the file.
    cause = error.__cause__ or error
    if isinstance(cause, StopIteration):  # raised by the json builder for a file without bytes
        return "it is empty."
    return first_line(cause).rstrip(".") + "."
