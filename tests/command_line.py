"""The command line, in a fresh process or in this one."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys

from openood_adascale.cli import main


def call(*arguments, cwd=None, check=True, env=None):
    command = [sys.executable, "-m", "openood_adascale", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if check:
        assert done.returncode == 0, done.stderr
    return done


def call_here(*arguments, cwd=None, check=True):
    """The same in this process, which is much quicker."""
    stdout, stderr = io.StringIO(), io.StringIO()
    before = os.getcwd()
    os.chdir(cwd or before)
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            status = main([str(argument) for argument in arguments])
    except SystemExit as left:  # argparse's
        status = left.code
    finally:
        os.chdir(before)
    done = subprocess.CompletedProcess(arguments, status, stdout.getvalue(), stderr.getvalue())
    if check:
        assert status == 0, done.stderr
    return done
