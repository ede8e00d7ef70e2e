"""Results: the measured numbers in `results.jsonl`."""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from prunelit.arguments import checked
from prunelit.errors import InputError, first_line
from prunelit.files import write_text


@checked
@dataclass
class Result:
    """One measured number.

    Args:
        task: name of the task.
        metric: name of the metric.
        model: `dense`, `pruned`, `difference` (pruned minus dense, paired by item) or `pair` for a
            quantity of both models together.
        value: the number.
        standard_error: standard error of the value over items; NaN if there is none.
        n: number of items.
        details: options and hashes that two comparable results have in common, such as the hash of
            the data, the template and the seed. `TaskReport` adds what the number stands for.
        recipe: id of the recipe that pruned the model; None if nothing pruned it.
        pruned: folder of the pruned model, or source of a candidate; None if the model was pruned
            in memory.
        models: source, content and dtype of the dense model and of a candidate; None without a
            candidate.
    """

    task: str
    metric: str
    model: str
    value: float
    standard_error: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)
    # Two equal numbers are equal, wherever their models are.
    recipe: str | None = field(default=None, compare=False, repr=False)
    pruned: str | None = field(default=None, compare=False, repr=False)
    models: dict[str, Any] | None = field(default=None, compare=False, repr=False)


def scalar_name(result: Result) -> str:
    """Return `val/<task>/<metric>`, with the suffix `_dense` or `_difference` for these two."""
    suffix = "" if result.model in ("pruned", "pair") else f"_{result.model}"
    return f"val/{result.task}/{result.metric}{suffix}"


def format_results(results: Sequence[Result]) -> str:
    """Format one line of JSON per result. NaN and infinity become null, in the details too."""
    lines = [
        json.dumps(finite(asdict(result)), ensure_ascii=False, allow_nan=False) + "\n"
        for result in results
    ]
    return "".join(lines)


def name_content(version: Any) -> str:
    """Name the content of a model: its commit on the hub, or a hash of the hashes of its files.

    Args:
        version: see `prunelit.models.loading.source_version`.
    """
    if isinstance(version, dict) and "commit" in version:
        return str(version["commit"])
    return hashlib.sha256(json.dumps(version, sort_keys=True).encode()).hexdigest()


def finite(value: Any) -> Any:
    """Return plain data with None in place of NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_results(results: Sequence[Result], path: str | Path) -> None:
    """Write one line of JSON per result, see `format_results`."""
    write_text(path, format_results(results))


@checked
def read_results(path: str | Path) -> list[Result]:
    """Read the results of a run. The value null becomes NaN.

    Args:
        path: `results.jsonl` in the folder of a run.

    Raises:
        InputError: if there is no such file, or a line holds no result; names the line.

    Example:
        >>> import pathlib, tempfile
        >>> from prunelit import read_results
        >>> line = (
        ...     '{"task": "facts", "metric": "acc", "model": "dense", "value": 0.5, '
        ...     '"standard_error": null, "n": 4, "details": {}}'
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "results.jsonl")
        ...     _ = path.write_text(line)
        ...     read_results(path)
        [Result(task='facts', metric='acc', model='dense', value=0.5, standard_error=nan, ...)]
    """
    names = [f"{depth}results.jsonl" for depth in ("", "*/", "*/*/")]
    check_file(path, "results of a run", *names)
    results = []
    with Path(path).open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                results.append(_read_result(json.loads(line)))
            except (ValueError, TypeError, RecursionError) as error:
                raise InputError(
                    f"Line {number} of {str(path)!r} is no result ({first_line(error)}): give the "
                    "`results.jsonl` that a run wrote."
                ) from error
    return results


def check_file(path: str | Path, what: str, *patterns: str) -> None:
    """Refuse a path that is no file; of a folder, name files in it.

    Args:
        path: of the file.
        what: words for its content.
        patterns: shell patterns of such files in a folder, tried in turn.

    Raises:
        InputError: naming the path.
    """
    if os.path.isfile(path):
        return
    if not os.path.isdir(path):
        raise InputError(f"Expected a file with {what} but {str(path)!r} does not exist.")
    inside = [file for pattern in patterns for file in sorted(Path(path).glob(pattern))]
    found = " or ".join(repr(str(file)) for file in inside[:3]) or "a file of another folder"
    raise InputError(f"Expected a file with {what} but {str(path)!r} is a folder: give {found}.")


def _read_result(data: Any) -> Result:
    if not isinstance(data, dict):
        raise ValueError("expected a mapping")
    for key in ("task", "metric", "model", "value", "standard_error", "n"):
        if key not in data:
            raise ValueError(f"expected a key `{key}`")
    if unknown := data.keys() - {one.name for one in fields(Result)}:
        raise ValueError(f"the key {min(unknown)!r} is unknown")
    for key in ("value", "standard_error"):
        data[key] = float("nan") if data[key] is None else data[key]
    return Result(**data)
