"""The answers of a search, its table and its figure."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from prunelit.report.placed import Placed, place_settings
from prunelit.report.results import Result
from prunelit.report.score_test import PairedScores
from prunelit.report.search import (
    closing,
    find_answers,
    format_search,
    kept_by_use,
    kept_words,
    read_search,
    search_table,
)
from prunelit.report.settings import settings_picture
from prunelit.report.tables import brief_table
from prunelit.report.variants import Point, Variant, format_variants, read_variants
from prunelit.report.verdicts import Margins, Verdict, decide

N = 400


def judged(kept: dict[str, float], margins: Margins | None = None) -> list[Verdict]:
    """Decide for tasks of 400 items of which a share stays right; 0 of 400 is no lead."""
    scored = []
    for task, share in kept.items():
        dense = np.ones(N) if share >= 0 else np.zeros(N)
        pruned = (np.arange(N) < share * N).astype(float)
        use = "retrieval" if task.startswith("found") else "generation"
        details = {"use": use, "primary": "acc", "chance": 0.0}
        details |= {"dense": float(dense.mean()), "pruned": float(pruned.mean())}
        result = Result(task, "retained", "pair", share, 0.01, N, details)
        scored.append((result, PairedScores(dense, pruned, np.zeros(N))))
    return decide(scored, margins or Margins())


def place(method: str, setting: float, seed: int = 0, **kept: float) -> Placed:
    knob = "sparsity.ratio" if method == "wanda" else "count"
    return Placed(Point(method, knob, setting, "id", seed), judged(kept))


WANDA = [
    place("wanda", 0.1, found=1.0, written=0.99),
    place("wanda", 0.2, found=0.99, written=0.5),
    place("wanda", 0.3, found=0.95, written=0.4),
    place("wanda", 0.2, 1, found=0.94, written=0.45),
]
DROP = [place("drop", 1, found=0.8, written=0.1), place("drop", 2, found=0.99, written=0.1)]


def test_the_answers_of_all_methods_and_uses() -> None:
    answers = find_answers([*WANDA, *DROP], None)
    ends = {
        (a.method, a.use): tuple(e.setting if e else None for e in (a.largest, a.smallest))
        for a in answers
    }
    assert ends == {
        ("wanda", "retrieval"): (0.2, 0.3),
        ("wanda", "generation"): (0.1, 0.2),
        ("drop", "retrieval"): (None, 1),
        ("drop", "generation"): (None, 1),
    }
    said = closing(answers)
    assert said[0].startswith("wanda keeps retrieval up to ratio 0.2 (0.99 [0.9")
    assert "0.3 cannot be told (0.95 [" in said[0]
    assert said[0].endswith(", margin 0.95, more than 100,000 items would decide).")
    begin = "The weakest measured setting of drop does not keep retrieval: count 1 loses (0.80 ["
    assert said[2].startswith(begin)
    assert said[2].endswith(" 2 keeps it: the scores do not fall evenly.")
    assert said[3].startswith("No measured setting of drop keeps generation: count 1 loses (0.10")
    assert "Other calibration text (wanda, retrieval): 0.2: 0.94 to 0.99, 1 of 2 texts keep" in (
        " ".join(said)
    )
    assert said[-1].startswith("6 settings were tried. Holm's procedure holds the chance")
    data = json.loads(format_search(answers))
    assert data["settings_tried"] == 6
    assert data["answers"][0]["largest_that_keeps"]["tasks"][0]["verdict"] == "keeps"
    assert data["answers"][2]["uneven"] == [2]


def test_only_the_uses_that_are_searched() -> None:
    assert {answer.use for answer in find_answers(WANDA, ["retrieval"])} == {"retrieval"}
    measured = {0.1: WANDA[0].verdicts, 0.2: WANDA[1].verdicts}
    assert kept_by_use(measured, ["generation"]) == [{0.1: True, 0.2: False}]
    assert len(kept_by_use(measured, None)) == 2
    assert kept_by_use({}, None) == [{}]


def test_a_use_without_a_lead_is_no_reason_to_go_on() -> None:
    verdicts = judged({"found": -1.0, "written": 1.0})
    assert kept_by_use({0.1: verdicts}, None) == [{0.1: True}]
    answers = find_answers([Placed(Point("wanda", "ratio", 0.1, "id"), verdicts)], None)
    assert closing(answers)[0] == (
        "No verdict on retrieval: the dense model has no lead over the floor."
    )
    assert "up to ratio 0.1" in closing(answers)[1]
    assert "the largest that was measured" in closing(answers)[1]
    assert answers[0].around == []


def test_a_use_of_two_tasks_names_the_one_that_decides() -> None:
    one = place("wanda", 0.1, found=1.0, found_too=0.99)
    two = place("wanda", 0.2, found=1.0, found_too=0.5)
    (answer,) = find_answers([one, two], None)
    assert "(found_too 0.99 [" in answer.sentence()
    assert "0.2 loses (found_too 0.50 [" in answer.sentence()


def test_a_line_for_each_setting() -> None:
    assert kept_words(WANDA[1].verdicts) == "keeps retrieval; loses generation"
    assert kept_words([]) == ""


def test_the_table_fits_a_terminal() -> None:
    answers = find_answers([*WANDA, *DROP], None)
    lines = brief_table(search_table(answers)).splitlines()
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    for part in ("ratio, 3 tried", "0.2: keeps", "0.3: cannot tell", "0.94 to 0.99"):
        assert part in text, text
    assert text.count("1 of 2 texts keep") == 1
    long = replace(place("drop", 1, found=0.8), point=Point("drop" * 12, "count", 1, "id"))
    lines = brief_table(search_table(find_answers([long], None))).splitlines()
    assert "  use: retrieval  largest that keeps: none" in lines
    assert max(map(len, lines)) <= 80


def test_the_answers_name_their_variants_and_uses(tmp_path: Path) -> None:
    assert read_search(tmp_path) is None
    answers = find_answers(WANDA, ["retrieval"])
    (tmp_path / "search.json").write_text(format_search(answers, ["a", "b"], ["retrieval"]))
    assert read_search(tmp_path) == (["a", "b"], ["retrieval"])
    (tmp_path / "search.json").write_text(format_search(answers, ["a"]))
    assert read_search(tmp_path) == (["a"], None)


def variants(placed: Sequence[Placed]) -> tuple[list[Variant], dict[str, list[Verdict]]]:
    named = {f"{one.point.method}_{n}": one for n, one in enumerate(placed)}
    own = [Variant(name, [], {}, 0.1, point=one.point) for name, one in named.items()]
    return own, {name: list(one.verdicts) for name, one in named.items()}


def test_settings_of_another_recipe_are_not_on_the_curve() -> None:
    other = Placed(Point("wanda", "sparsity.ratio", 0.05, "old"), WANDA[0].verdicts)
    placed = place_settings(*variants([other, *reversed(WANDA), *DROP]))
    assert [one.point.setting for one in placed] == [0.1, 0.2, 0.2, 0.3, 1, 2]
    assert [one.point.method for one in placed] == ["wanda"] * 4 + ["drop"] * 2
    assert place_settings([Variant("plain", [], {}, 0.1)], {"plain": []}) == []


def test_points_are_stored(tmp_path: object) -> None:
    own = variants(WANDA)[0]
    path = f"{tmp_path}/variants.json"
    with open(path, "w", encoding="utf-8") as file:
        file.write(format_variants(own))
    assert read_variants(path) == own


def test_the_figure_has_a_column_for_each_use_and_a_row_for_each_knob() -> None:
    picture = settings_picture(place_settings(*variants([*WANDA, *DROP])))
    panels = [axes for axes in picture.figure.axes if axes.get_title()]
    assert [(axes.get_title(), axes.get_xlabel()) for axes in panels] == [
        *(("retrieval", "ratio"), ("generation", "ratio")),
        *(("retrieval", "count"), ("generation", "count")),
    ]
    curve = panels[0].lines[0]
    assert list(curve.get_xdata()) == [0, 0.1, 0.2, 0.3]
    assert list(curve.get_ydata()) == [1, 1.0, 0.99, 0.95]
    numbers = picture.numbers
    assert len(numbers["setting"]) == 12
    assert numbers["verdict"][0] == "keeps"
    FigureCanvasAgg(picture.figure).draw()
    # The score on the right is that of the share on the left.
    (right,) = panels[0].child_axes
    low, high = panels[0].get_ylim()
    assert right.get_ylim() == pytest.approx((low, high))


def test_where_much_is_kept_the_axis_leaves_out_the_floor() -> None:
    kept = [place("wanda", 0.1, found=0.99), place("wanda", 0.1, 1, found=0.95)]
    (axes,) = settings_picture(kept).figure.axes
    assert 0.7 < axes.get_ylim()[0] < 0.95
    # The bar over all calibration texts, and a dot for the other one.
    drawn = [sorted(line.get_ydata()) for line in axes.lines if line.get_xdata()[0] == 0.1]
    assert [0.95, 0.99] in drawn
    assert [0.95] in drawn
    lost = [place("wanda", 0.1, found=0.3)]
    assert settings_picture(lost).figure.axes[0].get_ylim()[0] < 0


def test_an_absolute_margin_has_its_own_scale() -> None:
    verdicts = judged({"found": 0.9}, Margins(margin="found=0.05"))
    placed = [Placed(Point("wanda", "ratio", 0.1, "id"), verdicts)]
    (axes,) = settings_picture(placed).figure.axes
    assert axes.get_ylabel() == "change of the score"
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0, -0.1])
