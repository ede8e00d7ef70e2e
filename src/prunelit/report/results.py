"""Results: the measured numbers in `results.jsonl`."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prunelit.files import write_text


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
            the data, the template and the seed.
    """

    task: str
    metric: str
    model: str
    value: float
    standard_error: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)


def scalar_name(result: Result) -> str:
    """Return `val/<task>/<metric>`, with the suffix `_dense` or `_difference` for these two."""
    suffix = "" if result.model in ("pruned", "pair") else f"_{result.model}"
    return f"val/{result.task}/{result.metric}{suffix}"


def write_results(results: Sequence[Result], path: str | Path) -> None:
    """Write one line of JSON per result. NaN and infinity become null."""
    lines = []
    for result in results:
        data = asdict(result)
        for key in ("value", "standard_error"):
            data[key] = data[key] if math.isfinite(data[key]) else None
        lines.append(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(path, "".join(lines))


def read_results(path: str | Path) -> list[Result]:
    """Read the results of a run. The value null becomes NaN.

    Args:
        path: `results.jsonl` in the folder of a run.

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
    results = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        for key in ("value", "standard_error"):
            data[key] = float("nan") if data[key] is None else data[key]
        results.append(Result(**data))
    return results
