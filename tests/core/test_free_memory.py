"""Freed memory of a heap goes back to the system."""

import ctypes
import sys

import psutil
import pytest
import torch

from prunelit.core.free_memory import return_memory


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="no glibc"
)
def test_what_lies_before_a_used_piece_is_returned() -> None:
    process = psutil.Process()
    pieces = [torch.ones(25_000) for _ in range(2_000)]  # of 100 kB: each lies in the heap
    full = process.memory_info().rss
    del pieces[:-1]
    return_memory()
    assert process.memory_info().rss < full - 150e6
    assert pieces[0].sum() == 25_000
