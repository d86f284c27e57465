"""What the tests of a group have its processes do: ``python team_scenarios.py NAME``."""

from __future__ import annotations

import json
import os
import signal
import sys
import time

import torch

from openood_adascale.distributed.servant import Servant
from openood_adascale.distributed.start import launched_team
from openood_adascale.distributed.work import Work
from openood_adascale.errors import CannotBeSent, NotFinite, ProcessLost

RANK = int(os.environ["RANK"])


class Numbered(Work):
    """Piece n gives n, the base, who did it, and how its torch reckons."""

    def __init__(self, base=100, key="base", fails_at=None, pause=0.0, error=None):
        self.base, self.key, self.fails_at, self.pause = base, key, fails_at, pause
        self.error = error or ValueError("no")

    def __getstate__(self):
        return {**vars(self), "base": None}

    def parts(self):
        return {"base": (self.key, self.base)}

    def results(self, numbers, parts, share):
        for number in numbers:
            if number == self.fails_at:
                raise Unportable(1, 2) if self.error == "unportable" else self.error
            time.sleep(self.pause)
            yield number, parts["base"], int(os.environ["RANK"]), torch.get_float32_matmul_precision()


class Dying(Numbered):
    """Process 1 does to itself what it is told before its third piece."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def results(self, numbers, parts, share):
        for place, result in enumerate(super().results(numbers, parts, share)):
            if place == 2 and os.environ["RANK"] == "1":
                if self.how == "sleep":
                    time.sleep(3600)
                os.kill(os.getpid(), getattr(signal, self.how))
            yield result


class Unportable(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


class Touchy:
    """Something that can be sent, but not be made anew."""

    def __reduce__(self):
        return _only_in_process_0, ()


def _only_in_process_0():
    if RANK:
        raise ImportError("there is no such thing here")
    return Touchy()


def caught(call):
    begun = time.monotonic()
    try:
        call()
    except Exception as error:
        return {"type": type(error).__name__, "text": str(error), "seconds": time.monotonic() - begun}
    return None


def everything(team):
    told = {}
    results = list(team.do(me.Numbered(), 20))
    told["in order"] = [number for number, *_ in results] == list(range(20))
    told["who"] = [who for _, _, who, _ in results] == [number % team.size for number in range(20)]
    told["fewer than processes"] = [n for n, *_ in team.do(me.Numbered(), team.size - 1)]
    told["none"] = list(team.do(me.Numbered(), 0))
    # An error stands in its place, whoever met it.
    for who in range(team.size):
        seen = []

        def until_it_fails(seen=seen, who=who):
            for number, *_ in team.do(me.Numbered(fails_at=9 + who), 40):
                seen.append(number)

        error = caught(until_it_fails)
        told[f"error of {(9 + who) % team.size}"] = [
            seen == list(range(9 + who)),
            error["type"],
            error["text"],
        ]
    told["not finite"] = caught(
        lambda: list(team.do(me.Numbered(fails_at=1, error=NotFinite("images", [3], ["a.png"])), 9))
    )
    told["unportable"] = caught(lambda: list(team.do(me.Numbered(fails_at=1, error="unportable"), 9)))
    # Whoever asks may stop asking.
    for number, *_ in team.do(me.Numbered(pause=0.01), 200):
        if number == 5:
            break
    told["busy within"] = team.busy
    told["after that"] = len(list(team.do(me.Numbered(), 7)))
    # What has the same key is sent once.
    told["same key"] = sorted({base for _, base, who, _ in team.do(me.Numbered(base=5), 9) if who})
    told["new key"] = sorted({base for _, base, *_ in team.do(me.Numbered(base=5, key="new"), 9)})
    told["lambda"] = caught(lambda: list(team.do(me.Numbered(base=lambda: 0, key="lambda"), 9)))
    told["touchy"] = caught(lambda: list(team.do(me.Numbered(base=me.Touchy(), key="touchy"), 9)))
    told["touchy again"] = caught(lambda: list(team.do(me.Numbered(base=me.Touchy(), key="touchy"), 9)))
    torch.set_float32_matmul_precision("medium")
    told["arithmetic"] = sorted({precision for *_, precision in team.do(me.Numbered(), 9)})
    return told


def dying(team, how):
    seen = []

    def work():
        for number, *_ in team.do(me.Dying(how), 60):
            seen.append(number)

    told = caught(work)
    return {**told, "again": caught(lambda: list(team.do(me.Numbered(), 5)))}


def main():
    scenario, *rest = sys.argv[1:]
    if scenario == "versions":
        from openood_adascale.distributed import start

        start.versions = lambda: {"torch": "1.0" if RANK == 2 else "2.0"}
    with launched_team("cpu") as team:
        if isinstance(team, Servant):
            if scenario == "gone" and RANK == 0:
                return
            team.serve()
            return
        with team.directing():
            if scenario == "gone":
                list(team.do(me.Numbered(), 9))
                os._exit(3)
            print(json.dumps(everything(team) if scenario == "everything" else dying(team, *rest)))
            assert scenario == "everything" or rest
    if scenario != "everything":
        raise ProcessLost(CannotBeSent.__name__)


if __name__ == "__main__":
    import team_scenarios as me

    main()
