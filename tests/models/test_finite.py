"""The check of a tensor for NaN and infinity."""

import pytest
import torch

from prunelit.models.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_bad_entry_is_found(dtype: torch.dtype, bad: float) -> None:
    values = torch.randn(37, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert all_finite(values)
    assert all_finite(values.T)
    for place in ((0, 0), (20, 3), (36, 4)):
        broken = values.clone()
        broken[place] = bad
        assert not all_finite(broken)


def test_the_largest_numbers_and_none_at_all_are_finite() -> None:
    assert all_finite(torch.full((4,), torch.finfo(torch.float32).max))
    assert all_finite(torch.zeros(0, 3))
