"""Work for Ray's workers, in a module that they can import."""

from __future__ import annotations

import os
import signal
import time

import torch
from torch.utils.data import Dataset

from openood_adascale.parallel import SharedObject, current_pool, reader_processes


class OddError(Exception):
    """An exception that pickle cannot rebuild."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def work(objects, piece):
    """Do what the piece says."""
    action, value = piece
    if action == "sleep":
        time.sleep(value)
    if action == "raise":
        raise value
    if action == "raise odd":
        raise OddError("one", "two")
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "kill once" and not os.path.exists(value):
        open(value, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "stop once" and not os.path.exists(value):
        open(value, "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    if action == "inside":
        return current_pool().workers, torch.get_num_threads(), reader_processes(4), os.getpid()
    return value + objects["offset"] if isinstance(value, int) else value


OFFSET = {"offset": SharedObject("offset 100", 100)}


class Spoilt(Dataset):
    """Random images, the 13th of which is NaN."""

    def __len__(self):
        return 32

    def __getitem__(self, index):
        return torch.full((3, 8, 8), float("nan") if index == 13 else 0.1 * index), 0
