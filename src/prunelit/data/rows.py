"""Read rows of a data set on the hub or of a local file."""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

from prunelit.arguments import checked
from prunelit.data.local_files import file_kind, open_table
from prunelit.data.sources import is_hub_name, local_path, split_of
from prunelit.errors import InputError, close_names, first_line

Documents = Literal["whole", "lines", "paragraphs"]


@checked
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
        path: data set on the hub, `org/name` or `org/name@revision`; local json, jsonl, parquet,
            csv, tsv or text file (one row per line, column `text`), gzipped or not;
            `pypi:DIST/PATH`, a file inside an installed distribution; or `prunelit:FILE`, a file
            that prunelit ships. A path is literal: `*`, `?` and `[` are letters of a name. A local
            file is read anew each time.
        columns: names of the columns; or a function that chooses them from the names that the data
            set has.
        split: of the hub data set. A local file is one split, whatever its name, and can be sliced:
            `train[:80%]` and `test[:80%]` are its first 80%.
        name: of the configuration on the hub.
        limit: number of rows; None reads all.

    Raises:
        InputError: if the file or a column is missing, or the file is empty or not valid; names the
            file, and the line if one is not valid.

    Example:
        >>> from prunelit.data import load_rows
        >>> load_rows("prunelit:facts.jsonl", columns=["id", "label"], limit=1)
        [{'id': 'body/cover', 'label': 0}]
    """
    if limit is not None and limit < 1:
        raise InputError(f"Expected `limit` of at least 1 but got {limit}.")
    local = not is_hub_name(path)
    if local:
        keep = None if callable(columns) else columns
        table = open_table(local_path(path), keep=keep)
    else:
        from prunelit.data.hub_rows import open_hub_table  # with libraries that take seconds

        table = open_hub_table(path, name, split)
    wanted = list(columns(table.names) if callable(columns) else columns)
    if table.names and (missing := sorted(set(wanted) - set(table.names))):
        near = [name for one in missing for name in close_names(one, table.names)]
        hint = f" (similar: {', '.join(map(repr, near))})" if near else ""
        raise InputError(
            f"{path!r} has no column {', '.join(map(repr, missing))}{hint}. Its columns are "
            f"{', '.join(map(repr, table.names))}: name one of them, or add the column to it."
        )
    rows = table.take(wanted)
    rows = (_slice(rows, path, split) if local else rows)[:limit]
    if not rows:
        raise InputError(
            f"{path!r} (split {split!r}) holds no rows: give a file or a split that has some."
        )
    return rows


@checked
def load_texts(
    path: str,
    *,
    column: str,
    split: str,
    documents: Documents = "whole",
    name: str | None = None,
) -> list[str]:
    """Read the documents of a text: one column of strings, or a text file.

    Args:
        path: see `load_rows`.
        column: that holds the strings; `text` for a text file.
        split: see `load_rows`. The rows of a text file are its lines.
        documents: how a text file is divided: `whole` is one document, as it is in the file;
            `lines` is one document per line; `paragraphs` divides at empty lines. In any other
            file every row is a document.
        name: of the configuration on the hub.

    Raises:
        InputError: see `load_rows`; or if a value is not a string.

    Example:
        >>> from prunelit.data import load_texts
        >>> load_texts("prunelit:facts.jsonl", column="context", split="train")[0]
        'What is the organ that covers the whole body?'
    """
    rule = text_rule(path, documents)
    rows = load_rows(path, columns=[column], split=split, name=name)
    for number, row in enumerate(rows):
        if not isinstance(row[column], str):
            problem = f"`{column}` must be a string but is {row[column]!r:.60}"
            raise refuse_row(path, number, problem, split=split)
    texts = [row[column] for row in rows]
    if rule == "whole":
        return ["\n".join(texts)]
    if rule == "paragraphs":
        parts = re.split(r"\n(?:[^\S\n]*\n)+", "\n".join(texts))
        return [part for part in parts if part.strip()]
    return texts


def text_rule(path: str, documents: Documents) -> str:
    """Return how a text becomes documents: `documents` for a text file, `rows` for any other.

    Raises:
        InputError: if `documents` has another value.
    """
    if documents not in get_args(Documents):
        raise InputError(
            f"Expected `documents` to be one of {', '.join(get_args(Documents))} but got "
            f"{documents!r}."
        )
    return "rows" if is_hub_name(path) or file_kind(path) != "text" else documents


def name_row(path: str, number: int, *, split: str = "train", id: Any = None) -> str:
    """Name a row in a message.

    Args:
        path: see `load_rows`.
        number: of the row, counted from 0 in its split.
        split: see `load_rows`; named unless it is `train`.
        id: of the row, if it has one.

    Example:
        >>> from prunelit.data.rows import name_row
        >>> name_row("rows.jsonl", 3, split="train[:50%]", id="b")
        "row 3 (counted from 0, id 'b') of 'rows.jsonl' (split 'train[:50%]')"
    """
    own = "" if id is None else f", id {id!r:.60}"
    part = "" if split == "train" else f" (split {split!r})"
    return f"row {number} (counted from 0{own}) of {path!r}{part}"


def refuse_row(
    path: str, number: int, problem: str, *, split: str = "train", id: Any = None
) -> InputError:
    """Return the error of a row; see `name_row`."""
    return InputError(f"R{name_row(path, number, split=split, id=id)[1:]}: {problem}.")


def hash_rows(rows: Sequence[Any]) -> str:
    """Return the SHA-256 of rows as JSON. It does not depend on the file that they came from."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _slice(rows: list[dict[str, Any]], path: str, split: str) -> list[dict[str, Any]]:
    if split_of(path, split) == "train":
        return rows
    import datasets  # a second

    try:
        known = datasets.ReadInstruction.from_spec(split_of(path, split))
        parts = known.to_absolute({"train": len(rows)})
    except ValueError as error:
        raise InputError(
            f"Expected a split of the local file {path!r} such as `train` or `train[:80%]` but got "
            f"{split!r}: {first_line(error).rstrip('.')}."
        ) from error
    read = [number for part in parts for number in range(len(rows))[part.from_ : part.to]]
    if len(set(read)) < len(read):
        raise InputError(
            f"Expected a split of the local file {path!r} that reads each row once but {split!r} "
            "reads some twice: a local file is one split, so name it once."
        )
    return [rows[number] for number in read]
