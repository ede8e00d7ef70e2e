"""Solved examples before a question, of either kind."""

from collections.abc import Callable
from typing import Any

import pytest

from prunelit import InputError
from prunelit.tasks.prompting.few_shot import FewShot
from prunelit.tasks.questions import Example, GroupedQuestion, Question


def question(context: str) -> Question:
    return Question("q", context, ["a", "b"], 0)


def example(context: str) -> Example:
    return Example(context, "a", "so a")


every_kind = pytest.mark.parametrize("make", [question, example])
Make = Callable[[str], Any]


def shown(one: Any) -> tuple[str, ...]:
    return (one.context, *getattr(one, "choices", ()))


def contexts(shots: FewShot, pool: list[Any], asked: Any) -> list[str]:
    (found,) = shots.choose(pool, [asked], shown)
    return [other.context for other in found]


@every_kind
def test_the_first_examples_without_a_seed(make: Make) -> None:
    pool = [make(f"{n}") for n in range(9)]
    assert contexts(FewShot(3), pool, make("snow")) == ["0", "1", "2"]
    assert contexts(FewShot(3), pool, pool[1]) == ["0", "2", "3"]
    assert contexts(FewShot(3), pool, pool[7]) == ["0", "1", "2"]


@every_kind
def test_a_seed_draws_the_same_examples_for_all(make: Make) -> None:
    pool = [make(f"{n}") for n in range(50)]
    first = contexts(FewShot(4, seed=1), pool, make("snow"))
    assert first == contexts(FewShot(4, seed=1), pool, make("rain"))
    assert first != contexts(FewShot(4, seed=2), pool, make("snow"))
    assert len(set(first)) == 4
    # In the place of a question among them comes another.
    other = contexts(FewShot(4, seed=1), pool, make(first[0]))
    assert other[:3] == first[1:]
    assert other[3] not in first


def test_the_question_under_another_id_or_answer_is_not_shown() -> None:
    pool = [Question(f"{n}", f"{n}", ["a", "b"], 0) for n in (0, 1, 1, 2)]
    asked = Question("new", "1", ["a", "b"], 1)
    assert contexts(FewShot(2), pool, asked) == ["0", "2"]
    # Other choices make it another question: in some data sets all contexts are the same.
    assert contexts(FewShot(2), pool, Question("new", "1", ["c", "d"], 1)) == ["0", "1"]
    assert contexts(FewShot(1), [example("0"), example("1")], Example("0", "b", "b")) == ["1"]


def test_examples_are_of_the_question_s_group() -> None:
    pool = [
        GroupedQuestion("q", f"{n}", ["a", "b"], 0, group)
        for group, count in (("x", 3), ("y", 6))
        for n in range(count)
    ]
    asked = GroupedQuestion("new", "?", ["a", "b"], 0, "y")
    (found,) = FewShot(4).choose(pool, [asked], shown)
    assert [(other.group, other.context) for other in found] == [("y", f"{n}") for n in range(4)]
    with pytest.raises(InputError, match="Expected 4 examples of 'x' besides the question 'q'"):
        FewShot(4).choose(pool, [asked, pool[0]], shown)


@every_kind
def test_too_few_examples_are_refused(make: Make) -> None:
    with pytest.raises(InputError, match="Expected `count` of at least 1 but got 0"):
        FewShot(0)
    pool = [make(f"{n}") for n in range(3)]
    # A question is named by its id, or else by its number.
    with pytest.raises(InputError, match=r"besides the question '[q0]' .* 'train' but found 2\."):
        FewShot(3).choose(pool, [pool[0]], shown)


def test_rows_are_the_task_s_own_where_none_are_given() -> None:
    own = FewShot(2, split="dev")
    assert own.source("rows.jsonl", "main") == {
        "path": "rows.jsonl",
        "split": "dev",
        "subset": "main",
    }
    other = FewShot(2, path="other.jsonl", subset="more")
    assert other.source("rows.jsonl", None) == {
        "path": "other.jsonl",
        "split": "train",
        "subset": "more",
    }


def test_details_are_of_what_is_shown() -> None:
    shots = FewShot(1)
    first = shots.details([[example("0")], [example("1")]])
    assert first["few_shot"]["count"] == 1
    assert first == shots.details([[example("0")], [example("1")]])
    assert first != shots.details([[example("0")], [example("2")]])
