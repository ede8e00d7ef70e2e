"""Check a tensor for NaN and infinity."""

from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Return True if no entry is NaN or infinite. It reads the tensor once, without a copy.

    Args:
        values: any shape, floating point.
    """
    if values.numel() == 0:
        return True
    lowest, highest = values.aminmax()  # both NaN if any entry is
    return bool(lowest.isfinite() & highest.isfinite())
