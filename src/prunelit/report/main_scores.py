"""Main scores: the score of each task by which models are compared.

The details of a task's results name its main score (`primary`), the use of the model that it
measures (`use`, see `prunelit.report.verdicts.USES`) and the score of random guessing (`chance` or
`chance_<metric>`).
"""

from collections.abc import Iterable, Sequence
from typing import Any

from prunelit.report.results import Result


def is_main_score(result: Result) -> bool:
    """Return True for the main score of the dense or the pruned model."""
    return result.model in ("dense", "pruned") and result.metric == result.details.get("primary")


def is_generative(result: Result) -> bool:
    """Return True if the result is a score of generated texts."""
    return result.details.get("use") == "generation"


def chance(result: Result) -> float | None:
    """Return the score of random guessing; None if the task does not state it."""
    return result.details.get("chance", result.details.get(f"chance_{result.metric}"))


def axis_begin(results: Iterable[Result]) -> float:
    """Return the lower end of an axis of scores: 0, or below the whiskers of a negative score."""
    ends = [
        result.value - (result.standard_error if result.standard_error > 0 else 0)
        for result in results
    ]
    return 1.1 * min([0.0, *(end for end in ends if end < 0)])


def scores_numbers(results: Sequence[Result]) -> dict[str, list[object]]:
    """Return the numbers behind the figure of main scores, one line per task, metric and model."""
    names = ("task", "metric", "model", "value", "standard_error", "n", "chance")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for result in results:
        if is_main_score(result):
            line = (
                result.task,
                result.metric,
                result.model,
                result.value,
                result.standard_error,
                result.n,
            )
            for name, value in zip(names, (*line, chance(result)), strict=True):
                columns[name].append(value)
    return columns


def sparsity_numbers(report: dict[str, Any]) -> dict[str, list[object]]:
    """Return the numbers behind the figure of sparsity, one line per tensor."""
    tensors = report["tensors"]
    names = ("name", "size", "zeros", "removed", "sparsity")
    return {key: [tensor[key] for tensor in tensors] for key in names}
