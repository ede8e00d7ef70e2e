"""Variants: several prunings of one model, and the table that compares them."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from prunelit.report.curves import Curve
from prunelit.report.main_scores import is_generative, is_main_score
from prunelit.report.results import Result

# Metrics that the table shows beside the main scores.
_FURTHER = ("perplexity", "kl_dense_pruned")


@dataclass(frozen=True)
class Point:
    """The place of a variant on the curve of a method.

    Args:
        method: name of the method.
        knob: path of the numeric option, such as `sparsity.ratio`.
        setting: its value.
        recipe: id of everything else that decides the masks.
        seed: 0 for the calibration text of the run, else the number of another one.
    """

    method: str
    knob: str
    setting: float
    recipe: str
    seed: int = 0

    @property
    def option(self) -> str:
        """Name of the option without its path."""
        return self.knob.rpartition(".")[2]


@dataclass
class Variant:
    """One pruning of the model, with its results.

    Args:
        name: name of the variant.
        results: its results.
        curves: its curves, by task.
        sparsity: share of the weights of all blocks that were removed.
        dropped: kind and number of dropped parts, such as `("blocks", 4)`; None if pruning sets
            single weights to 0.
        dense_size: number of parameters of the dense model, and their bytes.
        size: the same of the variant, zeros included.
        point: its place among the settings of one method; None for a variant of its own.
    """

    name: str
    results: Sequence[Result]
    curves: Mapping[str, Sequence[Curve]]
    sparsity: float
    dropped: tuple[str, int] | None = None
    dense_size: tuple[int, int] = (0, 0)
    size: tuple[int, int] = (0, 0)
    point: Point | None = None

    def find(self, task: str, metric: str, *models: str) -> Result | None:
        """Return the result of the first of `models` that has one; None if none has."""
        found = {
            result.model: result
            for result in self.results
            if (result.task, result.metric) == (task, metric)
        }
        return next((found[model] for model in models if model in found), None)


def format_variants(variants: Sequence[Variant]) -> str:
    """Format variants as JSON that `read_variants` reads; NaN and infinity are Python's."""
    return json.dumps([asdict(variant) for variant in variants], default=_plain)


def read_variants(path: str | Path) -> list[Variant] | None:
    """Read what `format_variants` made; None if the file does not hold such variants."""
    try:
        return [parse_variant(data) for data in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return None


def same_dense(one: Variant, other: Variant) -> bool:
    """Return True if both variants were compared with the same dense model on the same tasks."""
    mine, others = _dense(one), _dense(other)
    return (
        bool(mine)
        and mine.keys() == others.keys()
        and all(
            a.n == b.n
            and json.loads(json.dumps(a.details)) == json.loads(json.dumps(b.details))
            and math.isclose(a.value, b.value, rel_tol=1e-4, abs_tol=1e-6)
            for a, b in ((mine[key], others[key]) for key in mine)
        )
    )


def _dense(variant: Variant) -> dict[tuple[str, str], Result]:
    return {
        (result.task, result.metric): result
        for result in variant.results
        if result.model == "dense" and math.isfinite(result.value)
    }


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else list(value)


def parse_variant(data: dict[str, Any]) -> Variant:
    """Build a variant from one that `format_variants` made."""
    curves = {task: [Curve(**c) for c in curves] for task, curves in data["curves"].items()}
    results = [Result(**result) for result in data["results"]]
    pairs = {
        key: None if data[key] is None else tuple(data[key])
        for key in ("dropped", "dense_size", "size")
    }
    point = None if data.get("point") is None else Point(**data["point"])
    return Variant(**{**data, "curves": curves, "results": results, "point": point, **pairs})


def main_scores(variants: Sequence[Variant]) -> dict[tuple[str, str], bool]:
    """Return task and metric of every main score, and whether the task generates texts."""
    results = [
        result for variant in variants for result in variant.results if is_main_score(result)
    ]
    return {(result.task, result.metric): is_generative(result) for result in results}


def variants_numbers(variants: Sequence[Variant]) -> dict[str, list[object]]:
    """Return the numbers of the table, one line per model and metric; dense comes first."""
    names = ("variant", "sparsity", "parameters", "bytes")
    names += ("task", "metric", "value", "standard_error", "n")
    columns: dict[str, list[object]] = {name: [] for name in names}
    for name, sparsity, size, cells in _lines(variants):
        for (task, metric), result in cells.items():
            if result is not None:
                numbers = (result.value, result.standard_error, result.n)
                line = (name, sparsity, *size, task, metric, *numbers)
                for column, value in zip(columns.values(), line, strict=True):
                    column.append(value)
    return columns


def variants_cells(variants: Sequence[Variant]) -> list[dict[str, str]]:
    """Return the lines of the table: dense, then every variant, with value ± standard error."""
    return [
        {
            "variant": name,
            "sparsity": f"{sparsity:.4f}",
            "parameters": f"{size[0]:,}",
            "MiB": f"{size[1] / 2**20:,.1f}",
        }
        | {f"{task}\n{metric}": _cell(result) for (task, metric), result in cells.items()}
        for name, sparsity, size, cells in _lines(variants)
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
) -> list[tuple[str, float, tuple[int, int], dict[tuple[str, str], Result | None]]]:
    """Return name, sparsity, size and results of each line of the table."""
    shown = _shown(variants)
    dense = {key: variants[0].find(*key, "dense") for key in shown}
    lines = [("dense", 0.0, variants[0].dense_size, dense)] if any(dense.values()) else []
    for variant in variants:
        cells = {key: variant.find(*key, "pruned", "pair") for key in shown}
        lines.append((variant.name, variant.sparsity, variant.size, cells))
    return lines


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    value = f"{result.value:.4g}"
    return value if math.isnan(result.standard_error) else f"{value} ± {result.standard_error:.2g}"
