"""The answers of a search on the page."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from prunelit.report.page.runs import judge, read_run
from prunelit.report.page.search_view import view_search
from prunelit.report.page.view import write_page
from prunelit.report.placed import Placed
from prunelit.report.results import Result
from prunelit.report.score_test import PairedScores
from prunelit.report.search import find_answers
from prunelit.report.variants import Point
from prunelit.report.verdicts import Margins, Verdict, decide


def judged(share: float) -> list[Verdict]:
    dense, pruned = np.ones(400), (np.arange(400) < share * 400).astype(float)
    details = {"use": "retrieval", "primary": "acc", "chance": 0.0}
    details |= {"dense": 1.0, "pruned": float(pruned.mean())}
    result = Result("facts", "retained", "pair", share, 0.01, 400, details)
    return decide([(result, PairedScores(dense, pruned, np.zeros(400)))], Margins())


def test_the_largest_setting_comes_first(make_run: Callable[..., Any], tmp_path: Path) -> None:
    shares = {0.1: 1.0, 0.2: 0.99, 0.3: 0.5}
    placed = [
        Placed(Point("<b>wanda", "sparsity.ratio", setting, "id"), judged(share))
        for setting, share in shares.items()
    ]
    placed.append(Placed(Point("drop", "count", 1, "id"), judged(0.5)))
    view = view_search(find_answers(placed, None), b"figure")
    assert [(line["look"], line["value"]) for line in view["lines"]] == [
        *(("keep", "ratio 0.2"), ("lose", "none"))
    ]
    assert view["table"] == {
        "uses": ["Retrieval"],
        "rows": [
            {"method": "<b>wanda", "cells": [{"look": "keep", "text": "ratio 0.2"}]},
            {"method": "drop", "cells": [{"look": "lose", "text": "none"}]},
        ],
    }
    assert view["figure_sentence"] == (
        "The largest fall between two measured settings: retrieval by <b>wanda from 0.99 at ratio "
        "0.2 to 0.50 at 0.3."
    )
    run = read_run(make_run(tmp_path / "run"))
    judge([run], Margins())
    text = write_page([run], tmp_path / "page.html", view).read_text()
    body = text[text.index("<main>") :]
    assert body.index("Largest setting that keeps each use") < body.index("ratio 0.2")
    assert body.index("ratio 0.2") < body.index("data:image/png;base64,ZmlndXJl")
    assert "<b>wanda" not in body
    assert "4 settings were tried" in body
    assert '<td class="lose"><b>none</b></td>' in body
    assert len(re.findall("<h1>Largest", body)) == 1


def test_without_a_figure_and_with_one_setting() -> None:
    placed = [Placed(Point("drop", "count", 1, "id"), judged(0.5))]
    view = view_search(find_answers(placed, None), b"")
    assert view["figure"] == ""
    assert view["figure_sentence"] == "Each method has one measured setting."
    assert [(line["look"], line["value"]) for line in view["lines"]] == [("lose", "none")]
