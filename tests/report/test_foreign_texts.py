"""Texts of models and names of users are shown, never obeyed."""

import csv
import io
import warnings

import pytest
from rich.table import Table

from prunelit.report.curves import as_csv
from prunelit.report.tables import as_text, markdown_table

with warnings.catch_warnings():  # TensorBoard's own copy of a library warns at its import
    warnings.simplefilter("ignore", DeprecationWarning)
    from tensorboard.plugin_util import markdown_to_safe_html

HOSTILE = [
    "![x](http://a.example/p.png)",
    "<img src=http://a.example/p.png>",
    "[x](http://a.example)",
    "``` \n```\n\n![x](http://a.example/p.png)",
    "a | b\r\n\n| ![](http://a.example) |",
    "![x][y]\n\n[y]: http://a.example/p.png",
    "\\![x](http://a.example)",
    "&lt;img src=x&gt; <http://a.example>",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_tensorboard_shows_a_text_and_loads_nothing(text: str) -> None:
    for rows in ([{"prompt": "a", "pruned": text}], [{text: "b"}]):
        page = markdown_to_safe_html(markdown_table(rows))
        assert "<table>" in page
        assert "<img" not in page
        assert "<a " not in page


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_runs_no_formula_of_a_text(text: str) -> None:
    table = list(csv.reader(io.StringIO(as_csv({text: [text, -1.5]}), newline="")))
    shown = "'" + text.replace("\r", "\n")
    assert table == [[shown], [shown], ["-1.5"]]


def test_names_in_brackets_are_printed_as_they_are() -> None:
    table = Table(title="[red]title")
    table.add_column("[/]")
    table.add_row("[red] [/] :smile:")
    printed = as_text(table)
    for text in ("[red]title", "[/]", "[red] [/] :smile:"):
        assert text in printed
