"""Memory that is free inside the process and that the C library keeps.

Internal: nothing here is public.
"""

import ctypes
import sys


def return_memory() -> None:
    """Give free memory back to the system, where the C library is glibc.

    Tensors of up to 32 MiB lie in one heap. It does not shrink as long as anything near its end is
    in use, so that each model of a sweep would add to it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
