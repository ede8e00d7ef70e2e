import pytest
import torch

from prunelit.metrics.spaces.buffers import Buffers, rows_per_chunk


def test_the_same_memory_is_handed_out_again() -> None:
    buffers = Buffers()
    first = buffers.get("product", torch.zeros(4, 6))
    again = buffers.get("product", torch.zeros(4, 6))
    fewer = buffers.get("product", torch.zeros(2, 6))
    assert first.shape == again.shape == (4, 6)
    assert fewer.shape == (2, 6)
    assert first.data_ptr() == again.data_ptr() == fewer.data_ptr()


def test_a_buffer_may_have_a_wider_type() -> None:
    found = Buffers().get("dense", torch.zeros(4, 6), torch.float64)
    assert (found.shape, found.dtype) == ((4, 6), torch.float64)


def test_names_do_not_share_memory() -> None:
    buffers = Buffers()
    first = buffers.get("a", torch.zeros(4, 6)).fill_(1)
    buffers.get("b", torch.zeros(4, 6)).fill_(2)
    assert (first == 1).all()


@pytest.mark.parametrize(
    "like", [torch.zeros(5, 6), torch.zeros(4, 6, dtype=torch.float64), torch.zeros(1, 2, 30)]
)
def test_a_larger_tensor_is_allocated_again(like: torch.Tensor) -> None:
    buffers = Buffers()
    buffers.get("product", torch.zeros(4, 6))
    found = buffers.get("product", like)
    assert found.shape == like.shape
    assert found.dtype == like.dtype


@pytest.mark.parametrize(("size", "rows"), [(49_152, 10), (2**19, 1), (2**25, 1), (0, 2**19)])
def test_chunks_are_bounded_and_never_empty(size: int, rows: int) -> None:
    assert rows_per_chunk(torch.empty(0, size)) == rows
