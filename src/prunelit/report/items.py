"""Tables of items on disk."""

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prunelit.arguments import checked
from prunelit.errors import InputError, first_line
from prunelit.files import replace_file
from prunelit.report.results import check_file

_AT_A_TIME = 1000  # rows held in memory


def write_items(rows: Iterable[dict[str, Any]], path: str | Path) -> None:
    """Write rows with the same keys to a parquet file. Without rows, no file is written.

    The file appears when it is complete.

    Args:
        rows: plain values by column; None is a missing value. The first thousand rows determine
            the types.
        path: path of the file. Its folder is created if it does not exist.
    """
    path, rows = Path(path), iter(rows)
    first = list(islice(rows, _AT_A_TIME))
    if not first:
        return
    table = pa.Table.from_pylist(first)
    # If all values so far are missing, the column holds strings.
    schema = pa.schema(
        [f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in table.schema]
    )
    # An open file: a path would be tried as a URI, and read with columns of "key=value" folders.
    with (
        replace_file(path) as partial,
        partial.open("wb") as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        while first:
            writer.write_table(pa.Table.from_pylist(first, schema=schema))
            first = list(islice(rows, _AT_A_TIME))


@checked
def read_items(path: str | Path) -> list[dict[str, Any]]:
    """Read the items of a task: one dictionary per row of its table.

    Args:
        path: `items/<task>.parquet` in the folder of a run.

    Raises:
        InputError: if there is no such file, or it cannot be read.

    Example:
        >>> import tempfile
        >>> from prunelit import read_items
        >>> from prunelit.report.items import write_items
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_items([{"id": "a", "dense": 1.0}], f"{folder}/facts.parquet")
        ...     read_items(f"{folder}/facts.parquet")
        [{'id': 'a', 'dense': 1.0}]
    """
    check_file(path, "items of a task", "*.parquet", "items/*.parquet")
    try:
        with Path(path).open("rb") as file:
            return pq.ParquetFile(file).read().to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(
            f"No items could be read from {str(path)!r} ({first_line(error)}): give a parquet file "
            "that a run wrote."
        ) from error
