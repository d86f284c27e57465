"""Some of the fuzzer's cases, of which CI runs half a minute; and that it would notice."""

import os
import time

import pytest
import torch
from fuzz.run import KINDS, fuzz, told
from fuzz.watch import require, run_case

from openood_adascale.detectors.adascale import AdaSCALESettings

CASES = {"settings": 300, "scores": 30, "damaged": 30}


def test_all_kinds_are_tried():
    assert CASES.keys() == KINDS.keys()


@pytest.mark.parametrize("kind", CASES)
def test_some_cases(kind):
    tallies = fuzz([kind], seed=0, seconds=None, cases=CASES[kind])
    assert not tallies[kind].findings, told(tallies, 0)
    assert tallies[kind].cases == CASES[kind]


@pytest.mark.parametrize("kind", ["settings", "damaged"])
def test_a_case_can_be_run_again(kind):
    together = fuzz([kind], seed=3, seconds=None, cases=12)[kind].came_to
    alone = [fuzz([kind], seed=3, seconds=None, cases=1, first=number)[kind].came_to for number in range(12)]
    assert sum(alone, start=type(together)()) == together


def anothers(folder):
    return str(torch.zeros(2) + torch.zeros(3))


def bare(folder):
    raise ValueError


def outside(folder):
    (folder.parent / "executed").write_text("")
    return "written"


def started(folder):
    os.system("true")
    return "started"


def wrong(folder):
    require(1 == 2, "one is two")
    return ""


def hangs(folder):
    time.sleep(60)
    return ""


@pytest.mark.parametrize(
    ("case", "finding"),
    [
        (anothers, "RuntimeError surfaces: The size of tensor"), (bare, "without a message"), (wrong, "one is two"),
        (outside, "it wrote outside of its folder"), (started, "os.system"), (hangs, "it takes more than"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(tmp_path, monkeypatch, case, finding):
    monkeypatch.setattr("fuzz.watch.SECONDS", 0.2)
    (tmp_path / "cases").mkdir()
    if case is hangs and not hasattr(__import__("signal"), "setitimer"):
        pytest.skip("no alarms here")
    assert finding in run_case(case, tmp_path / "cases")[1]


def test_what_is_right_is_none(tmp_path):
    assert run_case(lambda folder: str(AdaSCALESettings(k1=0)), tmp_path) == ("SettingError", "")
    assert run_case(lambda folder: "fine", tmp_path) == ("fine", "")


@pytest.mark.parametrize(
    ("what", "broken"),
    [
        ("openood_adascale.equations.leading_count", lambda percent, size: max(1, round(size * percent / 100 + 0.5))),
        ("openood_adascale.equations.scale_logits", lambda logits, factor: logits * factor[:, None]),
        ("openood_adascale.detectors.settings._number", lambda name, value, allowed: float(value)),
    ],
)  # fmt: skip
def test_broken_code_is_found(monkeypatch, what, broken):
    monkeypatch.setattr(what, broken)
    kind = {"equations": "scores", "detectors": "settings"}[what.split(".")[1]]
    number = 0
    while not fuzz([kind], seed=1, seconds=None, cases=10, first=number)[kind].findings:
        number += 10
        assert number < 2000
