"""Peak memory: peak of the allocator on CUDA, high-water mark of the process elsewhere."""

import resource
import sys

import torch


class PeakMemory:
    """Measure the peak memory of a device.

    Args:
        device: a CUDA device is measured by its allocator; for any other device, the resident set
            of the process is measured.

    Attributes:
        meaning: description of the measured number, for reports.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self.meaning = (
            "peak of allocated bytes on the device while the block was pruned"
            if self._device
            else "resident high-water mark of the process at the end of the block"
        )

    def start(self) -> None:
        """Reset the peak; a process cannot reset its own."""
        if self._device:
            torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Return the peak in bytes."""
        if self._device:
            # Kernels run asynchronously: wait for those that belong to this measurement.
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
