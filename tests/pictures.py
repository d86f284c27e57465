"""Small image files, networks in files of their own, and the command line in this process."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess

import numpy as np
from PIL import Image

from openood_adascale.cli import main

NETWORK = """
import torch
from torch import nn
from torchvision import transforms

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.fc = nn.Linear(64, 3)

    def forward(self, images):
        return self.fc(self.features(images))

class Colours(nn.Module):  # right on every red, green and blue image
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 16, 3, 2, 1), nn.Linear(19, 3)
        with torch.no_grad():
            self.fc.weight.mul_(0.1)
            self.fc.weight[:, :3] += 20 * torch.eye(3)

    def forward(self, images):
        return self.fc(torch.cat([images.mean((2, 3)).flip(1), self.conv(images).relu().mean((2, 3))], 1))

transform = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(32), transforms.ToTensor()])

def network():
    torch.manual_seed(0)
    return Net(), transform

def colours():
    torch.manual_seed(0)
    return Colours(), transform

def single_logit():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 1)), transform

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), transform

def grey():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)), transform

def no_head():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 3), nn.Softmax(1)), transform

def unsized():
    return network()[0], transforms.ToTensor()

def failing():
    raise OSError("no weights here")
"""
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def picture(path, shade=100, size=(8, 8), colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour or (shade, 255 - shade, shade // 2)).save(path)
    return path


def pictures(folder, count, seed, classes=None, size=40):
    rng = np.random.default_rng(seed)
    for number in range(count):
        where = folder / classes[number % len(classes)] if classes else folder
        where.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        pixels[:, :, number % 3] //= 1 + seed
        Image.fromarray(pixels).save(where / f"picture {number:03}.png")
    return folder


def call(*arguments, cwd=None, check=True):
    """Run the command line in this process."""
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
