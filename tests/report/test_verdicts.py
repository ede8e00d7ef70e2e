"""Verdicts of tasks and uses: the words, Holm's procedure, margins, and the files."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from prunelit import InputError
from prunelit.report.results import Result
from prunelit.report.score_test import PairedScores
from prunelit.report.verdicts import (
    Margins,
    Verdict,
    decide,
    format_verdicts,
    holm_levels,
    score_rows,
    use_sentences,
    use_words,
)

Scored = tuple[Result, PairedScores]


def scored(
    task: str, kept: int, lost: int, wrong: int = 20, use: str = "generation", floor: float = 0.0
) -> Scored:
    """Make a task with answers that stay right, become wrong, and are wrong in both models."""
    dense = np.array([1.0] * (kept + lost) + [0.0] * wrong)
    pruned = np.array([1.0] * kept + [0.0] * (lost + wrong))
    scores = PairedScores(dense, pruned, np.full(len(dense), floor))
    lead = dense.mean() - floor
    value = float((pruned.mean() - floor) / lead) if lead > 0 else math.nan
    details = {
        "use": use,
        "primary": "contains",
        "dense": float(dense.mean()),
        "pruned": float(pruned.mean()),
        "chance": floor,
    }
    return Result(task, "retained", "pair", value, 0.1, len(dense), details), scores


CASES = [scored("same", 400, 0), scored("less", 100, 80), scored("near", 93, 7)]


def test_words_agree_with_the_bounds() -> None:
    for keep in (0.5, 0.56, 0.95):
        for one in decide(CASES, Margins(keep)):
            if one.word == "keeps":
                assert one.low >= keep
            elif one.word == "loses":
                assert one.high < keep
            else:
                assert one.low < keep <= one.high
                assert one.needed is None or one.needed > one.result.n / 4
    words = [one.word for one in decide(CASES, Margins())]
    assert words == ["keeps", "loses", "cannot tell"]


def test_an_absolute_margin_takes_the_place_of_the_share() -> None:
    margins = Margins(keep=0.95, margin={"less": 0.5, "near": 0.2})
    same, less, near = decide(CASES, margins)
    assert not same.absolute
    assert (less.absolute, less.word, less.value) == (True, "keeps", pytest.approx(-0.4))
    assert less.low > -0.5
    assert near.word == "keeps"
    strict = decide(CASES, Margins(margin="generation=0.01"))
    assert [one.word for one in strict] == ["keeps", "loses", "loses"]


def test_a_dense_model_without_a_lead_has_no_verdict() -> None:
    one, _ = decide([scored("chance", 5, 5, 10, floor=0.5), CASES[0]], Margins())
    assert one.word == "no lead"
    assert math.isnan(one.low)
    assert use_sentences([one]) == [
        "No verdict on generation (the dense model has no lead over the floor)."
    ]


def test_holm_by_hand() -> None:
    assert holm_levels([0.01, 0.04, 0.03]) == pytest.approx([0.05 / 3, 0.025, 0.025])
    assert holm_levels([0.01, 0.04, 0.02]) == pytest.approx([0.05 / 3, 0.05, 0.025])
    assert holm_levels([0.02, 0.03]) == pytest.approx([0.025, 0.05])
    assert holm_levels([]) == []


def test_more_tasks_make_a_verdict_harder() -> None:
    margins = Margins({"less": 0.62, "default": 0.95})
    alone = decide([CASES[1]], margins)[0]
    among = decide([CASES[1], *(scored(f"t{n}", 93, 7) for n in range(9))], margins)[0]
    assert (alone.word, among.word) == ("loses", "cannot tell")
    assert among.level <= alone.level / 5
    assert among.low < alone.low
    assert among.high > alone.high


def test_a_use_keeps_if_all_keep_and_loses_if_one_loses() -> None:
    find = scored("find", 400, 0, use="retrieval")
    assert use_words(decide([find, *CASES], Margins())) == {
        "retrieval": "keeps",
        "generation": "loses",
    }
    assert use_words(decide([CASES[0], CASES[2]], Margins())) == {"generation": "cannot tell"}


def test_sentences_have_verdict_numbers_and_next_step() -> None:
    sentences = use_sentences(decide([scored("find", 400, 0, use="retrieval")], Margins(0.9)))
    assert sentences == ["Keeps retrieval (1.00 [0.99, 1.01] of the lead, margin 0.9)."]
    (near,) = use_sentences(decide([CASES[2]], Margins()))
    assert near.startswith("Cannot tell generation (0.93 [")
    assert near.endswith("items would decide).")
    (both,) = use_sentences(decide(CASES[:2], Margins()))
    assert both.startswith("Loses generation (same: 1.00 [")
    assert "; less: 0.56 [" in both


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"keep": 0}, "`keep` above 0"),
        ({"keep": 2.5}, "`keep` above 0"),
        ({"margin": "qa=1.5"}, "`margin` above 0"),
        ({"margin": "qa=much"}, "`margin` as a number, or as numbers by name"),
        ({"keep": "qa"}, "`keep` as a number"),
    ],
)
def test_margins_that_are_none(options: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        Margins(**options)


def test_a_margin_of_a_task_that_is_not_there() -> None:
    with pytest.raises(
        InputError, match=r"`margin` names 'anwers'.*expected one of 'answers', 'generation'"
    ):
        Margins(margin="anwers=0.1").check(["answers", "generation"])
    Margins(keep="answers=0.9,default=0.8").check(["answers"])


def test_a_margin_of_a_task_without_a_verdict_is_told() -> None:
    margins = Margins({"default": 0.9, "text": 0.95, "same": 0.9}, {"text": 0.1})
    sentences = margins.without_verdict(["text", "same"], decide(CASES, margins))
    assert [one.partition(",")[0] for one in sentences] == [
        "`keep` names 'text'",
        "`margin` names 'text'",
    ]


def test_the_files_hold_what_was_printed() -> None:
    verdicts = decide(CASES, Margins())
    data = json.loads(format_verdicts(verdicts))
    assert data["uses"] == {"generation": "loses"}
    assert data["sentences"] == use_sentences(verdicts)
    assert [one["verdict"] for one in data["tasks"]] == ["keeps", "loses", "cannot tell"]
    assert data["tasks"][1]["dense"] == 0.9
    rows = list(score_rows(CASES))
    assert len(rows) == 420 + 200 + 120
    assert rows[0] == {
        "task": "same", "item": 0, "dense": 1.0, "pruned": 1.0, "floor": 0.0, "bounded": True,
        "weight": 1.0,
    }  # fmt: skip


def test_a_margin_without_a_name_is_that_of_all_tasks() -> None:
    for given in ("0.05", 0.05, {"default": 0.05}):
        assert Margins(margin=given).of("any", "generation") == (0.05, True)
    margins = Margins(keep="qa=0.9", margin="0.05,retrieval=0.1")
    found = [margins.of(*names) for names in (("qa", "generation"), ("docs", "retrieval"))]
    assert found == [(0.9, False), (0.1, True)]


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (0.9496, 1.06, "1.0000 [0.9496, 1.0600]"),
        (0.94996, 1.06, "1.00000 [0.94996, 1.06000]"),
        (0.91, 0.9496, "1.0000 [0.9100, 0.9496]"),
        (0.95, 1.06, "1.00 [0.95, 1.06]"),
        (-math.inf, math.inf, "1.00 [-inf, inf]"),
    ],
)
def test_no_bound_is_rounded_to_the_other_side_of_the_margin(
    low: float, high: float, shown: str
) -> None:
    one = Verdict(CASES[0][0], "cannot tell", 0.95, False, 1.0, low, high, 0.05)
    assert one.interval() == shown
    bounds = [float(text) for text in shown[:-1].partition("[")[2].split(", ")]
    assert [bound >= 0.95 for bound in bounds] == [low >= 0.95, high >= 0.95]
    loss = replace(one, absolute=True, margin=0.05, low=-0.0504, high=0.01)
    assert loss.interval() == "+1.0000 [-0.0504, +0.0100]"


def test_a_score_that_is_not_defined_counts_as_the_floor() -> None:
    rng = np.random.default_rng(0)
    dense, none = rng.normal(0.8, 0.5, 100), np.full(100, math.nan)
    result = replace(CASES[0][0], value=math.nan)
    for margins in (Margins(), Margins(margin="0.05")):
        (one,) = decide([(result, PairedScores(dense, none, 0 * dense, bounded=False))], margins)
        assert one.word == "loses"
        assert one.high < 0.2
        assert math.isfinite(one.value)
    (one,) = decide([(result, PairedScores(none, dense, 0 * dense, bounded=False))], Margins())
    assert one.word == "no lead"
