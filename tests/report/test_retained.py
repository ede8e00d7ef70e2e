"""The headline: its groups of rows by data set, and its sentences."""

import io
import math
from dataclasses import replace

import pytest
from matplotlib.text import Annotation
from rich.table import Table

from prunelit.report.results import Result
from prunelit.report.retained import headline_picture, headline_table, verdict_cells
from prunelit.report.verdicts import Verdict, Word


def texts(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def row(
    task: str,
    use: str,
    value: float = 0.5,
    bounds: tuple[float, float] = (0.4, 0.6),
    word: Word = "loses",
    **details: object,
) -> Verdict:
    own = {
        "path": "org/facts",
        "split": "test",
        "use": use,
        "primary": "acc",
        "dense": 0.8,
        "pruned": 0.4,
        "chance": 0.25,
    }
    result = Result(task, "retained", "pair", value, 0.05, 40, own | details)
    return Verdict(
        result, word, 0.95, absolute=False, value=value, low=bounds[0], high=bounds[1], level=0.05
    )


def test_one_line_a_data_set_and_one_column_a_use() -> None:
    rows = [
        row("a", "multiple choice", 0.7),
        row("b", "generation", 0.18, primary="contains"),
        row("c", "retrieval", 0.63, path="rows.jsonl"),
    ]
    found = verdict_cells(rows)
    assert list(found) == ["facts", "rows.jsonl"]
    table = headline_table(found)
    assert [c.header for c in table.columns] == [
        *("data set", "multiple choice", "retrieval", "generation")
    ]
    first, second = texts(table)
    assert first == [
        "facts",
        "0.70 [0.40, 0.60]: loses\nacc 0.800 → 0.400, n=40, margin 0.95",
        "",
        "0.18 [0.40, 0.60]: loses\ncontains 0.800 → 0.400, n=40, margin 0.95",
    ]
    assert second[:2] == ["rows.jsonl", ""]
    assert second[2].startswith("0.63")


def test_parts_of_a_data_set_are_told_apart() -> None:
    rows = [
        row("a", "retrieval", split="train"),
        row("b", "retrieval", split="test"),
        row("c", "retrieval", subset="ARC-Easy"),
    ]
    assert list(verdict_cells(rows)) == ["facts, train", "facts, test", "facts ARC-Easy"]


def test_a_folder_has_its_name_with_a_slash_at_its_end() -> None:
    assert list(verdict_cells([row("a", "retrieval", path="data/tickets/")])) == ["tickets"]


def test_no_data_set_is_lost_by_its_name() -> None:
    nine = row("c", "retrieval", path="two/rows.jsonl")
    nine = replace(nine, result=replace(nine.result, n=9))
    rows = [
        row("a", "retrieval", path="one/rows.jsonl"),
        row("b", "retrieval", path="two/rows.jsonl"),
        nine,
        row("d", "retrieval", path="x a", subset="b"),
        row("e", "retrieval", path="x", subset="a b"),
    ]
    assert list(verdict_cells(rows)) == [
        "one/rows.jsonl, test, 40 items",
        "two/rows.jsonl, test, 40 items",
        "rows.jsonl, test, 9 items",
        "'x a', 'b', 'test', 40 items",
        "'x', 'a b', 'test', 40 items",
    ]


def test_no_lead_and_the_next_step_are_said() -> None:
    nothing = (math.nan, math.nan)
    rows = [
        row("a", "retrieval", 1.0, nothing, "no lead", no_error_bar="not above chance"),
        replace(row("b", "multiple choice", 0.9, (0.8, 1.0), "cannot tell"), needed=640),
    ]
    table = headline_table(verdict_cells(rows))
    ((_, choice, retrieval),) = texts(table)
    assert retrieval == "—\nacc 0.800 → 0.400, n=40\nnot above chance"
    assert choice.startswith("0.90 [0.80, 1.00]: cannot tell\n")
    assert choice.endswith("\nabout 640 items would decide")
    picture = headline_picture(verdict_cells(rows))
    assert [math.isnan(low) for low in picture.numbers["low"]] == [False, True]
    assert picture.numbers["verdict"] == ["cannot tell", "no lead"]


@pytest.mark.parametrize(
    ("answers", "caption"),
    [
        ([None], ""),
        (["open", None], "; chance of open answers: 0"),
        (["fixed"], "; chance of fixed answers: the share of the most frequent one"),
    ],
)
def test_the_caption_speaks_of_what_is_shown(answers: list[str | None], caption: str) -> None:
    rows = [row("a", "generation", answers=kind) for kind in answers]
    found = str(headline_table(verdict_cells(rows)).caption)
    assert found.endswith(f"the upper bound is below it{caption}")


def test_the_figure_has_a_bar_a_reading_with_its_interval() -> None:
    rows = [
        row("a", "multiple choice", 0.7),
        row("b", "generation", -0.1, bounds=(-0.2, 0.1)),
        row("c", "retrieval", 1.1, path="rows.jsonl", bounds=(0.9, 1.3)),
    ]
    picture = headline_picture(verdict_cells(rows))
    axes = picture.figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.7, -0.1, 1.1]
    # A bar has the name of its task, as in all other figures.
    labels = [text.get_text().splitlines()[1] for text in axes.texts]
    assert labels == ["a", "b", "c"]
    assert axes.get_ylim()[1] > 1.3
    assert axes.get_ylim()[0] < -0.1
    assert picture.numbers["data_set"] == ["facts", "facts", "rows.jsonl"]
    assert picture.numbers["high"] == [0.6, 0.1, 1.3]
    image = io.BytesIO()
    picture.figure.savefig(image, dpi=60)
    assert image.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize(("high", "begins"), [(0.5, 0.5), (0.8, 0.95), (0.949, 0.95), (0.97, 0.97)])
def test_no_label_covers_the_line_of_the_margin(high: float, begins: float) -> None:
    cells = verdict_cells([row("a", "retrieval", 0.45, (0.4, high))])
    (label,) = headline_picture(cells).figure.axes[0].texts
    assert isinstance(label, Annotation)
    assert label.xy[1] == pytest.approx(begins)
