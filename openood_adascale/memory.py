"""Memory of large tensors on a CPU, kept by the process rather than given back and zeroed again.

Under glibc a block of more than 32 MB at most comes from mmap and goes back to the kernel when it is freed, so that the
output of every large layer is paged in and zeroed anew, in every pass.
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
    """Have glibc keep blocks of up to 256 MiB that are freed, for the rest of this process; whether it does.

    The process then holds on to the most that it needed at once, and to the gaps between; :func:`give_back` lets go of
    what is free. Does nothing where the C library is not glibc, or where the environment says how memory is to be handled
    (``MALLOC_…_``, ``GLIBC_TUNABLES``) or by what (``LD_PRELOAD``).
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
    """Have glibc give the kernel back what is free: after a method that needed more than the next. Elsewhere nothing."""
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
