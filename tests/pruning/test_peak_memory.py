import sys
from pathlib import Path

import pytest
import torch

from prunelit.pruning.peak_memory import PeakMemory


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is the independent source")
def test_peak_is_the_kernels_high_water_mark_in_bytes() -> None:
    status = Path("/proc/self/status").read_text()
    kilobytes = next(line.split()[1] for line in status.splitlines() if "VmHWM" in line)
    assert PeakMemory(torch.device("cpu")).peak() == pytest.approx(int(kilobytes) * 1024, rel=0.02)


def test_peak_of_the_process_never_falls_and_is_said_to_be_the_process() -> None:
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    before = memory.peak()
    memory.start()
    assert memory.peak() >= before > 0
    assert "process" in memory.meaning


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_peak_of_a_device_starts_anew() -> None:
    memory = PeakMemory(torch.device("cuda"))
    big = torch.zeros(1 << 22, device="cuda")
    del big
    memory.start()
    base = memory.peak()
    small = torch.zeros(1 << 20, device="cuda")
    assert 1 << 22 <= memory.peak() - base < 1 << 23
    assert "device" in memory.meaning
    del small
