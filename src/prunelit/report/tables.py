"""Tables of results."""

import io
import math
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from prunelit.errors import visible
from prunelit.report.results import Result

_NO_BREAK = "\N{NO-BREAK SPACE}"
_CLASS = "class"  # in the details of a result of one fixed answer
_TELLING = ("perplexity", "kl_dense_pruned")  # of a task without a main score
_KINDS = {
    "router": "routers",
    "gate": "gates",
    "convolution": "convolutions",
    "other": "other tensors",
}
_COLUMNS, _LINES = 80, 14  # of a terminal; of a brief table


def show(table: Table, console: Console | None = None) -> None:
    """Print a table in full: no name is cut and no value is broken.

    A terminal that is too narrow for the columns shows one paragraph a line instead.

    Args:
        table: the table.
        console: where to print; None is stdout.
    """
    console = console or _console()
    needed = _console(width=10_000).measure(table).maximum
    if not console.is_terminal:
        _console(width=max(120, needed)).print(table)
    elif needed <= console.width:
        console.print(table)
    else:
        text = "\n".join([str(table.title), *_paragraphs(table, console.width)])
        console.print(text, markup=False, highlight=False, soft_wrap=True)


def _console(**options: Any) -> Console:
    """Make a console that shows a text as it is: `[red]` and `:smile:` mean nothing."""
    return Console(markup=False, emoji=False, **options)


def _paragraphs(table: Table, width: int) -> Iterator[str]:
    """Write each line of a table as its heading and its values with their names."""
    headings = [" ".join(str(column.header).split()) for column in table.columns]
    # The columns before the first number name the line.
    names = (
        [column.justify for column in table.columns].index("right")
        if any(column.justify == "right" for column in table.columns)
        else 1
    )
    last = [""] * names
    for line in zip(*(map(str, column.cells) for column in table.columns), strict=True):
        # A name that is left out is that of the line above.
        last = [cell or before for cell, before in zip(line[:names], last, strict=True)]
        values = [
            f"{heading}: {' '.join(cell.split())}".replace(" ", _NO_BREAK)
            for heading, cell in zip(headings[names:], line[names:], strict=True)
            if cell
        ]
        indent = "  "
        text = textwrap.fill(
            "  ".join(values),
            width,
            initial_indent=indent,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
        yield f"{' '.join(' '.join(last).split())}\n{text.replace(_NO_BREAK, ' ')}"
    if table.caption:
        yield str(table.caption)


def as_text(table: Table) -> str:
    """Format a table as plain text of at most 100 characters per line."""
    console = _console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def brief_table(table: Table) -> str:
    """Format a table as plain text of at most 80 columns.

    A table that needs more columns becomes one paragraph a line.
    """
    if _console(width=10_000).measure(table).maximum <= _COLUMNS:
        console = _console(width=_COLUMNS, file=io.StringIO())
        with console.capture() as capture:
            console.print(table)
        return capture.get().rstrip("\n")
    lines = "\n".join([str(table.title), *_paragraphs(table, _COLUMNS)]).splitlines()
    return "\n".join(line if len(line) <= _COLUMNS else _hang(line) for line in lines)


def _hang(line: str) -> str:
    """Break a line that is indented; the following lines are indented more."""
    indent = line[: len(line) - len(line.lstrip())]
    return textwrap.fill(
        line.lstrip(),
        _COLUMNS,
        initial_indent=indent,
        subsequent_indent=f"{indent}  ",
        break_long_words=False,
    )


def results_table(results: Sequence[Result]) -> Table:
    """Build the table of dense, pruned and difference with standard errors, one line per metric.

    Results of a single fixed answer are left out, see `class_rows`. The caption says why a metric
    has no standard error.
    """
    results = [result for result in results if _CLASS not in result.details]
    table = Table(
        title="Dense against pruned (value ± standard error)",
        caption=_without_error(results),
        title_justify="left",
        caption_justify="left",
    )
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
            visible(metric),
            _cell(models.get("dense")),
            _cell(models.get("pruned") or models.get("pair")),
            _cell(models.get("difference"), signed=True),
            str(next(iter(models.values())).n),
        )
        last = task
    return table


def brief_lines(results: Sequence[Result]) -> list[str]:
    """Write one line a task, of at most 80 columns: its main score, or another telling number.

    Args:
        results: of a run.
    """
    tasks: dict[str, dict[str, dict[str, Result]]] = {}
    for result in results:
        if _CLASS not in result.details:
            metrics = tasks.setdefault(result.task, {})
            metrics.setdefault(result.metric, {})[result.model] = result
    rows = [("task", "score", "dense", "pruned", "n")]
    for task, metrics in tasks.items():
        first = next(iter(next(iter(metrics.values())).values()))
        wanted = (first.details.get("primary"), *_TELLING, *metrics)
        metric = next(name for name in wanted if name in metrics)
        models = metrics[metric]
        pruned = models.get("pruned") or models.get("pair")
        names = _fit(visible(task), 20), _fit(visible(metric), 31)
        rows.append((*names, _short(models.get("dense")), _short(pruned), str(first.n)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    left = len(lines) - 1 - _LINES
    return lines[: 1 + _LINES] + ([f"and {left} more tasks"] if left > 0 else [])


def _short(result: Result | None) -> str:
    return f"{result.value:.4g}" if result is not None else ""


def _fit(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


def wrap(sentence: str) -> str:
    """Break a sentence into lines of at most 80 columns."""
    return textwrap.fill(
        sentence, _COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def class_rows(results: Sequence[Result]) -> dict[str, list[dict[str, str]]]:
    """Build for each task with fixed answers one line per answer.

    It holds the number of items whose right answer it is, the score of both models on these items,
    and the share of all items for which each model gives this answer.

    Args:
        results: of a run.
    """
    lines: dict[str, dict[str, dict[str, Result]]] = {}
    for result in results:
        if (text := result.details.get(_CLASS)) is not None:
            kind = "chosen" if result.metric == f"chosen/{text}" else result.details["score"]
            of_task = lines.setdefault(result.task, {})
            of_task.setdefault(text, {})[f"{kind} {result.model}"] = result
    rows: dict[str, list[dict[str, str]]] = {}
    for task, of_task in lines.items():
        names = dict.fromkeys(name for line in of_task.values() for name in line)
        names = sorted(name for name in names if not name.endswith(" difference"))
        names.sort(key=lambda name: name.startswith("chosen "))
        for text, line in of_task.items():
            right = [one.n for name, one in line.items() if not name.startswith("chosen ")]
            cells = {name: _cell(line.get(name)) for name in names}
            rows.setdefault(task, []).append({"answer": text, "n": str(max(right, default=0))})
            rows[task][-1] |= cells
    return rows


def class_tables(results: Sequence[Result]) -> list[Table]:
    """Build the tables to print from `class_rows`."""
    tables = []
    for task, rows in class_rows(results).items():
        title = f"{task}: fixed answers (value ± standard error)"
        caption = "n: items with this right answer; chosen: share of all items that get it"
        tables.append(lines_table(title, caption, rows))
    return tables


def lines_table(title: str, caption: str, lines: Sequence[Mapping[str, str]]) -> Table:
    """Build a table of lines that have the same columns; the first column names the line."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for place, name in enumerate(lines[0]):
        table.add_column(name, justify="right" if place else "left")
    for line in lines:
        table.add_row(*map(visible, line.values()))
    return table


def _without_error(results: Sequence[Result]) -> str | None:
    """Say which metrics have no standard error, and why; None if all have one."""
    reasons: dict[str, dict[str, None]] = {}
    for result in results:
        if math.isnan(result.standard_error) and "no_error_bar" in result.details:
            reasons.setdefault(result.details["no_error_bar"], {})[result.metric] = None
    if not reasons:
        return None
    texts = [f"{', '.join(metrics)} ({reason})" for reason, metrics in reasons.items()]
    return f"without ±: {'; '.join(texts)}"


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
    title = f"{sparsity_sentence(report)}\n{size_sentence(report)}"
    table = Table(
        title=title,
        min_width=max(map(len, title.splitlines())),  # a title is as wide as its table
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


def sparsity_sentence(report: dict[str, Any]) -> str:
    """Say which share of the weights pruning removed, what was left out, and how much text lacked.

    Args:
        report: plain data of a `PruningReport`.
    """
    left = report.get("left_out")
    meant = "weights" if left else "linear weights"
    sentence = f"Achieved sparsity {report['sparsity']:.4f} of the {meant} in all blocks"
    if left:
        named = (f"{_KINDS[kind]} {share:.2%}" for kind, share in left.items())
        sentence += f"; left dense: {', '.join(named)} of them"
    if (experts := report.get("experts")) and experts["pooled"]:
        sentence += (
            f"; {experts['pooled']} of {experts['experts']} experts read fewer than "
            f"{experts['least']} calibration tokens and share statistics"
        )
    return sentence


def size_sentence(report: dict[str, Any]) -> str:
    """Say how many parameters the model has and had, and their size."""
    before, after = (
        (f"{report[f'{model}parameters']:,}", f"{report[f'{model}bytes'] / 2**20:,.1f}")
        for model in ("", "stored_")
    )
    if before == after:
        return f"Parameters: {before[0]}, zeros included, {before[1]} MiB"
    return f"Parameters: {before[0]} → {after[0]}, {before[1]} → {after[1]} MiB"


def markdown_table(rows: Sequence[dict[str, str]]) -> str:
    """Format rows with the same keys as a Markdown table, which TensorBoard renders."""
    keys = list(rows[0])
    lines = ["| " + " | ".join(map(literal, keys)) + " |", "|" + " --- |" * len(keys)]
    for row in rows:
        cells = [literal(row[key]) for key in keys]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def literal(text: str) -> str:
    """Write every character that means something in Markdown or HTML as an entity.

    A page would otherwise load the image that a model's text names. Hidden characters are made
    visible.
    """
    marked = re.sub(r"[^\w\s.,;:'\"?=+/%$-]", lambda found: f"&#{ord(found[0])};", visible(text))
    return "<br>".join(marked.splitlines())


def _cell(result: Result | None, *, signed: bool = False) -> str:
    if result is None:
        return ""
    value = f"{result.value:+.4g}" if signed else f"{result.value:.4g}"
    return value if math.isnan(result.standard_error) else f"{value} ± {result.standard_error:.2g}"
