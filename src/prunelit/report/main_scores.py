"""Main scores: the score of each task by which models are compared.

The details of a task's results name its main score (`primary`), the use of the model that it
measures (`use`: multiple choice, retrieval, generation or similarity) and the score of random
guessing (`chance` or `chance_<metric>`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prunelit.report.results import Result


def is_main_score(row: Result) -> bool:
    """Return True for the main score of the dense or the pruned model."""
    return row.model in ("dense", "pruned") and row.metric == row.details.get("primary")


def is_generative(row: Result) -> bool:
    """Return True if the result is a score of generated texts."""
    return row.details.get("use") == "generation"


def chance(row: Result) -> float | None:
    """Return the score of random guessing; None if the task does not state it."""
    return row.details.get("chance", row.details.get(f"chance_{row.metric}"))


def axis_begin(rows: Iterable[Result]) -> float:
    """Return the lower end of an axis of scores: 0, or below the whiskers of a negative score."""
    ends = [row.value - (row.standard_error if row.standard_error > 0 else 0) for row in rows]
    return 1.1 * min([0.0, *(end for end in ends if end < 0)])


def scores_numbers(rows: Sequence[Result]) -> dict[str, list[object]]:
    """Return the numbers behind the figure of main scores, one line per task, metric and model."""
    names = ("task", "metric", "model", "value", "standard_error", "n", "chance")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for row in rows:
        if is_main_score(row):
            line = (row.task, row.metric, row.model, row.value, row.standard_error, row.n)
            for name, value in zip(names, (*line, chance(row)), strict=True):
                columns[name].append(value)
    return columns


def sparsity_numbers(report: dict[str, Any]) -> dict[str, list[object]]:
    """Return the numbers behind the figure of sparsity, one line per tensor."""
    tensors = report["tensors"]
    return {key: [tensor[key] for tensor in tensors] for key in ("name", "size", "sparsity")}
