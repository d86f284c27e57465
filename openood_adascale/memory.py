"""Memory allocator settings for large tensors on a CPU.

Under glibc blocks above 32 MB come from mmap and return to the kernel when they are freed, so the output of every large
layer is paged in and zeroed again in every pass.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_FROM = 256 << 20
_TRIM_FROM = 2**31 - 1
_CHOSEN_BY = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_memory() -> bool:
    """Tell glibc to keep freed blocks of up to 256 MiB for the rest of this process, and return True if it does.

    The process then keeps its peak memory; :func:`give_back` releases its free part. Does nothing on other C libraries, or
    if the environment configures the allocator (``MALLOC_…_``, ``GLIBC_TUNABLES``) or replaces it (``LD_PRELOAD``).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    if any(value and name.startswith(_CHOSEN_BY) for name, value in os.environ.items()):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _MMAP_FROM)) and bool(mallopt(_M_TRIM_THRESHOLD, _TRIM_FROM))


def give_back() -> None:
    """Return free memory to the kernel (glibc only), for example after a method that needs much memory."""
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
