"""Peak memory, said exactly: allocator peak on CUDA, the process's high-water mark elsewhere."""

import resource
import sys

import torch


class PeakMemory:
    """Reads the peak of the device that `device` names.

    Args:
        device: CUDA devices are measured by their allocator; for every other device the resident
            set of this process is what there is.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self.meaning = (
            "most bytes allocated on the device while the block was worked on"
            if self._device
            else "resident high-water mark of the process by the end of the block"
        )

    def start(self) -> None:
        """Forget earlier peaks, where the device can."""
        if self._device:
            torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Bytes."""
        if self._device:
            # Kernels run behind: what was launched so far belongs to this measurement.
            torch.cuda.synchronize(self._device)
            return torch.cuda.max_memory_allocated(self._device)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
