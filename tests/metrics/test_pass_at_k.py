from itertools import combinations

import pytest

from prunelit import InputError
from prunelit.metrics.pass_at_k import estimate_pass_at_k


@pytest.mark.parametrize("samples", range(1, 7))
def test_it_is_the_share_of_sets_with_a_right_sample(samples: int) -> None:
    for right in range(samples + 1):
        outcomes = [True] * right + [False] * (samples - right)
        for k in range(1, samples + 1):
            sets = list(combinations(outcomes, k))
            share = sum(any(chosen) for chosen in sets) / len(sets)
            assert estimate_pass_at_k(samples, right, k) == pytest.approx(share, abs=1e-15)


def test_one_sample_passes_as_often_as_samples_are_right() -> None:
    assert estimate_pass_at_k(200, 37, 1) == 37 / 200


def test_many_samples_do_not_overflow() -> None:
    assert estimate_pass_at_k(1000, 1, 500) == 0.5


@pytest.mark.parametrize("k", [0, 4])
def test_more_or_less_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(InputError, match=rf"Expected `k` in \[1, 3\].* but got {k}"):
        estimate_pass_at_k(3, 1, k)


@pytest.mark.parametrize("right", [-1, 4])
def test_a_count_outside_the_samples_is_refused(right: int) -> None:
    with pytest.raises(InputError, match=rf"`right` in \[0, 3\] but got {right}"):
        estimate_pass_at_k(3, right, 1)
