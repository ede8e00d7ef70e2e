"""The readings of a run: one score for each use of a model.

A task says in the details of its rows which of its metrics is the score that models are compared
by, `primary`, what it reads a model for, `reading`, and the score of a guess, `chance` or
`chance_<metric>`.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prunelit.report.results import Result


def is_reading(row: Result) -> bool:
    """Whether it is a model's score by which it is compared."""
    return row.model in ("dense", "pruned") and row.metric == row.details.get("primary")


def is_generative(row: Result) -> bool:
    """Whether it is a score of texts that the model writes."""
    return row.details.get("reading") == "generation"


def chance(row: Result) -> float | None:
    """The score of a model that guesses, where the task states it."""
    return row.details.get("chance", row.details.get(f"chance_{row.metric}"))


def axis_begin(rows: Iterable[Result]) -> float:
    """Where an axis of scores begins: at 0, or below the whiskers of a correlation that is less."""
    ends = [row.value - (row.standard_error if row.standard_error > 0 else 0) for row in rows]
    return 1.1 * min([0.0, *(end for end in ends if end < 0)])


def readings_numbers(rows: Sequence[Result]) -> dict[str, list[object]]:
    """The numbers behind the figure of readings, one line a task, metric and model."""
    names = ("task", "metric", "model", "value", "standard_error", "n", "chance")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for row in rows:
        if is_reading(row):
            line = (row.task, row.metric, row.model, row.value, row.standard_error, row.n)
            for name, value in zip(names, (*line, chance(row)), strict=True):
                columns[name].append(value)
    return columns


def sparsity_numbers(report: dict[str, Any]) -> dict[str, list[object]]:
    """The numbers behind the figure of sparsity, one line a tensor."""
    tensors = report["tensors"]
    return {key: [tensor[key] for tensor in tensors] for key in ("name", "size", "sparsity")}
