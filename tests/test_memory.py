"""Large blocks of memory are kept: fewer page faults, and no more memory than was needed at once."""

import os
import platform

import pytest
import quick_process

from openood_adascale import memory
from openood_adascale.memory import keep_memory

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
def test_faults_and_memory():
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
    }

    def measured(word):
        done = quick_process.run(["-c", MEASURE, word], env=clean, check=True)
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
def test_what_is_free_can_be_given_back():
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD"))
    }
    done = quick_process.run(["-c", GIVEN_BACK], env=clean, check=True)
    assert int(done.stdout) > 150_000  # kB


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"])
def test_what_the_user_chose_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "something")
    assert keep_memory() is False


def test_elsewhere_it_does_nothing(monkeypatch):
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("", ""))
    assert keep_memory() is False


def test_a_library_without_mallopt(monkeypatch):
    class Without:
        def __init__(self, name):
            pass

    for name in ("MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory.ctypes, "CDLL", Without)
    assert keep_memory() is False
