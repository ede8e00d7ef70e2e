"""One row a result: what `results.jsonl` holds."""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Row:
    """One measured number.

    Args:
        task: name of the task.
        metric: name of the metric.
        model: `dense`, `pruned`, `difference` (pruned minus dense, paired by item) or `pair` for a
            quantity of both models together.
        value: the number.
        standard_error: of the value over items; NaN where there is none.
        n: number of items.
        details: what makes it comparable: data hash, length, template, seed.
    """

    task: str
    metric: str
    model: str
    value: float
    standard_error: float
    n: int
    details: dict[str, Any] = field(default_factory=dict)


def write_rows(rows: Sequence[Row], path: str | Path) -> None:
    """Write JSON lines under a temporary name, then rename; NaN and infinity become null."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            for row in rows:
                data = asdict(row)
                for key in ("value", "standard_error"):
                    data[key] = data[key] if math.isfinite(data[key]) else None
                file.write(json.dumps(data, ensure_ascii=False, allow_nan=False) + "\n")
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    finally:
        Path(partial).unlink(missing_ok=True)


def read_rows(path: str | Path) -> list[Row]:
    """Rows of a `results.jsonl`; null becomes NaN."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        for key in ("value", "standard_error"):
            data[key] = float("nan") if data[key] is None else data[key]
        rows.append(Row(**data))
    return rows
