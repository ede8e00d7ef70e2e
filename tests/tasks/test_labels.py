"""Fixed answers: which items have them, and what a model gets that always gives the same one."""

import pytest
import torch

from prunelit.tasks.labels import Labels
from prunelit.tasks.questions import Example, Question


def questions(*choices: list[str], labels: str) -> list[Question]:
    return [Question(str(n), "Who?", c, int(labels[n])) for n, c in enumerate(choices)]


def examples(*targets: str) -> list[Example]:
    return [Example("Who?", target, target) for target in targets]


@pytest.mark.parametrize(
    ("asked", "texts", "chance"),
    [
        # Yes or no in any order, the same of three in any row.
        (questions(["no", "yes"], ["no", "yes"], labels="01"), ["no", "yes"], 1 / 2),
        (questions(["no", "yes"], ["yes", "no"], labels="01"), ["no", "yes"], 1),
        (questions(*[["a", "b", "c"]] * 4, labels="0010"), ["a", "b", "c"], 3 / 4),
        (questions(*[["b", "a", "b"]] * 3, labels="012"), ["a", "b"], 2 / 3),
        # One alone says nothing of the others.
        (questions(["Rome", "Oslo"], labels="0"), [], 0),
        (questions(["Rome", "Oslo"], ["four", "five"], labels="00"), [], 0),
        # Few targets, in any spelling; open answers; a single target.
        (examples(*["good"] * 6, *["Bad", "bad "] * 2), ["Bad", "good"], 0.6),
        (examples("1", "0", *["1"] * 8), ["0", "1"], 0.9),
        (examples(*"abcdefghij"), [], 0),
        (examples("18", "3", "18", "70", "5", "3", "9", "64", "20", "18"), [], 0),
        (examples(*["me"] * 10), [], 0),
        (examples("me", "you"), [], 0),
        ([], [], 0),
    ],
)
def test_the_most_frequent_answer_is_the_floor(
    asked: list, texts: list[str], chance: float
) -> None:
    labels = Labels(asked)
    assert labels.texts == texts
    assert bool(labels) == bool(texts)
    scores = labels.constant_scores()
    assert scores.shape == (len(asked),)
    assert scores.sum() == pytest.approx(chance * len(asked))


def test_balanced_scores_have_the_chance_of_a_constant_answer() -> None:
    labels = Labels(questions(*[["a", "b", "c"]] * 12, labels="0" * 8 + "1" * 4))
    right = torch.tensor([1.0] * 4 + [0.0] * 4 + [1.0] * 4, dtype=torch.float64)
    values = {"pruned/acc": right, **{f"pruned/chosen/{c}": 1 - right for c in "abc"}}
    (balanced, *_) = labels.results("t", "acc", values, {"chance": 8 / 12})
    assert balanced.value == pytest.approx((4 / 8 + 4 / 4) / 2)
    assert balanced.details["chance"] == 1 / 2
    assert labels.weights().tolist() == pytest.approx([12 / (2 * 8)] * 8 + [12 / (2 * 4)] * 4)


def test_an_answer_that_is_never_right_is_counted_too() -> None:
    labels = Labels(questions(*[["a", "b", "c"]] * 12, labels="0" * 8 + "1" * 4))
    right = torch.zeros(12, dtype=torch.float64)
    values = {"pruned/acc": right, **{f"pruned/chosen/{c}": right for c in "ab"}}
    values["pruned/chosen/c"] = right + 1
    with pytest.warns(UserWarning, match="The pruned model chooses 'c' for each of the 12 items"):
        rows = labels.results("t", "acc", values, {"seed": 0})
    assert [(row.metric, row.value, row.n) for row in rows] == [
        ("balanced_acc", 0, 12),
        ("chosen/a", 0, 12),
        ("acc/a", 0, 8),
        ("chosen/b", 0, 12),
        ("acc/b", 0, 4),
        ("chosen/c", 1, 12),
    ]
    assert [row.details.get("class") for row in rows] == [None, "a", "a", "b", "b", "c"]
    assert all(row.details["score"] == "acc" and row.details["seed"] == 0 for row in rows)


def test_open_answers_have_no_results_of_their_own() -> None:
    assert Labels(examples("a", "b")).results("t", "acc", {}, {}) == []
