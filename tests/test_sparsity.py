from fractions import Fraction

import numpy as np
import pytest
import torch

from prunelit.errors import InputError
from prunelit.sparsity import SemiStructured, Unstructured, keep_highest

RATIOS = ["0.0", "0.1", "0.29", "0.3", "0.5", "0.57", "0.58", "0.7", "0.9", "0.999"]


def oracle(scores: np.ndarray, keep: int, group: int) -> np.ndarray:
    """Remove the lowest one by one, the leftmost of equals, in every group of a row."""
    mask = np.ones(scores.shape, dtype=bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], group):
            for _ in range(group - keep):
                left = [c for c in range(start, start + group) if mask[row, c]]
                mask[row, min(left, key=lambda c: (scores[row, c], c))] = False
    return mask


def make_scores(rows: int, columns: int, *, tied: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    scores = torch.rand(rows, columns, generator=generator)
    if tied:
        scores = (scores * 4).floor()
        scores[0] = 1.0
    return scores


def removed_count(ratio: str, columns: int) -> int:
    return int(Fraction(ratio) * columns)  # exact decimal arithmetic, rounded down


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("columns", [1, 7, 10, 32, 100, 576])
def test_unstructured_removes_exactly_the_floor_of_every_row(ratio: str, columns: int) -> None:
    scores = make_scores(3, columns, tied=True)
    mask = Unstructured(float(ratio)).keep_mask(scores)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    assert (~mask).sum(1).tolist() == [removed_count(ratio, columns)] * 3


def test_decimal_ratio_means_its_decimal_value() -> None:
    assert 0.29 * 100 < 29
    assert int((~Unstructured(0.29).keep_mask(torch.rand(1, 100))).sum()) == 29


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("columns", [8, 33])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_unstructured_removes_the_lowest(ratio: float, columns: int, tied: bool) -> None:
    scores = make_scores(4, columns, tied=tied)
    expected = oracle(scores.numpy(), columns - removed_count(str(ratio), columns), columns)
    np.testing.assert_array_equal(Unstructured(ratio).keep_mask(scores).numpy(), expected)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(("keep", "group"), [(2, 4), (4, 8), (1, 4), (3, 4), (4, 4), (1, 1)])
def test_semi_structured_keeps_the_highest_of_every_group(
    keep: int, group: int, tied: bool
) -> None:
    scores = make_scores(5, 24, tied=tied)
    mask = SemiStructured(keep, group).keep_mask(scores)
    np.testing.assert_array_equal(mask.numpy(), oracle(scores.numpy(), keep, group))
    assert (mask.view(5, -1, group).sum(-1) == keep).all()


def test_two_of_four_is_two_kept() -> None:
    mask = SemiStructured(keep=1, group=4).keep_mask(torch.tensor([[1.0, 4.0, 3.0, 2.0]]))
    assert mask.tolist() == [[False, True, False, False]]


def test_constant_row_loses_its_first_columns() -> None:
    mask = Unstructured(0.5).keep_mask(torch.ones(2, 6))
    assert mask.tolist() == [[False] * 3 + [True] * 3] * 2


def test_view_with_swapped_strides_is_read_in_its_own_order() -> None:
    scores = make_scores(16, 12, tied=False)
    for sparsity in (Unstructured(0.5), SemiStructured(2, 4)):
        expected = sparsity.keep_mask(scores.T.contiguous())
        assert torch.equal(sparsity.keep_mask(scores.T), expected)


def test_infinite_scores_stay() -> None:
    mask = keep_highest(torch.tensor([[torch.inf, 1.0, -torch.inf]]), 1)
    assert mask.tolist() == [[True, False, False]]


@pytest.mark.parametrize("keep", [0, 5])
def test_keep_none_or_all(keep: int) -> None:
    assert (keep_highest(torch.rand(2, 5), keep) == bool(keep)).all()


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(InputError, match=rf"Expected `ratio` in \[0, 1\) but got {ratio}"):
        Unstructured(ratio)


@pytest.mark.parametrize(("keep", "group"), [(0, 4), (5, 4), (-1, 4)])
def test_keep_out_of_range(keep: int, group: int) -> None:
    with pytest.raises(InputError, match=f"1 <= `keep` <= `group` but got {keep} of {group}"):
        SemiStructured(keep, group)


def test_inputs_must_be_divisible_by_the_group() -> None:
    with pytest.raises(InputError, match=r"inputs of mlp\.up .* `group` 4 but got 10"):
        SemiStructured(2, 4).check((3, 10), "mlp.up")
    with pytest.raises(InputError, match="`group` 4 but got 10"):
        SemiStructured(2, 4).keep_mask(torch.rand(3, 10))
    SemiStructured(2, 4).check((3, 12), "mlp.up")
    Unstructured(0.5).check((3, 7), "mlp.up")
