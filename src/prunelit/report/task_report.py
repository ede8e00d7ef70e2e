"""The report of one task: results, table, curves, figures, texts and items."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rich.table import Table

from prunelit.arguments import checked
from prunelit.report.curves import Curve, Picture
from prunelit.report.quantities import find_quantity
from prunelit.report.results import Result
from prunelit.report.score_test import PairedScores


@checked
@dataclass
class TaskReport:
    """The results of one task, with table, curves, figures, texts and items.

    Every process builds the report at every validation. This includes `results` and `table`, so
    they must be cheap. Everything else is an iterable. Only the process that writes the files
    iterates over it, once, after the validation of a whole run. With generator functions (`yield`),
    no figure is drawn between two training epochs, and items are written one by one.

    Args:
        results: the measured numbers. The details of each name its `score`; of a quantity in one of
            the three spaces the `space`, and of a KL the `direction`. If there is no standard
            error, `no_error_bar` says why. Details that the task gives are kept.
        table: table of these results. It is printed in place of their lines in the table of all
            results. None prints those lines.
        curves: quantities over blocks or decoding steps.
        pictures: pairs of a name and a figure with its numbers.
        texts: rows of a text table in TensorBoard, all with the same keys.
        items: rows of a table on disk, one or more for each item, all with the same keys.
        scores: main score of each item by both models, from which a verdict follows; None if the
            task has no main score, or a run no dense model.

    Example:
        >>> from prunelit.report.results import Result
        >>> from prunelit.tasks import TaskReport
        >>> def texts():
        ...     yield {"prompt": "2 + 2 =", "pruned": "5"}
        >>> report = TaskReport([Result("sums", "acc", "pruned", 0.0, 0.0, 1)], texts=texts())
        >>> report.results[0].value, list(report.texts), list(report.items)
        (0.0, [{'prompt': '2 + 2 =', 'pruned': '5'}], [])
        >>> report.results[0].details
        {'score': 'acc'}
    """

    results: list[Result]
    table: Table | None = None
    curves: Iterable[Curve] = ()
    pictures: Iterable[tuple[str, Picture]] = ()
    texts: Iterable[dict[str, str]] = ()
    items: Iterable[dict[str, Any]] = ()
    scores: PairedScores | None = None

    def __post_init__(self) -> None:
        self.results = [_explained(result) for result in self.results]


def _explained(result: Result) -> Result:
    """Add to the details what a number stands for, and why it has no error bar."""
    score = result.details.get("score", result.metric.rpartition("/")[2])
    own = {"score": score}
    if (quantity := find_quantity(score)) is not None:
        own["space"] = quantity.space
        if quantity.direction:
            own["direction"] = quantity.direction
    if math.isnan(result.standard_error):
        own["no_error_bar"] = _reason(result)
    return replace(result, details={**own, **result.details})


def _reason(result: Result) -> str:
    if result.n < 2:
        return "a single item"
    return "the task gives none" if math.isfinite(result.value) else "the value is not finite"
