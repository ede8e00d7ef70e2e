import pytest

from prunelit.errors import InputError
from prunelit.schedule import Cubic, Linear, OneShot, Schedule


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (OneShot(), [1.0]),
        (Linear(4), [0.25, 0.5, 0.75, 1.0]),
        (Cubic(4), [1 - 27 / 64, 1 - 8 / 64, 1 - 1 / 64, 1.0]),
        (Cubic(1), [1.0]),
    ],
)
def test_fractions(schedule: Schedule, expected: list[float]) -> None:
    found = [schedule.fraction(index) for index in range(schedule.rounds)]
    assert found == pytest.approx(expected, abs=1e-15)
    assert found[-1] == 1.0
    assert found == sorted(found)


def test_rounds_are_due_by_epoch() -> None:
    schedule = Linear(3, every_n_epochs=2)
    assert [schedule.due(epoch, 999) for epoch in range(7)] == [1, 1, 2, 2, 3, 3, 3]


def test_rounds_are_due_by_step_whatever_the_epoch() -> None:
    schedule = Linear(3, every_n_steps=5)
    assert [schedule.due(7, step) for step in (0, 4, 5, 9, 10, 100)] == [1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("name", ["rounds", "every_n_epochs", "every_n_steps"])
def test_counts_below_one(name: str) -> None:
    with pytest.raises(InputError, match=f"Expected `{name}` of at least 1 but got 0"):
        Cubic(**{name: 0})
