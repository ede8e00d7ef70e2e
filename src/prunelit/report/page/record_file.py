"""A record: a file that says of the results beside it that they are complete."""

import hashlib
import json
from pathlib import Path
from typing import Any

RESULTS, SCORES = "results.jsonl", "scores.parquet"
# Errors that a damaged record ends in.
DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError)


def is_recorded(record: Path, key: str | None = None) -> bool:
    """Return True if a record is beside the results that were measured.

    Args:
        record: the file.
        key: of all that the results depend on; None is any.
    """
    try:
        return read_digested(record, key) is not None
    except DAMAGED:
        return False


def read_digested(record: Path, key: str | None) -> dict[str, Any] | None:
    """Read a record; None if its results are not beside it, or have another key.

    Args:
        record: the file, with the keys `key` and `results`.
        key: of all that the results depend on; None is any.

    Raises:
        Exception: one of `DAMAGED`, if a file is absent or damaged.
    """
    data = json.loads(record.read_text(encoding="utf-8"))
    same = data["results"] == digest_results(record.parent) and key in (None, data["key"])
    return data if same else None


def digest_results(folder: Path) -> str:
    """Hash the results, and the scores from which verdicts follow; no dense model, no scores.

    Args:
        folder: of the results.
    """
    paths = [folder / RESULTS, *(path for path in [folder / SCORES] if path.exists())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
