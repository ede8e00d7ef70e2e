"""The numbers behind the figures of a run."""

import math

from prunelit.report.main_scores import (
    axis_begin,
    chance,
    is_generative,
    scores_numbers,
    sparsity_numbers,
)
from prunelit.report.results import Result


def test_chance_is_what_the_task_states() -> None:
    assert chance(Result("t", "acc", "dense", 0.5, 0.1, 9, {"chance": 0.25})) == 0.25
    assert chance(Result("t", "mrr", "dense", 0.5, 0.1, 9, {"chance_mrr": 0.02})) == 0.02
    assert chance(Result("t", "recall@1", "dense", 0.5, 0.1, 9, {"chance_mrr": 0.02})) is None
    assert chance(Result("t", "contains", "dense", 0.5, 0.1, 9)) is None


def test_the_axis_begins_below_every_whisker() -> None:
    def row(value: float, error: float) -> Result:
        return Result("stsb", "spearman", "pruned", value, error, 9)

    assert axis_begin([]) == 0
    assert axis_begin([row(0.5, 0.1), row(math.nan, 0.1)]) == 0
    assert axis_begin([row(-0.02, 0.1), row(-0.1, math.nan)]) < -0.12


def test_main_scores_are_scores_of_one_model() -> None:
    choices = {"primary": "acc", "use": "multiple choice", "chance": 0.25}
    texts = {"primary": "strict", "use": "generation"}
    rows = [
        Result("mc", "acc", "dense", 0.8, 0.1, 9, choices),
        Result("mc", "acc", "pruned", 0.6, 0.2, 9, choices),
        Result("mc", "acc", "difference", -0.2, 0.1, 9, choices),
        Result("mc", "brier", "dense", 0.3, 0.1, 9, choices),
        Result("ro", "strict", "pruned", 0.1, 0.05, 8, texts),
        Result("ro", "flexible", "pruned", 0.1, 0.05, 8, texts),
        Result("text", "nll", "pruned", 3.1, 0.05, 8),
    ]
    assert [is_generative(row) for row in rows] == [False] * 4 + [True] * 2 + [False]
    numbers = scores_numbers(rows)
    assert numbers["task"] == ["mc", "mc", "ro"]
    assert numbers["model"] == ["dense", "pruned", "pruned"]
    assert numbers["value"] == [0.8, 0.6, 0.1]
    assert numbers["chance"] == [0.25, 0.25, None]
    assert numbers["n"] == [9, 9, 8]


def test_sparsity_has_a_line_a_tensor() -> None:
    counts = {"zeros": 3, "removed": 2, "sparsity": 0.5, "more": 1}
    tensors = [{"name": n, "size": s, **counts} for n, s in (("a", 4), ("b", 6))]
    assert sparsity_numbers({"tensors": tensors}) == {
        "name": ["a", "b"],
        "size": [4, 6],
        "zeros": [3, 3],
        "removed": [2, 2],
        "sparsity": [0.5, 0.5],
    }
