"""The demo from training to the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, TensorDataset

from ..data.decoding import pillow
from ..detectors.registry import METHODS
from ..evaluation.benchmark import Benchmark
from ..evaluation.evaluate import evaluate
from ..evaluation.result import Result
from ..report.render import write_report
from ..report.run import Run, write_run
from .data import DemoData, Images, load_data
from .figures import Example, draw_story, typical_image
from .network import train


@contextmanager
def _default_settings() -> Iterator[None]:
    """Use the CPU and one thread: more threads gain little on a small network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with nullcontext() if torch.empty(0).device.type == "cpu" else torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)


def make_benchmark(data: DemoData, batch_size: int = 250) -> Benchmark:
    """Return the demo's images as a benchmark.

    Args:
        data: Images of the demo.
        batch_size: Images per batch.
    """

    def loader(images: Images, labels: np.ndarray | None = None) -> DataLoader[Any]:
        targets = torch.full((len(images),), -1) if labels is None else torch.from_numpy(labels)
        return DataLoader(TensorDataset(data.normalize(images), targets), batch_size=batch_size)

    return Benchmark(
        test=loader(data.test, data.test_labels),
        near={name: loader(images) for name, images in data.near.items()},
        far={name: loader(images) for name, images in data.far.items()},
        val=loader(data.val, data.val_labels),
        ood_val=loader(data.ood_val),
        train=loader(data.train, data.train_labels),
        classes=data.classes,
    )


def run(
    output: Path, seed: int = 0, progress: bool | None = None, verbose: bool = False, epochs: int = 10
) -> pd.DataFrame:
    """Train a network, search and evaluate every method, and write tables, figures and a report.

    Args:
        output: Directory to write to.
        seed: Seed of data and training.
        progress: True or False shows or hides progress bars (default: shown in a terminal).
        verbose: Print the table of each method as well.
        epochs: Training epochs.

    Returns:
        One row per method with near- and far-OOD FPR@95 and AUROC in percent.
    """
    with _default_settings():
        return _run(output, seed, progress, verbose, epochs)


def _run(output: Path, seed: int, progress: bool | None, verbose: bool, epochs: int) -> pd.DataFrame:
    start = time.perf_counter()
    data = load_data(seed)
    labels = torch.from_numpy(data.train_labels)
    network = train(
        data.normalize(data.train),
        labels,
        classes=len(data.classes),
        seed=seed,
        epochs=epochs,
        progress=progress,
    )
    trained = time.perf_counter() - start
    detectors = {name: method.detector(network, **method.defaults) for name, method in METHODS.items()}
    results = evaluate(detectors, make_benchmark(data), progress=progress)
    paths = _save_images(data, output / "images")
    run = Run.from_results(
        _with_paths(results, paths),
        {name: method.label for name, method in METHODS.items()},
        {name: detector.settings.as_dict() for name, detector in detectors.items()},
        id="letters",
        network="a small convolutional network",
        title="Demo: letters against other characters and photos",
    )
    write_run(run, output)
    page = write_report(run, output / "report")
    story = output / "story.png"
    _draw_story(results["adascale"], data).savefig(story, dpi=150)
    if verbose:
        for name, result in results.items():
            print(
                METHODS[name].label,
                result.table.to_string(float_format="{:.2f}".format),
                sep="\n",
                end="\n\n",
            )
    table = summarise(results)
    accuracy = float(results["msp"].table["ACC"].iloc[0])
    print(f"Trained on {len(data.train)} letters in {trained:.0f} s; test accuracy {accuracy:.1f} %.\n")
    print(table.to_string(float_format="{:.1f}".format))
    print(
        f"\nOne network on small images: an example, not a ranking of methods. Took {time.perf_counter() - start:.0f} s."
        f"\nReport: {page}\nFigure: {story}"
    )
    return table


def summarise(results: Mapping[str, Result]) -> pd.DataFrame:
    """Return near- and far-OOD means of all methods, one row each."""
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


def _save_images(data: DemoData, folder: Path) -> dict[str, tuple[str, ...]]:
    """Write the test images as ``SET/NUMBER.png`` and return their paths by set."""
    paths: dict[str, tuple[str, ...]] = {}
    for name, images in {"id": data.test, **data.near, **data.far}.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        paths[name] = tuple(str(folder / name / f"{number}.png") for number in range(len(images)))
        for path, image in zip(paths[name], images, strict=True):
            pillow().fromarray(image).save(path)
    return paths


def _with_paths(results: Mapping[str, Result], paths: Mapping[str, tuple[str, ...]]) -> dict[str, Result]:
    from dataclasses import replace

    return {
        method: replace(
            result, images={name: replace(one, paths=paths[name]) for name, one in result.images.items()}
        )
        for method, result in results.items()
    }


def _draw_story(result: Result, data: DemoData) -> Any:
    """Draw an ID and an OOD image, the percentiles that AdaSCALE chose, and its scores."""
    groups = {"ID": ("id",), "near-OOD": result.near, "far-OOD": result.far}
    percentiles, scores = (
        {group: np.concatenate([values[name] for name in names]) for group, names in groups.items()}
        for values in (
            {name: np.asarray(one.percentiles) for name, one in result.images.items()},
            result.scores,
        )
    )

    def example(group: str, name: str, images: Images, shows: str) -> Example:
        own = np.asarray(result.images[name].percentiles)
        place = typical_image(own, result.scores[name])
        predicted = data.classes[int(result.images[name].predictions[place])]
        caption = f"{shows}; the network says {predicted}"
        return Example(images[place], group, caption, float(own[place]), float(result.scores[name][place]))

    near = result.near[-1]
    return draw_story(
        percentiles,
        scores,
        (
            example("ID", "id", data.test, "a letter"),
            example("near-OOD", near, data.near[near], f"one of the {near}"),
        ),
    )
