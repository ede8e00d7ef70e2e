"""Rows of a data set from the hub or a local file, always through `datasets`."""

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
    """Rows with the asked columns.

    Args:
        path: a data set on the hub; a local json, jsonl, parquet or text file (one row a line,
            column `text`), compressed with gzip or not; `pypi:DIST/PATH`; or `prunelit:FILE`.
        columns: names every row must have, or what chooses them from the names that there are;
            other columns are dropped.
        split: of the hub data set; local files are one split, `train`, which can be sliced as in
            `train[:80%]`.
        name: of the configuration on the hub.
        limit: keep only the first so many rows.

    Raises:
        InputError: if the file is missing, broken or empty, or lacks a column.
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
    """One column of `load_rows`.

    Raises:
        InputError: as `load_rows`, or if a row holds no text there.
    """
    rows = load_rows(path, columns=[column], split=split)
    for number, row in enumerate(rows):
        if not isinstance(row[column], str):
            raise InputError(f"Row {number} of {path!r} holds no text in {column!r}.")
    return [row[column] for row in rows]


def hash_rows(rows: Sequence[Any]) -> str:
    """SHA-256 of the rows as JSON: equal for equal content, whatever file it came from."""
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
    # `datasets` wraps the parser's message, which says what is wrong with the file.
    cause = error.__cause__ or error
    if isinstance(cause, StopIteration):  # the json builder's word for a file of no bytes
        return "it is empty."
    return first_line(cause).rstrip(".") + "."
