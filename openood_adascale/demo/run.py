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
from ..report.tables import one_decimal
from .data import DemoData, Images, load_data
from .figures import draw_story
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
    found = Run.from_results(
        results,
        settings={name: detector.settings.as_dict() for name, detector in detectors.items()},
        id="letters",
        network="a small convolutional network",
        title="Demo: letters against other characters and photos",
    )
    write_run(found, output)
    page = write_report(found, output / "report")
    story = output / "story.png"
    draw_story(results["adascale"], data).savefig(story, dpi=150)
    if verbose:
        for method in found.methods:
            print(method.label, method.table.to_string(float_format="{:.2f}".format), sep="\n", end="\n\n")
    table = summarise(results)
    accuracy = float(results["msp"].table["ACC"].iloc[0])
    print(f"Trained on {len(data.train)} letters in {trained:.0f} s; test accuracy {accuracy:.1f} %.\n")
    print(table.to_string(float_format=one_decimal))
    print(
        f"\nOne network on small images: an example, not a ranking of methods. Took {time.perf_counter() - start:.0f} s."
        f"\nReport: {page}\nFigure: {story}"
    )
    return table


def summarise(results: Mapping[str, Result]) -> pd.DataFrame:
    """Return near- and far-OOD means of all methods, one row each."""
    rows = {}
    for name, result in results.items():
        rows[METHODS[name].label] = (
            result.table.loc[["nearood", "farood"], ["FPR@95", "AUROC"]].to_numpy().ravel()
        )
    columns = ["near FPR@95", "near AUROC", "far FPR@95", "far AUROC"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)
