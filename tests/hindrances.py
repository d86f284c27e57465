"""What may stand in a process's way; called in it before anything else."""

from __future__ import annotations

import ctypes
import os
import signal

_CAPABILITY_VERSION = 0x20080522
"""Linux's third: two words for each kind of set."""


def small_files(size: int) -> None:
    """No file grows beyond ``size`` bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def without_roots_rights() -> None:
    """Root, too, is held to what files permit."""
    if os.geteuid() == 0:
        of_this_process = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        if ctypes.CDLL(None, use_errno=True).capset(of_this_process, (ctypes.c_uint32 * 6)()):
            raise OSError(ctypes.get_errno(), "capset")
