"""The readings of a run: scores from 0 to 1, one for each use of a model."""

from collections.abc import Sequence
from typing import Any

from prunelit.report.rows import Row

# The metric that a task is read by, and whether it is a score of texts that the model generates.
READINGS = {"acc": False, "mrr": False, "contains": True}


def chance(row: Row) -> float | None:
    """The score of a model that guesses, where the task states it."""
    return row.details.get("chance", row.details.get("chance_mrr"))


def readings_numbers(rows: Sequence[Row]) -> dict[str, list[object]]:
    """The numbers behind the figure of readings, one line a task, metric and model."""
    names = ("task", "metric", "model", "value", "standard_error", "n", "chance")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for row in rows:
        if row.metric in READINGS and row.model in ("dense", "pruned"):
            line = (row.task, row.metric, row.model, row.value, row.standard_error, row.n)
            for name, value in zip(names, (*line, chance(row)), strict=True):
                columns[name].append(value)
    return columns


def sparsity_numbers(report: dict[str, Any]) -> dict[str, list[object]]:
    """The numbers behind the figure of sparsity, one line a tensor."""
    tensors = report["tensors"]
    return {key: [tensor[key] for tensor in tensors] for key in ("name", "size", "sparsity")}
