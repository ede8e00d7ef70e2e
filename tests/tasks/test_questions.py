"""Questions, examples, and the chance of guessing their answers."""

import pytest

from prunelit.tasks.questions import Example, Question, guess_chance


@pytest.mark.parametrize(
    ("choices", "chance"),
    [
        # Yes or no in any order, the same of three in any row, open, and none to choose from.
        ([["no", "yes"], ["no", "yes"]], 1 / 2),
        ([["a", "b", "c"], ["a", "b", "c"]], 1 / 3),
        ([["no", "yes"], ["yes", "no"]], 1 / 2),
        # One alone says nothing of the others.
        ([["Rome", "Oslo", "Bern", "Nice"]], 0),
        ([["Rome", "Oslo"], ["four", "five"]], 0),
        ([[], []], 0),
    ],
)
def test_the_chance_of_a_guess(choices: list[list[str]], chance: float) -> None:
    examples = [
        Question(str(n), "Who?", own, 0) if own else Example("Who?", "me", "me")
        for n, own in enumerate(choices)
    ]
    assert guess_chance(examples) == chance
