"""The demo from training to the report."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from ..detectors.registry import METHODS
from ..evaluation.benchmark import Benchmark
from ..evaluation.evaluate import evaluate
from ..evaluation.result import Result
from ..report.render import write_report
from ..report.run import Run, write_run
from .data import DemoData, Images, load_data
from .figures import Example, draw_story, typical_image
from .network import EPOCHS, train


@contextmanager
def _on_cpu() -> Iterator[None]:
    """Use the CPU and one thread: more threads gain little on a small network."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_num_threads(threads)


def make_benchmark(data: DemoData, batch_size: int = 250, folder: Path | None = None) -> Benchmark:
    """Return the demo's images as a benchmark.

    Args:
        data: Images of the demo.
        batch_size: Images per batch.
        folder: Directory to write the test images to as ``SET/NUMBER.png`` (default: they are not written).
    """

    def loader(images: Images, labels: np.ndarray | None = None, name: str = "") -> DataLoader[Any]:
        targets = torch.full((len(images),), -1) if labels is None else torch.from_numpy(labels)
        dataset: Any = TensorDataset(data.normalize(images), targets)
        if folder is not None and name:
            (folder / name).mkdir(parents=True, exist_ok=True)
            dataset.paths = [str(folder / name / f"{number}.png") for number in range(len(images))]
            for path, image in zip(dataset.paths, images, strict=True):
                Image.fromarray(image).save(path)
        return DataLoader(dataset, batch_size=batch_size)

    return Benchmark(
        test=loader(data.test, data.test_labels, "id"),
        near={name: loader(images, name=name) for name, images in data.near.items()},
        far={name: loader(images, name=name) for name, images in data.far.items()},
        val=loader(data.val, data.val_labels),
        ood_val=loader(data.ood_val),
        train=loader(data.train, data.train_labels),
        classes=data.classes,
    )


def run(
    output: Path, seed: int = 0, progress: bool | None = None, verbose: bool = False, epochs: int = EPOCHS
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
    start = time.perf_counter()
    data = load_data(seed)
    with _on_cpu():
        labels = torch.from_numpy(data.train_labels)
        network = train(
            data.normalize(data.train), labels, len(data.classes), seed=seed, epochs=epochs, progress=progress
        )
        trained = time.perf_counter() - start
        detectors = {name: method.detector(network, **method.defaults) for name, method in METHODS.items()}
        results = evaluate(detectors, make_benchmark(data, folder=output / "images"), progress=progress)
    names = {name: method.label for name, method in METHODS.items()}
    settings = {name: detector.settings.as_dict() for name, detector in detectors.items()}
    title = "Demo: letters against other characters and photos"
    found = Run.from_results(
        results, names, settings, id="letters", network="a small convolutional network", title=title
    )
    write_run(found, output)
    page = write_report(found, output / "report")
    story = output / "story.png"
    _draw_story(results["adascale"], data).savefig(story, dpi=150)
    if verbose:
        for name, result in results.items():
            print(names[name], result.table.to_string(float_format="{:.2f}".format), sep="\n", end="\n\n")
    table = summarise(results)
    accuracy = float(results["msp"].table["ACC"].iloc[0])
    print(f"Trained on {len(data.train)} letters in {trained:.0f} s; test accuracy {accuracy:.1f} %.\n")
    print(table.round(1).to_string(float_format="{:.1f}".format))
    print(
        f"\nOne network on small images: an example, not a ranking of methods. Took {time.perf_counter() - start:.0f} s."
        f"\nReport: {page}\nFigure: {story}"
    )
    return table


def summarise(results: Mapping[str, Result]) -> pd.DataFrame:
    """Return near- and far-OOD means of all methods, one row each."""
    rows = {
        METHODS[name].label: {
            f"{side} {metric}": result.table.loc[f"{side}ood", metric]
            for side in ("near", "far")
            for metric in ("FPR@95", "AUROC")
        }
        for name, result in results.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _draw_story(result: Result, data: DemoData) -> Any:
    """Draw an ID and an OOD image, the percentiles that AdaSCALE chose, and its scores."""
    groups = {"ID": ("id",), "near-OOD": result.near, "far-OOD": result.far}
    own = {name: np.asarray(one.percentiles) for name, one in result.images.items()}
    percentiles, scores = (
        {group: np.concatenate([values[name] for name in names]) for group, names in groups.items()}
        for values in (own, result.scores)
    )

    def example(group: str, name: str, images: Images, shows: str) -> Example:
        place = typical_image(own[name], result.scores[name])
        predicted = data.classes[int(result.images[name].predictions[place])]
        caption = f"{shows}; the network says {predicted}"
        return Example(
            images[place], group, caption, float(own[name][place]), float(result.scores[name][place])
        )

    near = result.near[-1]
    examples = (
        example("ID", "id", data.test, "a letter"),
        example("near-OOD", near, data.near[near], f"one of the {near}"),
    )
    return draw_story(percentiles, scores, examples)
