import pytest

from prunelit.metrics.repetition import (
    ROLLOUT_MEASURES,
    distinct,
    repetition_rate,
    rollout_measures,
)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], 0),
        ([1, 1, 1], 0),
        ([1, 2, 3, 4], 0),
        ([1, 1, 1, 1, 1], 1 / 2),
        ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),
        ([1, 2, 3, 4, 5, 6, 7], 0),
    ],
)
def test_repetition_is_the_share_of_4_grams_seen_before(tokens: list[int], expected: float) -> None:
    assert repetition_rate(tokens) == pytest.approx(expected)


def test_repetition_of_other_lengths() -> None:
    assert repetition_rate([1, 2, 1, 2, 1], n=2) == pytest.approx(1 - 2 / 4)


@pytest.mark.parametrize(
    ("tokens", "n", "expected"),
    [
        ([7, 7, 8, 7], 1, 2 / 4),
        ([7, 7, 8, 7], 2, 1),
        ([7, 8, 7, 8, 7], 2, 2 / 4),
        ([7], 2, 1),
        ([], 1, 1),
    ],
)
def test_distinct_is_the_share_of_different_grams(
    tokens: list[int], n: int, expected: float
) -> None:
    assert distinct(tokens, n) == pytest.approx(expected)


def test_measures_of_a_rollout() -> None:
    found = rollout_measures([7, 7, 8, 7], True)
    assert tuple(found) == ROLLOUT_MEASURES
    assert list(found.values()) == pytest.approx([0, 0.5, 1, 1, 4])
