import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from prunelit.errors import InputError
from prunelit.sparsity import SemiStructured, Unstructured, keep_highest, row_counts

RATIOS = ["0.0", "0.1", "0.29", "0.3", "0.5", "0.57", "0.58", "0.7", "0.9", "0.999"]


def oracle(scores: np.ndarray, keep: int, group: int) -> np.ndarray:
    """Remove the lowest one by one, the leftmost of equals, in every group of a row."""
    mask = np.ones(scores.shape, dtype=bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], group):
            drop_lowest(scores[row, start : start + group], mask[row, start : start + group], keep)
    return mask


def drop_lowest(scores: np.ndarray, mask: np.ndarray, keep: int) -> None:
    while mask.sum() > keep:
        mask[min(np.flatnonzero(mask), key=lambda c: (scores[c], c))] = False


def make_scores(rows: int, columns: int, *, tied: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    scores = torch.rand(rows, columns, generator=generator)
    if tied:
        scores = (scores * 4).floor()
        scores[0] = 1.0
    return scores


def removed_count(ratio: str, size: int) -> int:
    exact = Fraction(ratio) * size  # decimal arithmetic; halves are rounded down
    return math.ceil(exact - Fraction(1, 2))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("columns", [1, 7, 10, 32, 100, 576])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_unstructured_removes_exactly_the_asked_number(ratio: str, rows: int, columns: int) -> None:
    scores = make_scores(rows, columns, tied=True)
    count = removed_count(ratio, rows * columns)
    mask = Unstructured(float(ratio)).keep_mask(scores)
    assert mask.dtype == torch.bool
    assert mask.shape == scores.shape
    by_row = (~mask).sum(1)
    assert int(by_row.sum()) == count
    assert by_row.max() - by_row.min() <= 1
    whole = Unstructured(float(ratio), within="matrix").keep_mask(scores)
    assert int((~whole).sum()) == count


def test_rows_that_lose_one_more_are_spread() -> None:
    # 10 of 4 * 8 weights: two rows lose three, and they are not neighbours.
    mask = Unstructured(10 / 32).keep_mask(make_scores(4, 8, tied=False))
    assert (~mask).sum(1).tolist() == [3, 2, 3, 2]


def test_rows_that_lose_one_more_do_so_of_every_larger_number() -> None:
    for rows in (1, 2, 6, 13):
        before = row_counts(0, rows)
        for remove in range(1, 3 * rows + 1):
            counts = row_counts(remove, rows)
            assert counts.sum() == remove
            assert counts.max() - counts.min() <= 1
            assert (counts >= before).all()
            before = counts


def test_decimal_ratio_means_its_decimal_value() -> None:
    assert 0.29 * 100 < 29
    assert int((~Unstructured(0.29).keep_mask(torch.rand(1, 100))).sum()) == 29


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("columns", [8, 33])
@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_unstructured_removes_the_lowest(ratio: float, columns: int, tied: bool) -> None:
    scores = make_scores(4, columns, tied=tied)
    count = removed_count(str(ratio), 4 * columns)
    found = Unstructured(ratio).keep_mask(scores).numpy()
    for row, values in enumerate(scores.numpy()):
        expected = np.ones(columns, dtype=bool)
        drop_lowest(values, expected, int(found[row].sum()))
        np.testing.assert_array_equal(found[row], expected)
    expected = np.ones(4 * columns, dtype=bool)
    drop_lowest(scores.numpy().ravel(), expected, 4 * columns - count)
    whole = Unstructured(ratio, within="matrix").keep_mask(scores)
    np.testing.assert_array_equal(whole.numpy().ravel(), expected)


def test_a_smaller_part_for_an_earlier_round() -> None:
    assert Unstructured(0.6, within="matrix").scale(0.5).ratio == pytest.approx(0.3)
    assert Unstructured(0.6, within="matrix").scale(0.5).within == "matrix"
    parts = [SemiStructured(2, 8).scale(part) for part in (0.1, 0.5, 0.99, 1.0)]
    assert [(part.keep, part.group) for part in parts] == [(8, 8), (5, 8), (3, 8), (2, 8)]


def test_what_is_left_open_is_the_methods_choice() -> None:
    assert Unstructured(0.5).with_default("matrix").within == "matrix"
    assert Unstructured(0.5, within="row").with_default("matrix").within == "row"
    with pytest.raises(InputError, match="`within` row, matrix or model but got 'column'"):
        Unstructured(0.5, within="column")  # type: ignore[arg-type]


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


@pytest.mark.parametrize("ties", [1, 100])
def test_every_float_type_is_chosen_from_alike(ties: int) -> None:
    scores = torch.randint(-2 * ties, 2 * ties, (6, 50), generator=torch.Generator().manual_seed(0))
    masks = [
        keep_highest(scores.to(dtype), 19)
        for dtype in (torch.float32, torch.float64, torch.float16)
    ]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])
    assert masks[0].sum(1).tolist() == [19] * 6


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
