"""Whether a tensor holds only numbers."""

from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether no entry is NaN or infinite; reads the tensor once and makes no copy of it.

    Args:
        values: any shape, floating point.
    """
    if values.numel() == 0:
        return True
    lowest, highest = values.aminmax()  # both NaN if any entry is
    return bool(lowest.isfinite() & highest.isfinite())
