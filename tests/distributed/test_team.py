"""A group of processes: work in order, errors in their place, and processes that are lost."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from processes import finish, run, start

SCENARIOS = Path(__file__).with_name("team_scenarios.py")


@pytest.fixture(scope="module", params=[2, 3])
def told(request):
    return request.param, json.loads(run(request.param, [SCENARIOS, "everything"]))


def test_results_come_in_order(told):
    count, told = told
    assert told["in order"]
    assert told["who"]
    assert told["fewer than processes"] == list(range(count - 1))
    assert told["none"] == []


def test_an_error_stands_in_its_place(told):
    count, told = told
    for who in range(count):
        assert told[f"error of {who}"] == [True, "ValueError", "no"]
    assert told["not finite"]["type"] == "NotFinite"
    assert "a.png" in told["not finite"]["text"]
    assert told["unportable"]["type"] == "RuntimeError"
    assert "process 1 (" in told["unportable"]["text"]
    assert "Unportable: 1 2" in told["unportable"]["text"]


def test_whoever_asks_may_stop(told):
    _, told = told
    assert not told["busy within"]
    assert told["after that"] == 7


def test_what_is_sent(told):
    _, told = told
    assert told["same key"] == [100]
    assert told["new key"] == [5]
    assert told["lambda"]["type"] == "CannotBeSent"
    assert "base: builtins.function cannot be sent" in told["lambda"]["text"]
    for key in ("touchy", "touchy again"):  # what did not arrive is not believed to be there
        assert told[key]["type"] == "CannotBeSent"
        assert "there is no such thing here" in told[key]["text"]
        assert "process 1 (" in told[key]["text"]
    assert told["arithmetic"] == ["medium"]


LOST = {
    "SIGKILL": "cannot be reached|no sign of life",
    "SIGSTOP": "cannot be reached|no sign of life",
    "sleep": "has not finished a batch for 9 seconds",
}


@pytest.fixture(scope="module")
def losing():
    """By how its process 1 gets lost, a group each: at the same time, since each waits for its timeout."""
    groups = {}
    try:
        for how in LOST:
            groups[how] = start(2, [SCENARIOS, "dying", how], OPENOOD_ADASCALE_TIMEOUT="9")
        yield groups
    finally:
        for processes in groups.values():
            for process in processes:
                process.kill()


@pytest.mark.parametrize("how", LOST)
def test_a_lost_process_is_named(losing, how):
    processes = losing[how]
    try:
        stdout, stderr = processes[0].communicate(timeout=120)
    finally:
        processes[1].kill()
    finish(processes[1:])
    told = json.loads(stdout)
    assert told["type"] == "ProcessLost", stderr
    assert told["text"].startswith("process 1 (")
    assert re.search(LOST[how], told["text"])
    assert f"process {processes[1].pid})" in told["text"]
    assert told["seconds"] < 20
    assert told["again"]["type"] == "ProcessLost"  # nothing goes on as if nothing had been
    assert processes[0].returncode != 0


def test_whoever_works_for_a_lost_process_leaves():
    done = run(3, [SCENARIOS, "gone"], check=False, OPENOOD_ADASCALE_TIMEOUT="9")
    assert [status for status, *_ in done] == [3, 70, 70]
    for _, _, stderr in done[1:]:
        assert "process 0 (" in stderr or "store cannot be reached" in stderr
        assert "Traceback" not in stderr


def test_processes_that_differ():
    done = run(3, [SCENARIOS, "versions"], check=False)
    for status, _, stderr in done:
        assert status == 1
        assert "CannotBeSent: process 2 (" in stderr or "CannotBeSent: process 0 (" in stderr
        assert "torch" in stderr
    assert "torch 1.0 and not 2.0" in done[0][2]


def test_a_timeout_that_is_none():
    done = run(2, [SCENARIOS, "everything"], check=False, OPENOOD_ADASCALE_TIMEOUT="soon")
    assert all(status == 1 and "OPENOOD_ADASCALE_TIMEOUT: 'soon'" in stderr for status, _, stderr in done)
