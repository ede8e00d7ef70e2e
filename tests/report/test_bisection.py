"""Bisection, against every pattern of settings that keep and that do not."""

import itertools
import math

import pytest

from prunelit.report.bisection import find_bracket, find_uneven, next_setting

Pattern = tuple[bool, ...]


def search(*patterns: Pattern, known: tuple[int, ...] = ()) -> list[dict[float, bool]]:
    """Search the grid 1, 2, ... for uses with these patterns, from settings that are known."""
    grid = [float(place + 1) for place in range(len(patterns[0]))]
    kept = [{grid[place]: pattern[place] for place in known} for pattern in patterns]
    while (setting := next_setting(grid, kept)) is not None:
        assert setting not in kept[0], "measured twice"
        for own, pattern in zip(kept, patterns, strict=True):
            own[setting] = pattern[int(setting) - 1]
    return kept


def obeys(kept: dict[float, bool], settings: int) -> None:
    """Compare with the definition, setting by setting."""
    answers = [s for s in kept if all(kept[other] for other in kept if other <= s)]
    low, high = find_bracket(kept)
    assert low == (max(answers) if answers else None)
    assert high == min((s for s in kept if not kept[s]), default=None)
    # Nothing is left to measure between the two.
    between = (low or 0) + 1
    assert between == (settings + 1 if high is None else high)


@pytest.mark.parametrize("settings", range(1, 11))
def test_every_pattern_of_one_use(settings: int) -> None:
    for pattern in itertools.product((True, False), repeat=settings):
        (kept,) = search(pattern)
        obeys(kept, settings)
        assert len(kept) <= math.ceil(math.log2(settings + 1))


@pytest.mark.parametrize("settings", range(1, 6))
def test_every_pattern_of_two_uses(settings: int) -> None:
    for patterns in itertools.product(itertools.product((True, False), repeat=settings), repeat=2):
        measured = search(*patterns)
        for kept in measured:
            obeys(kept, settings)
        even = all(list(pattern) == sorted(pattern, reverse=True) for pattern in patterns)
        if even:
            assert len(measured[0]) <= 2 * math.ceil(math.log2(settings + 1))


def test_every_pattern_with_every_set_of_known_settings() -> None:
    settings = 5
    for pattern in itertools.product((True, False), repeat=settings):
        for count in range(settings + 1):
            for known in itertools.combinations(range(settings), count):
                (kept,) = search(pattern, known=known)
                obeys(kept, settings)
                assert len(kept) <= count + math.ceil(math.log2(settings + 1))


def test_an_even_fall_is_found_where_it_is() -> None:
    for settings in range(1, 40):
        for fall in range(settings + 1):
            (kept,) = search(tuple(place < fall for place in range(settings)))
            low, high = find_bracket(kept)
            assert low == (fall or None)
            assert high == (fall + 1 if fall < settings else None)
            assert find_uneven(kept) == []


def test_settings_that_keep_above_one_that_does_not() -> None:
    assert find_uneven({0.5: True, 0.3: False, 0.2: True, 0.6: False, 0.7: True}) == [0.5, 0.7]
    assert find_uneven({0.5: True}) == []


def test_no_use_and_no_setting() -> None:
    assert next_setting([0.1], []) is None
    assert find_bracket({}) == (None, None)
