"""What may stand in a process's way; called in it before anything else."""

from __future__ import annotations

import ctypes
import os
import signal

_CAPABILITY_VERSION = 0x20080522
"""Linux's third: two words for each kind of set."""
_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE = 24, 1


def small_files(size: int) -> None:
    """No file grows beyond ``size`` bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def without_roots_rights() -> None:
    """Root, too, is held to what files permit, in this program and the next."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        of_this_process = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
        # Of the next program; a container's root may have nothing to drop.
        libc.prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)
        if libc.capset(of_this_process, (ctypes.c_uint32 * 6)()):
            raise OSError(ctypes.get_errno(), "root keeps its rights")
