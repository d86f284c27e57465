"""``torchrun --max-restarts``: a process is killed, all are started again, and go on from what is stored."""

from __future__ import annotations

import os

import numpy as np
import quick_process
from command_line import call
from PIL import Image
from processes import ROOT, free_port

# What torchrun does, but for the processes of the group, which it starts anew and here are forked from it, where
# libraries bear that.
TORCHRUN = """
import sys
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, parse_args

def work(*arguments):
    from openood_adascale.cli import main
    if status := main(list(arguments)):
        sys.exit(status)

told = parse_args(sys.argv[1:])
elastic_launch(config_from_args(told)[0], work)(*told.training_script_args)
"""

NETWORK = """
import os, pathlib, signal, sys, threading, time
import torch
from torch import nn
from torchvision import transforms

HERE = pathlib.Path(__file__).parent

def die_once_something_is_stored():
    while not list(HERE.glob("store/**/*.safetensors")):
        time.sleep(0.001)
    (HERE / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)

if os.environ.get("RANK") == "1" and os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0":
    threading.Thread(target=die_once_something_is_stored, daemon=True).start()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(64, 3)

    def forward(self, images):
        return self.fc(self.features(images))

def network():
    torch.manual_seed(0)
    return Net(), transforms.Compose([transforms.Resize(32), transforms.ToTensor()])
"""
SETS = ("id", "val", "oodval", "near", "far")


def asked(folder, out):
    return [
        "evaluate", "--network", folder / "net.py:network", "--id", folder / "id", "--val", folder / "val",
        "--ood-val", folder / "oodval", "--near", f"n={folder / 'near'}", "--far", f"f={folder / 'far'}",
        "--methods", "msp,adascale", "--batch-size", "4", "--workers", "0", "--quiet",
        "--store", folder / f"store of {out}", "--out", folder / out,
    ]  # fmt: skip


def tables(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.csv")}


def test_a_killed_process(tmp_path):
    (tmp_path / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    for number, name in enumerate(SETS):
        (tmp_path / name).mkdir()
        for place in range(24):
            pixels = rng.integers(0, 255 - 20 * number, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{place:02}.png")
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    call(*asked(tmp_path, "right"), env=alone)

    (tmp_path / "store of restarted").symlink_to(tmp_path / "store")
    (tmp_path / "store").mkdir()
    options = ["--nproc-per-node", 2, "--max-restarts", 2, "--master-port", free_port()]
    if quick_process.server():
        torchrun = ["-c", TORCHRUN, *options, "--start-method", "fork", "openood_adascale"]
    else:
        torchrun = ["-m", "torch.distributed.run", *options, "-m", "openood_adascale"]
    done = quick_process.run(
        [*torchrun, *asked(tmp_path, "restarted")],
        cwd=ROOT, env={**alone, "OPENOOD_ADASCALE_TIMEOUT": "30"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed").exists()
    assert tables(tmp_path / "restarted") == tables(tmp_path / "right")
