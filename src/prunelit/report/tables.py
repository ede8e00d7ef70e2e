"""Tables of results."""

import io
import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from prunelit.report.results import Result


def show(table: Table) -> None:
    """Print a table on stdout. If stdout is not a terminal, no column is cut or wrapped."""
    console = Console()
    if not console.is_terminal:
        needed = Console(width=10_000).measure(table).maximum
        console = Console(width=max(120, needed))
    console.print(table)


def as_text(table: Table) -> str:
    """Format a table as plain text of at most 100 characters per line."""
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def results_table(results: Sequence[Result]) -> Table:
    """Build the table of dense, pruned and difference with standard errors, one line per metric."""
    table = Table(title="Dense against pruned (value ± standard error)", title_justify="left")
    table.add_column("task")
    table.add_column("metric")
    for name in ("dense", "pruned", "difference", "n"):
        table.add_column(name, justify="right")
    cells: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        cells.setdefault((result.task, result.metric), {})[result.model] = result
    last = None
    for (task, metric), models in cells.items():
        if last not in (None, task):
            table.add_section()
        table.add_row(
            task if task != last else "",
            metric,
            _cell(models.get("dense")),
            _cell(models.get("pruned") or models.get("pair")),
            _cell(models.get("difference"), signed=True),
            str(next(iter(models.values())).n),
        )
        last = task
    return table


def grouped_table(results: Sequence[Result], groups: str) -> Table:
    """Build a table with one line per group and one column per quantity, with standard errors.

    Args:
        results: results of one task and model. Their metrics are named `<group>/<quantity>`; a
            group may contain slashes.
        groups: heading of the column of groups.
    """
    table = Table(title=f"{results[0].task} (value ± standard error)", title_justify="left")
    lines: dict[str, dict[str, Result]] = {}
    for result in results:
        group, _, quantity = result.metric.rpartition("/")
        lines.setdefault(group, {})[quantity] = result
    quantities = list(dict.fromkeys(name for line in lines.values() for name in line))
    table.add_column(groups)
    for name in (*quantities, "n"):
        table.add_column(name, justify="right")
    for group, line in lines.items():
        counts = sorted({result.n for result in line.values()})
        cells = [_cell(line.get(name)) for name in quantities]
        table.add_row(group, *cells, "-".join(map(str, counts)))
    return table


def pruning_table(report: dict[str, Any]) -> Table:
    """Build the table of achieved sparsity, seconds and peak memory, one line per block."""
    table = Table(
        title=f"Achieved sparsity {report['sparsity']:.4f} of the linear weights in all blocks",
        caption=f"peak memory: {report['peak_memory']}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("block", "sparsity", "seconds", "peak MiB"):
        table.add_column(name, justify="right" if name != "block" else "left")
    for block in report["blocks"]:
        table.add_row(
            block["name"],
            f"{block['sparsity']:.4f}",
            f"{block['seconds']:.2f}",
            f"{block['peak_bytes'] / 2**20:.0f}",
        )
    return table


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Format rows with the same keys as a Markdown table, which TensorBoard renders."""
    keys = list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + " --- |" * len(keys)]
    for row in rows:
        cells = [row[key].replace("|", "\\|").replace("\n", "<br>") for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(result: Result | None, *, signed: bool = False) -> str:
    if result is None:
        return ""
    value = f"{result.value:+.4g}" if signed else f"{result.value:.4g}"
    return value if math.isnan(result.standard_error) else f"{value} ± {result.standard_error:.2g}"
