"""The command line in a fresh process."""

from __future__ import annotations

import subprocess
import sys


def call(*arguments, cwd=None, check=True, env=None):
    return subprocess.run(
        [sys.executable, "-m", "openood_adascale", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=check,
        env=env,
    )
