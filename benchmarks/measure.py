"""Times, medians side by side, and the table that they go into."""

from __future__ import annotations

import contextlib
import io
import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from tqdm.auto import tqdm

BATCH = 200


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, in turn, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(repeats + 1), leave=False):
        for name, call in calls.items():
            taken = seconds(call, device)
            if number:
                times[name].append(taken)
    return {name: median(values) for name, values in times.items()}


def quiet(call: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call()


def told(taken: float) -> str:
    """Seconds, for people."""
    return f"{taken:.2f} s" if taken >= 0.1 else f"{1e3 * taken:.1f} ms"


class Table:
    """Rows of what was measured against what; printed at once, written at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []

    def add(self, what: str, measured: str, target: str = "", met: bool | None = None) -> None:
        verdict = "" if met is None else ("yes" if met else "**no**")
        self.rows.append((what, measured, target, verdict))
        print(f"  {what}: {measured}" + (f"  [{target}: {verdict}]" if target else ""), flush=True)

    def markdown(self) -> str:
        head = "| what | measured | target | met |\n|---|---|---|---|\n"
        return head + "".join("| " + " | ".join(row) + " |\n" for row in self.rows)


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    has = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = "AMX" if has.get("amx_bf16") else "AVX-512" if has.get("avx512_bf16") else "no"
    return f"{name}, {torch.get_num_threads()} thread(s), {bf16} bfloat16 arithmetic"
