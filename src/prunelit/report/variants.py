"""Variants: several prunings of one model, and the table that compares them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from prunelit.report.curves import Curve
from prunelit.report.main_scores import is_generative, is_main_score
from prunelit.report.results import Result

# Metrics that the table shows beside the main scores.
_FURTHER = ("perplexity", "kl_dense_pruned")


@dataclass
class Variant:
    """One pruning of the model, with its results.

    Args:
        name: name of the variant.
        results: its results.
        curves: its curves, by task.
        sparsity: share of the linear weights of all blocks that are 0.
        dropped: kind and number of dropped parts, such as `("blocks", 4)`; None if pruning sets
            single weights to 0.
    """

    name: str
    results: Sequence[Result]
    curves: Mapping[str, Sequence[Curve]]
    sparsity: float
    dropped: tuple[str, int] | None = None

    def find(self, task: str, metric: str, *models: str) -> Result | None:
        """Return the result of the first of `models` that has one; None if none has."""
        found = {
            result.model: result
            for result in self.results
            if (result.task, result.metric) == (task, metric)
        }
        return next((found[model] for model in models if model in found), None)


def main_scores(variants: Sequence[Variant]) -> dict[tuple[str, str], bool]:
    """Return task and metric of every main score, and whether the task generates texts."""
    results = [
        result for variant in variants for result in variant.results if is_main_score(result)
    ]
    return {(result.task, result.metric): is_generative(result) for result in results}


def variants_numbers(variants: Sequence[Variant]) -> dict[str, list[object]]:
    """Return the numbers of the table, one line per model and metric; dense comes first."""
    names = ("variant", "sparsity", "task", "metric", "value", "standard_error", "n")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for name, sparsity, cells in _lines(variants):
        for (task, metric), result in cells.items():
            if result is not None:
                line = (name, sparsity, task, metric, result.value, result.standard_error, result.n)
                for column, value in zip(columns.values(), line, strict=True):
                    column.append(value)
    return columns


def variants_cells(variants: Sequence[Variant]) -> list[dict[str, str]]:
    """Return the lines of the table: dense, then every variant, with value ± standard error."""
    return [
        {"variant": name, "sparsity": f"{sparsity:.4f}"}
        | {f"{task}\n{metric}": _cell(result) for (task, metric), result in cells.items()}
        for name, sparsity, cells in _lines(variants)
    ]


def variants_table(variants: Sequence[Variant]) -> Table:
    """Build the table of main scores, perplexity and KL: dense first, then each variant."""
    lines = variants_cells(variants)
    table = Table(title="Variants (value ± standard error)", title_justify="left")
    for place, heading in enumerate(lines[0]):
        table.add_column(heading, justify="right" if place else "left")
    for line in lines:
        table.add_row(*line.values())
    return table


def _shown(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    results = [
        result for variant in variants for result in variant.results if result.metric in _FURTHER
    ]
    further = dict.fromkeys((result.task, result.metric) for result in results)
    return [*main_scores(variants), *sorted(further, key=lambda key: _FURTHER.index(key[1]))]


def _lines(
    variants: Sequence[Variant],
) -> list[tuple[str, float, dict[tuple[str, str], Result | None]]]:
    """Return name, sparsity and results of each line of the table."""
    shown = _shown(variants)
    dense = {key: variants[0].find(*key, "dense") for key in shown}
    lines = [("dense", 0.0, dense)] if any(dense.values()) else []
    for variant in variants:
        cells = {key: variant.find(*key, "pruned", "pair") for key in shown}
        lines.append((variant.name, variant.sparsity, cells))
    return lines


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    value = f"{result.value:.4g}"
    return value if math.isnan(result.standard_error) else f"{value} ± {result.standard_error:.2g}"
