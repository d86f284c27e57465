"""Tests of the memory allocator settings."""

import os
import platform
import subprocess
import sys

import pytest

from openood_adascale import memory
from openood_adascale.memory import keep_memory


def _python(code, *arguments):
    """Run Python with glibc's defaults."""
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
    }
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=clean, check=True, capture_output=True, text=True
    )


MEASURE = """
import resource, sys, torch
from openood_adascale.memory import keep_memory
if sys.argv[1] == "keep":
    assert keep_memory()
for step in range(40):
    torch.ones((48 + step % 5) * 2**18)  # 48 to 52 MB
usage = resource.getrusage(resource.RUSAGE_SELF)
print(usage.ru_minflt, usage.ru_maxrss)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is about glibc's malloc")
def test_keep_memory_saves_page_faults_and_no_memory_is_lost():
    def measured(word):
        done = _python(MEASURE, word)
        return map(int, done.stdout.split())

    faults, most = measured("do not")
    kept_faults, kept_most = measured("keep")
    assert kept_faults < faults / 2
    assert kept_most < most + 200_000  # kB


GIVEN_BACK = """
import torch
from openood_adascale.memory import give_back, keep_memory
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4
assert keep_memory()
large = [torch.ones(20 * 2**18) for _ in range(10)]  # 200 MB
end = torch.ones(1000)
before = resident()
del large
give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this is about glibc's malloc")
def test_give_back_returns_free_memory():
    done = _python(GIVEN_BACK)
    assert int(done.stdout) > 150_000  # kB


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_allocator_of_the_user_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "something")
    assert keep_memory() is False


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert keep_memory() is False
