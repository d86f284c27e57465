"""What may stand in a process's way; called in it before anything else."""

from __future__ import annotations

import signal


def small_files(size: int) -> None:
    """No file grows beyond ``size`` bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
