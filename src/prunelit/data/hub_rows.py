"""Read the rows of a data set on the Hugging Face hub, at one commit."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import pyarrow
from datasets.packaged_modules.cache.cache import Cache
from huggingface_hub.errors import LocalEntryNotFoundError

from prunelit.data.hub import explain, resolve_commit
from prunelit.data.local_files import Table
from prunelit.data.sources import is_hub_name, split_revision
from prunelit.errors import InputError, similar_paths


def pin(path: str) -> str:
    """Return a data set on the hub with the commit that it stands for now; other paths as they are.

    Rows that are read from the result are those of one state, whatever is pushed meanwhile.

    Raises:
        InputError: if the hub has no such data set or revision, or cannot be asked.

    Example:
        >>> from prunelit.data.hub_rows import pin
        >>> pin("prunelit:facts.jsonl")
        'prunelit:facts.jsonl'
    """
    if not is_hub_name(path):
        return path
    name, revision = split_revision(path)
    try:
        return f"{name}@{resolve_commit(name, 'dataset', revision)}"
    except Exception as error:  # the hub's own types, and those of its transport
        raise _refuse_hub(error, path) from error


def commit_of(pinned: str) -> dict[str, str]:
    """Return the commit in a path of `pin`, for the details of a result; nothing for a file."""
    commit = split_revision(pinned)[1] if is_hub_name(pinned) else None
    return {} if commit is None else {"commit": commit}


def open_hub_table(path: str, subset: str | None, split: str) -> Table:
    """Read a data set on the hub.

    Args:
        path: `org/name` or `org/name@revision`.
        subset: configuration; None is the default one.
        split: of the rows; may be a slice.

    Raises:
        InputError: with the next step, if it cannot be read.
    """
    name, commit = split_revision(pin(path))
    try:
        builder = _builder(name, subset, str(commit))
        builder.download_and_prepare()
        data: Any = builder.as_dataset(split=split)  # type: ignore[arg-type]
    except Exception as error:  # datasets raises its own, pyarrow's, zlib's and the hub's types
        raise _refuse_hub(error, path) from error

    def take(wanted: Sequence[str]) -> list[dict[str, Any]]:
        if data.info.builder_name == "json":
            _check_times(path, {name: schema.field(name).type for name in wanted})
        return [dict(row) for row in data.select_columns(list(wanted))]

    schema = data.features.arrow_schema
    return Table(data.column_names, take)


def _builder(name: str, subset: str | None, commit: str) -> datasets.DatasetBuilder:
    """Return the builder of a data set at a commit.

    If `datasets` cannot ask the hub, it takes the newest copy in its cache, of any commit.

    Raises:
        Exception: of `datasets`, or a `LocalEntryNotFoundError` if no copy is of this commit.
    """
    builder = datasets.load_dataset_builder(name, subset, revision=commit)
    if builder.hash == commit:
        return builder
    copy = Cache(
        repo_id=name,
        dataset_name=builder.dataset_name,
        config_name=builder.config.name,
        version=str(builder.config.version),
        hash=commit,
    )
    if not os.path.isdir(copy.cache_dir):
        raise LocalEntryNotFoundError(f"the hub gives no answer, and no copy of {commit} is here")
    return copy


def _check_times(path: str, types: dict[str, pyarrow.DataType]) -> None:
    """Refuse JSON whose texts look like dates: `datasets` makes times of them."""
    for column, kind in types.items():
        if any(pyarrow.types.is_temporal(inner) for inner in _inner_types(kind)):
            name = split_revision(path)[0]
            raise InputError(
                f"`{column}` of {path!r} holds texts that look like dates, which the library "
                f"`datasets` turns into times: run `hf download {name} --repo-type dataset` and "
                "give the file as the path."
            )


def _inner_types(kind: pyarrow.DataType) -> Iterator[pyarrow.DataType]:
    yield kind
    for number in range(kind.num_fields):
        yield from _inner_types(kind.field(number).type)


def _refuse_hub(error: Exception, path: str) -> InputError:
    name, revision = split_revision(path)
    return InputError(
        f"No rows could be read from {path!r}: there is no file or folder of this name"
        f"{similar_paths(path)}, and as a data set on the hub: "
        f"{explain(error, name, 'dataset', revision)}."
    )
