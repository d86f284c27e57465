"""The demo: a small network trained on real images that pip installed, and OpenOOD's protocol on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits, load_sample_images
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from .detectors.base import Detector
from .detectors.registry import METHODS
from .evaluation.benchmark import Benchmark
from .evaluation.evaluate import evaluate
from .evaluation.images import pillow
from .evaluation.result import Result
from .evaluation.tables import save_csv
from .reporting import image_table, pictures

KNOWN = (0, 1, 2, 3, 4, 5)
SIDE = 16
# Okabe & Ito's colours, distinguishable with any colour vision.
COLOURS = {"known": "#0072B2", "near-OOD": "#E69F00", "far-OOD": "#009E73"}


class Block(nn.Module):
    """Two 3×3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out = self.norm1(self.conv1(x)).relu()
        return (self.norm2(self.conv2(out)) + self.shortcut(x)).relu()


class SmallResNet(nn.Module):
    """A residual network for 16×16 images with 256 activations."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(Block(16, 32, 1), Block(32, 64, 2), Block(64, 128, 2), Block(128, 256, 2))
        self.fc = nn.Linear(256, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(images).relu()).mean((2, 3)))


@contextmanager
def _on_the_cpu() -> Iterator[None]:
    """Whatever the default device is. A device's context takes time in every operation: only where it changes anything."""
    with nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu"):
        yield


@_on_the_cpu()
def load_benchmark(seed: int = 0, batch_size: int = 200) -> tuple[Benchmark, TensorDataset]:
    """scikit-learn's digits and sample photos as a benchmark, and the training images.

    Known are the digits 0-5; near-OOD 6, 7 and 8, 9 (a quarter of the latter validates the search); far-OOD are
    grey patches of the two photos.
    """
    rng = np.random.default_rng(seed)
    digits = load_digits()
    images = functional.interpolate(
        torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), (SIDE, SIDE), mode="bilinear"
    )
    labels = torch.tensor(digits.target)

    def pick(*classes: int) -> np.ndarray:
        return rng.permutation(np.flatnonzero(np.isin(digits.target, classes)))

    def dataset(chosen: Tensor, label: Tensor | None = None) -> TensorDataset:
        normalised = ((chosen - images.mean()) / images.std()).expand(-1, 3, -1, -1).contiguous()
        return TensorDataset(normalised, torch.full((len(chosen),), -1) if label is None else label)

    def loader(data: TensorDataset) -> DataLoader:
        return DataLoader(data, batch_size=batch_size)

    known = pick(*KNOWN)
    train, val, test = np.split(known, [int(0.6 * len(known)), int(0.8 * len(known))])
    first, second = pick(6, 7), pick(8, 9)
    quarter = len(second) // 4
    photos = load_sample_images()
    far = {
        f"photo_{Path(name).stem}": loader(dataset(_patches(photo, 200, rng)))
        for name, photo in zip(photos.filenames, photos.images, strict=True)
    }
    benchmark = Benchmark(
        test=loader(dataset(images[test], labels[test])),
        near={
            "digits_6_7": loader(dataset(images[first])),
            "digits_8_9": loader(dataset(images[second[quarter:]])),
        },
        far=far,
        val=loader(dataset(images[val], labels[val])),
        ood_val=loader(dataset(images[second[:quarter]])),
        train=loader(dataset(images[train], labels[train])),
        classes=tuple(map(str, KNOWN)),
    )
    return benchmark, dataset(images[train], labels[train])


def _patches(photo: np.ndarray, count: int, rng: np.random.Generator) -> Tensor:
    """(count, 1, SIDE, SIDE) grey patches of 64×64 pixels, each stretched to [0, 1]."""
    grey = torch.tensor(photo.mean(2) / 255, dtype=torch.float32)
    tops = rng.integers(0, grey.shape[0] - 64, count)
    lefts = rng.integers(0, grey.shape[1] - 64, count)
    patches = torch.stack([grey[t : t + 64, left : left + 64] for t, left in zip(tops, lefts, strict=True)])[
        :, None
    ]
    patches = functional.interpolate(patches, (SIDE, SIDE), mode="area")
    low, high = patches.amin((1, 2, 3), True), patches.amax((1, 2, 3), True)
    return (patches - low) / (high - low).clamp(min=1e-3)


@_on_the_cpu()
def train(data: TensorDataset, seed: int = 0, epochs: int = 12, progress: bool | None = None) -> SmallResNet:
    """A trained network in eval mode; the global random state is left as it was."""
    images, labels = data.tensors
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not the GPUs', which would stay changed
        network = SmallResNet(len(KNOWN))
        optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        steps = epochs * -(-len(images) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
        for _ in tqdm(range(epochs), desc="Training", disable=None if progress is None else not progress):
            for rows in torch.randperm(len(images)).split(64):
                shift = [int(s) for s in torch.randint(-1, 2, (2,))]
                logits = network(images[rows].roll(shift, (2, 3)))
                optimizer.zero_grad()
                functional.cross_entropy(logits, labels[rows]).backward()
                optimizer.step()
                schedule.step()
    return network.eval()


def methods(network: nn.Module) -> dict[str, Detector[Any, Any]]:
    """The package's detectors by name, in the order of the tables."""
    return {name: method.detector(network, **method.defaults) for name, method in METHODS.items()}


@_on_the_cpu()
def run(output: Path, seed: int = 0, progress: bool | None = None) -> pd.DataFrame:
    """Train, search, evaluate and draw; prints the tables and writes CSVs and a picture to ``output``.

    Returns:
        One row per method: near and far FPR@95 and AUROC in percent.
    """
    # More threads gain little on networks this small, and lose much where something else runs on their cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(output, seed, progress)
    finally:
        torch.set_num_threads(threads)


def _run(output: Path, seed: int, progress: bool | None) -> pd.DataFrame:
    start = time.perf_counter()
    benchmark, data = load_benchmark(seed)
    network = train(data, seed, progress=progress)
    print(f"Trained on {len(data)} images of the digits 0-5 in {time.perf_counter() - start:.0f} s.")
    began = time.perf_counter()
    detectors = methods(network)
    results = evaluate(detectors, benchmark, progress=progress)
    accuracy = next(iter(results.values())).table["ACC"].iloc[0]  # the network's, in every table
    print(
        f"Searched and evaluated {len(results)} methods in {time.perf_counter() - began:.0f} s; "
        f"test accuracy {accuracy:.2f} %.\n"
    )
    for name, result in results.items():
        print(f"{METHODS[name].label} ({_chosen(detectors[name], result)})")
        print(result.table.to_string(float_format="{:.2f}".format), "\n")
        save_csv(result.table, output / "ood" / f"{name}.csv")
        if result.search is not None:
            result.search.to_csv(output / f"search_{name}.csv", index=False)
    results = pictured(results, benchmark, output / "pictures")
    image_table.write(results, output / image_table.NAME)
    summary = summarise(results)
    print(summary.to_string(float_format="{:.2f}".format))
    summary.to_csv(output / "summary.csv", float_format="%.2f")
    picture = output / "demo.png"
    draw(results).savefig(picture, dpi=150)
    print(
        "\nThe demo's data are small: read the table as an example, not as a ranking of methods.\n"
        f"Took {time.perf_counter() - start:.0f} s. Tables and pictures are in {output} (look at {picture}, and "
        f"at the page of: openood-adascale report {output})."
    )
    return summary


def _chosen(detector: Detector[Any, Any], result: Result) -> str:
    """How many candidates were tried, and which settings were best."""
    if result.search is None:
        return "nothing to search"
    settings = detector.settings.as_dict()
    swept = [
        name for name in settings if name in result.search and result.search[name].astype(str).nunique() > 1
    ]
    return f"{len(result.search)} candidates tried, {', '.join(f'{name} {settings[name]}' for name in swept)}"


def summarise(results: Mapping[str, Result]) -> pd.DataFrame:
    """Near and far averages of all methods side by side."""
    return pd.DataFrame(
        {
            METHODS[name].label: {
                f"{split} {metric}": result.table.loc[f"{split}ood", metric]
                for split in ("near", "far")
                for metric in ("FPR@95", "AUROC")
            }
            for name, result in results.items()
        }
    ).T


def pictured(results: Mapping[str, Result], benchmark: Benchmark, folder: Path) -> dict[str, Result]:
    """The results with the images that they are of as files, ``folder``/SET/NUMBER.png."""
    loaders: dict[str, Any] = {"id": benchmark.test, **benchmark.near, **benchmark.far}
    black, white = torch.aminmax(loaders["id"].dataset.tensors[0])
    paths: dict[str, tuple[str, ...]] = {}
    for name, loader in loaders.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        grey = ((loader.dataset.tensors[0][:, 0] - black) / (white - black)).clamp(0, 1)
        paths[name] = tuple(str(folder / name / f"{number}.png") for number in range(len(grey)))
        for path, image in zip(paths[name], (255 * grey).round().byte().numpy(), strict=True):
            pillow().fromarray(image).save(path)
    return {
        method: replace(
            result, images={name: replace(known, paths=paths[name]) for name, known in result.images.items()}
        )
        for method, result in results.items()
    }


def draw(results: Mapping[str, Result]) -> pictures.Figure:
    """Score distributions of energy and AdaSCALE-A, and the percentiles that AdaSCALE-A chose."""
    adascale = results["adascale"]
    names = {"known": ("id",), "near-OOD": adascale.near, "far-OOD": adascale.far}
    panels = {}
    for method in ("ebo", "adascale"):
        scores = {
            group: np.concatenate([results[method].scores[name] for name in names[group]]) for group in names
        }
        panels[f"{METHODS[method].label}: score"] = ("score (larger is more in-distribution)", scores)
    chosen = {
        group: np.concatenate([np.asarray(adascale.images[name].percentiles) for name in own])
        for group, own in names.items()
    }
    panels[f"{METHODS['adascale'].label}: percentile chosen per image"] = ("percentile p (%)", chosen)
    return pictures.histograms(panels, COLOURS)
