"""Results as text."""

import io
import math

import pytest
from rich.console import Console
from rich.table import Table

from prunelit.report.results import Result
from prunelit.report.tables import (
    as_text,
    brief_lines,
    class_rows,
    class_tables,
    grouped_table,
    markdown_table,
    pruning_table,
    results_table,
    show,
    wrap,
)


def cells(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def test_one_line_a_metric_with_dense_pruned_and_difference() -> None:
    rows = [
        Result("facts", "acc", "dense", 0.84, 0.05461, 45),
        Result("facts", "acc", "pruned", 0.6, 0.073, 45),
        Result("facts", "acc", "difference", -0.24, 0.05, 45),
        Result("facts", "kl", "pair", 0.74812, 0.01, 45),
        Result("text", "perplexity", "pruned", 1234567.0, math.nan, 1),
    ]
    assert cells(results_table(rows)) == [
        ["facts", "acc", "0.84 ± 0.055", "0.6 ± 0.073", "-0.24 ± 0.05", "45"],
        ["", "kl", "", "0.7481 ± 0.01", "", "45"],
        ["text", "perplexity", "", "1.235e+06", "", "1"],
    ]


def test_a_gain_has_its_sign() -> None:
    rows = [Result("facts", "mrr", "difference", 0.1, 0.02, 9)]
    assert cells(results_table(rows))[0][4] == "+0.1 ± 0.02"


def test_one_line_a_group_and_one_column_a_quantity() -> None:
    rows = [
        Result("t", "local/mlp/cosine", "pair", 0.5, 0.1, 8),
        Result("t", "local/mlp/kl", "pair", 2.0, 0.25, 8),
        Result("t", "local/attention/kl", "pair", 1.0, math.nan, 6),
    ]
    table = grouped_table(rows, "variant/sublayer")
    assert [column.header for column in table.columns] == ["variant/sublayer", "cosine", "kl", "n"]
    assert cells(table) == [
        ["local/mlp", "0.5 ± 0.1", "2 ± 0.25", "8"],
        ["local/attention", "", "1", "6"],
    ]


def test_no_results_are_an_empty_table() -> None:
    assert cells(results_table([])) == []


def test_blocks_show_sparsity_seconds_and_memory() -> None:
    report = {
        "sparsity": 0.49987,
        "parameters": 3_000_000,
        "stored_parameters": 1_500_000,
        "bytes": 2**22,
        "stored_bytes": 2**21,
        "peak_memory": "resident high-water mark",
        "blocks": [
            {"name": "model.layers.0", "sparsity": 0.5, "seconds": 1.234, "peak_bytes": 3 * 2**20},
        ],
    }
    table = pruning_table(report)
    assert cells(table) == [["model.layers.0", "0.5000", "1.23", "3"]]
    assert "0.4999" in str(table.title)
    assert "Parameters: 3,000,000 → 1,500,000, 4.0 → 2.0 MiB" in str(table.title)
    assert "resident high-water mark" in str(table.caption)
    table = pruning_table({**report, "stored_parameters": 3_000_000, "stored_bytes": 2**22})
    assert "Parameters: 3,000,000, zeros included, 4.0 MiB" in str(table.title)


@pytest.mark.parametrize("width", [40, 80])
def test_a_narrow_terminal_shows_names_and_values_in_full(width: int) -> None:
    name = "a_task_with_a_long_name"
    rows = [
        Result(name, "teacher_forced/kl_dense_pruned", "pair", 0.5, 0.25, 3),
        Result(name, "acc", "dense", 0.84, 0.05461, 45),
        Result(name, "acc", "pruned", 0.6, 0.073, 45),
        Result(name, "acc", "difference", -0.24, 0.05, 45),
    ]
    text = io.StringIO()
    show(results_table(rows), Console(file=text, width=width, force_terminal=True))
    lines = text.getvalue().splitlines()
    assert f"{name} teacher_forced/kl_dense_pruned" in lines
    assert f"{name} acc" in lines
    assert any("pruned: 0.6 ± 0.073" in line for line in lines)
    assert any("difference: -0.24 ± 0.05" in line for line in lines)
    assert "…" not in text.getvalue()
    assert max(len(line) for line in lines if line.startswith("  ")) <= width
    wide = io.StringIO()
    show(results_table(rows), Console(file=wide, width=160, force_terminal=True))
    assert "┃" in wide.getvalue()


def test_a_table_of_texts_has_its_first_column_as_headings() -> None:
    table = Table(title="title", caption="caption")
    for heading in ("data set", "multiple choice", "generation"):
        table.add_column(heading)
    table.add_row("facts", "0.95 [0.8, 1.0]\nacc 0.8 → 0.7, n=9", "")
    text = io.StringIO()
    show(table, Console(file=text, width=30, force_terminal=True))
    assert text.getvalue().splitlines() == [
        *("title", "facts"),
        "  multiple choice: 0.95 [0.8, 1.0] acc 0.8 → 0.7, n=9",
        "caption",
    ]


def test_markdown_cells_cannot_break_the_table() -> None:
    rows = [{"prompt": "a | b\nc", "dense": "x"}, {"prompt": "", "dense": "y"}]
    assert markdown_table(rows).splitlines() == [
        "| prompt | dense |",
        "| --- | --- |",
        "| a &#124; b<br>c | x |",
        "|  | y |",
    ]


def test_a_table_is_printed_in_full_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = Result("a_task_with_a_long_name", "a_metric_with_a_long_name", "dense", 0.5, 0.25, 3)
    show(results_table([row]))
    printed = capsys.readouterr().out
    for text in ("a_task_with_a_long_name", "a_metric_with_a_long_name", "0.5 ± 0.25"):
        assert text in printed


def test_a_wide_table_is_not_cut_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [
        Result("t", f"g/quantity_with_a_long_name_{i}", "pair", 0.125, 0.01, 3) for i in range(9)
    ]
    show(grouped_table(rows, "group"))
    printed = capsys.readouterr().out
    for row in rows:
        assert row.metric.removeprefix("g/") in printed


def test_the_title_names_what_is_compared() -> None:
    text = io.StringIO()
    Console(file=text, width=120).print(results_table([Result("t", "m", "pair", 1.0, 0.1, 3)]))
    assert "Dense against pruned (value ± standard error)" in text.getvalue()


def test_a_missing_error_bar_has_its_reason() -> None:
    rows = [
        Result("t", "acc", "pruned", 0.5, 0.1, 9),
        Result("t", "mcnemar_p", "pair", 0.5, math.nan, 9, {"no_error_bar": "a p-value"}),
        Result("u", "nll", "dense", 0.5, math.nan, 1, {"no_error_bar": "a single item"}),
        Result("u", "nll", "pruned", 0.5, math.nan, 1, {"no_error_bar": "a single item"}),
    ]
    caption = results_table(rows).caption
    assert caption == "without ±: mcnemar_p (a p-value); nll (a single item)"
    assert results_table(rows[:1]).caption is None


def test_fixed_answers_have_a_line_each_in_a_table_of_their_own() -> None:
    def row(metric: str, model: str, value: float, n: int, text: str) -> Result:
        return Result("t", metric, model, value, 0.1, n, {"score": "acc", "class": text})

    rows = [
        Result("t", "acc", "pruned", 0.5, 0.1, 9),
        *(row("chosen/yes", model, 0.75, 9, "yes") for model in ("dense", "pruned", "difference")),
        *(row("acc/yes", model, 0.25, 4, "yes") for model in ("dense", "pruned", "difference")),
        row("chosen/no", "dense", 0.25, 9, "no"),
        row("chosen/no", "pruned", 0.0, 9, "no"),
    ]
    assert cells(results_table(rows)) == [["t", "acc", "", "0.5 ± 0.1", "", "9"]]
    (first, second) = class_rows(rows)["t"]
    assert list(first) == [
        *("answer", "n", "acc dense", "acc pruned", "chosen dense", "chosen pruned")
    ]
    assert list(first.values()) == ["yes", "4", *["0.25 ± 0.1"] * 2, *["0.75 ± 0.1"] * 2]
    assert list(second.values()) == ["no", "0", "", "", "0.25 ± 0.1", "0 ± 0.1"]
    (table,) = class_tables(rows)
    assert cells(table) == [list(first.values()), list(second.values())]
    assert class_tables(rows[:1]) == []


def test_hidden_characters_of_names_are_shown() -> None:
    row = Result("t", "acc/g\x1b[2J\u202e", "dense", 0.5, 0.1, 4)
    text = as_text(results_table([row]))
    assert "acc/g[U+001B][2J[U+202E]" in text
    assert "\x1b" not in text


def test_brief_lines_have_one_telling_number_a_task() -> None:
    results = [
        Result("qa", "brier", "dense", 0.3, 0.1, 40, {"primary": "acc"}),
        Result("qa", "acc", "dense", 0.9, 0.1, 40, {"primary": "acc"}),
        Result("qa", "acc", "pruned", 0.5, 0.1, 40, {"primary": "acc"}),
        Result("qa", "acc/a", "pruned", 0.5, 0.1, 40, {"class": "a"}),
        Result("text", "js", "pair", 0.1, 0.1, 8),
        Result("text", "kl_dense_pruned", "pair", 0.8123456, 0.1, 8),
        Result("t" * 150, "own_metric_of_a_long_name_for_a_table", "pruned", 1.0, 0.1, 3),
    ]
    lines = brief_lines(results)
    assert [line.split() for line in lines[:3]] == [
        ["task", "score", "dense", "pruned", "n"],
        ["qa", "acc", "0.9", "0.5", "40"],
        ["text", "kl_dense_pruned", "0.8123", "8"],
    ]
    assert lines[3].split()[:2] == ["t" * 17 + "...", "own_metric_of_a_long_name_fo..."]
    assert max(map(len, lines)) <= 80
    many = [Result(f"t{n}", "acc", "pruned", 0.5, 0.1, 4) for n in range(20)]
    assert brief_lines(many)[-1] == "and 6 more tasks"


def test_a_long_sentence_is_wrapped_at_80_columns() -> None:
    text = wrap("Cannot tell retrieval (" + "0.80 [0.61, 0.97] of the lead, " * 5 + "no more).")
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[1].startswith("  ")
