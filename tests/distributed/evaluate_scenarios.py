"""Evaluations that the tests run in one process and in many: ``python evaluate_scenarios.py FOLDER``.

Every process writes what it found to FOLDER/<processes>-<rank>.npz and .json.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tiny import TinyNet, make_images, make_loader
from torch.utils.data import DataLoader, Dataset

from openood_adascale import AdaSCALE, Benchmark, evaluate
from openood_adascale.detectors.registry import METHODS

RANK, COUNT = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


class OwnDataset(Dataset):
    """Of a kind that no store knows."""

    def __init__(self, count, seed, noise=0.0, bad=()):
        self.images, self.noise, self.bad = make_images(count, seed), noise, frozenset(bad)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = self.images[index]
        if self.noise:
            image = image + self.noise * torch.rand(3, 8, 8)
        return {
            "data": image * float("nan") if index in self.bad else image,
            "label": index % 5,
            "image_name": f"image {index}.png",
        }


class Counting(TinyNet):
    """Changes whenever it is run."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, images):
        self.runs += 1
        return super().forward(images)


def network(kind=TinyNet):
    torch.manual_seed(0)
    return kind().eval()


def loaders(shuffle=False):
    def one(count, seed):
        return make_loader(
            make_images(count, seed), 8, shuffle=shuffle, generator=torch.Generator().manual_seed(3)
        )

    return Benchmark(one(70, 1), {"n": one(33, 2)}, {"f": one(5, 3)}, one(90, 4), one(40, 5), one(80, 6))


def own(count, seed, **more):
    return DataLoader(OwnDataset(count, seed, **more), batch_size=8)


def caught(call):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            found = call()
        except Exception as error:
            return None, f"{type(error).__name__}: {error}", []
    return found, "", [str(one.message) for one in told if issubclass(one.category, UserWarning)]


def main(folder):
    arrays, words = {}, {}

    def keep(name, results):
        for method, result in results.items():
            for key, scores in result.scores.items():
                arrays[f"{name} {method} {key}"] = scores
            arrays[f"{name} {method} table"] = result.table.to_numpy()

    def methods(net):
        detectors = {name: method.detector(net, **method.defaults) for name, method in METHODS.items()}
        for detector in detectors.values():  # some candidates do: one process alone judges them
            detector.default_sweep = {name: values[::5] for name, values in detector.default_sweep.items()}
        return detectors

    if COUNT > 1:
        dist.init_process_group("gloo")
    for name, store in (("stored", None), ("not stored", False)):
        detectors = methods(network())
        keep(name, evaluate(detectors, loaders(), progress=False, store=store))
        # All processes' detectors have learnt the same.
        arrays[f"{name} after"] = detectors["adascale"].score(make_images(9, 8)).numpy()
        arrays[f"{name} least"] = np.array(detectors["adascale"].threshold())
    keep("shuffled", evaluate(methods(network()), loaders(shuffle=True), progress=False, store=False))

    def evaluated(test, net=None, store=False):
        benchmark = loaders()
        benchmark.test = test
        detector = AdaSCALE(network() if net is None else net)
        return evaluate(detector, benchmark, search=False, progress=False, store=store)

    for name, test, net in (
        ("own", own(70, 9), None),
        ("bad", own(70, 9, bad=(3, 40, 41)), None),
        ("random", own(70, 9, noise=0.1), None),
        ("counting", own(70, 9), network(Counting)),
        ("batches", list(own(70, 9)), None),
    ):
        torch.manual_seed(5)
        found, error, told = caught(lambda test=test, net=net: evaluated(test, net))
        words[name] = [error, sorted(set(told))]
        if found is not None:
            keep(name, {"": found})
    np.savez(folder / f"{COUNT}-{RANK}.npz", **arrays)
    (folder / f"{COUNT}-{RANK}.json").write_text(json.dumps(words))


if __name__ == "__main__":
    import evaluate_scenarios

    torch.set_num_threads(1)
    evaluate_scenarios.main(Path(sys.argv[1]))
