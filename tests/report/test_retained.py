"""The headline: its groups of rows by data set, and its sentences."""

import io
import math
from dataclasses import replace

import pytest
from rich.table import Table

from prunelit.report.results import Result
from prunelit.report.retained import headline_picture, headline_table, retained_cells


def texts(table: Table) -> list[list[str]]:
    return [list(row) for row in zip(*(column.cells for column in table.columns), strict=True)]


def row(task: str, use: str, value: float = 0.5, **details: object) -> Result:
    own = {
        "path": "org/facts",
        "split": "test",
        "use": use,
        "primary": "acc",
        "dense": 0.8,
        "pruned": 0.4,
        "chance": 0.25,
        "interval_95": [0.4, 0.6],
    }
    return Result(task, "retained", "pair", value, 0.05, 40, own | details)


def test_one_line_a_data_set_and_one_column_a_use() -> None:
    rows = [
        row("a", "multiple choice", 0.7),
        row("b", "generation", 0.18, primary="contains"),
        row("c", "retrieval", 0.63, path="rows.jsonl"),
        Result("c", "mrr", "dense", 0.6, 0.1, 40, {"path": "rows.jsonl"}),
    ]
    found = retained_cells(rows)
    assert list(found) == ["facts", "rows.jsonl"]
    table = headline_table(found)
    assert [c.header for c in table.columns] == [
        *("data set", "multiple choice", "retrieval", "generation")
    ]
    first, second = texts(table)
    assert first == [
        "facts",
        "0.70 [0.40, 0.60]\nacc 0.800 → 0.400, n=40",
        "",
        "0.18 [0.40, 0.60]\ncontains 0.800 → 0.400, n=40",
    ]
    assert second[:2] == ["rows.jsonl", ""]
    assert second[2].startswith("0.63")


def test_parts_of_a_data_set_are_told_apart() -> None:
    rows = [
        row("a", "retrieval", split="train"),
        row("b", "retrieval", split="test"),
        row("c", "retrieval", subset="ARC-Easy"),
    ]
    assert list(retained_cells(rows)) == ["facts, train", "facts, test", "facts ARC-Easy"]


def test_no_data_set_is_lost_by_its_name() -> None:
    rows = [
        row("a", "retrieval", path="one/rows.jsonl"),
        row("b", "retrieval", path="two/rows.jsonl"),
        replace(row("c", "retrieval", path="two/rows.jsonl"), n=9),
        row("d", "retrieval", path="x a", subset="b"),
        row("e", "retrieval", path="x", subset="a b"),
    ]
    assert list(retained_cells(rows)) == [
        "one/rows.jsonl, test, 40 items",
        "two/rows.jsonl, test, 40 items",
        "rows.jsonl, test, 9 items",
        "'x a', 'b', 'test', 40 items",
        "'x', 'a b', 'test', 40 items",
    ]


def test_no_interval_and_no_lead_are_said() -> None:
    single = row("a", "multiple choice", interval_95=None, no_error_bar="a single item")
    rows = [
        replace(single, n=1),
        replace(row("a", "retrieval", 1.0, interval_95=None, no_error_bar="no clear lead"), n=1),
    ]
    rows[1] = replace(rows[1], n=40, details={**rows[1].details, "path": "b"})
    rows.append(row("a", "generation", math.nan, path="b", interval_95=None, no_error_bar="none"))
    (_, choice, *_), (_, _, retrieval, generation) = texts(headline_table(retained_cells(rows)))
    assert choice == "0.50\nacc 0.800 → 0.400, n=1\nno interval: a single item"
    # A share of a lead that may be none is no number.
    assert retrieval == "—\nacc 0.800 → 0.400, n=40\nno clear lead"
    assert generation == "—\nacc 0.800 → 0.400, n=40\nnone"
    picture = headline_picture(retained_cells(rows))
    assert [math.isnan(low) for low in picture.numbers["low"]] == [True] * 3
    heights = [bar.get_height() for bar in picture.figure.axes[0].patches]
    assert heights[0] == 0.5
    assert all(map(math.isnan, heights[1:]))
    labels = [text.get_text() for text in picture.figure.axes[0].texts]
    assert [label.startswith("no lead over chance\n") for label in labels] == [False, True, True]


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
    found = headline_table(retained_cells(rows)).caption
    assert found == f"second line: metric, dense → pruned, items{caption}"


def test_the_figure_has_a_bar_a_reading_with_its_interval() -> None:
    rows = [
        row("a", "multiple choice", 0.7),
        row("b", "generation", -0.1, interval_95=[-0.2, 0.1]),
        row("c", "retrieval", 1.1, path="rows.jsonl", interval_95=[0.9, 1.3]),
    ]
    picture = headline_picture(retained_cells(rows))
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
