"""Fills the table of benchmarks/RESULTS.md: this package side by side with OpenOOD's own `adascale_a`.

    python benchmarks/run.py [--val 200] [--ood-val 100] [--repeats 5] [--only ROW ...]

Images are scikit-learn's digits and photos. OpenOOD is found as the tests find it (`import openood` or OPENOOD_ROOT);
without it, the rows that need it are left out. Needs the extras `test`, and `openood` for those rows.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cache_rows import filling, kept_memory, passes
from data import bench, images_of, train_digits
from gpu_rows import on_a_gpu
from measure import BATCH, Table, hardware, quiet
from network_rows import (
    agreement,
    factors,
    memory,
    outside_the_network,
    parts_of_a_batch,
    peak_memory,
    scoring,
    their_postprocessor,
    tripwire,
)
from ray_rows import on_two_workers
from search_rows import draw, many_candidates, statistics_size, whole_search
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader

from openood_adascale.features.extractor import fastest_precision

HERE = Path(__file__).resolve().parent


@dataclass
class Bench:
    """What the rows are measured on."""

    options: argparse.Namespace
    checkout: Path | None
    data: Path
    checkpoint: Path
    network: nn.Module
    benchmark: dict[str, Any]
    device: torch.device

    def wanted(self, row: str) -> bool:
        return not self.options.only or row in self.options.only

    @property
    def batch(self) -> torch.Tensor:
        loaders = self.benchmark["ood"].values()
        return torch.cat([batch[0] for loader in loaders for batch in loader])[:BATCH]

    @property
    def everything(self) -> DataLoader:
        """All images but those to train on."""
        names = ("val", "ood_val", "test")
        loaders = [*(self.benchmark[name] for name in names), *self.benchmark["ood"].values()]
        return DataLoader(ConcatDataset([loader.dataset for loader in loaders]), batch_size=BATCH)

    def adascale_a(self) -> Any:
        """OpenOOD's own, ready to score; None without OpenOOD."""
        if self.checkout is None:
            return None
        from openood.networks.adascale_net import AdaScaleANet

        theirs, few = their_postprocessor(), {"val": [{"data": self.batch[:32].clone()}]}
        quiet(lambda: theirs.setup(AdaScaleANet(self.network), few, {}))
        theirs.set_hyperparam([[80, 85], 5, 1, 10, 0.05])
        return theirs


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--val", type=int, default=200, help="ID validation images (default: %(default)s)")
    parser.add_argument(
        "--ood-val", type=int, default=100, help="OOD validation images (default: %(default)s)"
    )
    parser.add_argument(
        "--repeats", type=int, default=5, help="of each short measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="ROW", help="only these, and print them without writing anything"
    )
    parser.add_argument("--peak-memory", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def prepare(options: argparse.Namespace, folder: Path) -> Bench:
    """Images, and a network trained on them for a minute."""
    checkout = bench.find_openood()
    if checkout is not None:
        sys.path.insert(0, str(checkout))
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(checkout), os.environ.get("PYTHONPATH")])
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print("Data and network …", flush=True)
    benchmark = images_of(options.val, options.ood_val, folder / "data")
    torch.manual_seed(0)
    network: nn.Module
    if checkout is not None:
        from openood.networks import ResNet18_32x32

        network = ResNet18_32x32(num_classes=10)
        print("openood", checkout.name, flush=True)
    else:
        from torchvision.models import resnet18

        network = resnet18(num_classes=10)
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    images, labels = (torch.cat(parts) for parts in zip(*benchmark["train"], strict=True))
    train_digits(network, images, labels, 60, 0.03)
    checkpoint = folder / "best.ckpt"
    torch.save(network.state_dict(), checkpoint)
    return Bench(options, checkout, folder / "data", checkpoint, network, benchmark, device)


def measure(on: Bench, table: Table) -> tuple[dict[int, float], dict[str, float]]:
    """All rows that are wanted; seconds of the search by number of candidates, and of OpenOOD's Evaluator."""
    repeats, cpu = on.options.repeats, torch.device("cpu")
    whole: dict[int, float] = {}
    taken: dict[str, float] = {}
    if on.wanted("scoring"):
        scoring(table, on.network, on.batch, repeats, on.adascale_a())
        parts_of_a_batch(table, on.network, on.batch, repeats)
    if on.wanted("tripwire"):
        tripwire(table, repeats, cpu)
    if on.wanted("outside"):
        outside_the_network(table, repeats, cpu)
    if on.wanted("factor"):
        factors(table, repeats, cpu)
    if on.wanted("memory") and on.checkout is not None:
        memory(table, on.checkpoint)
    if on.wanted("agreement"):
        agreement(table, on.network, on.benchmark)
    if on.wanted("statistics"):
        statistics_size(table)
    if on.wanted("candidates"):
        whole = many_candidates(table, on.network, on.benchmark["val"], on.benchmark["ood_val"])
    if on.wanted("cache"):
        filling(table, on.network, on.everything, max(repeats, 5))
        passes(table, on.network, on.benchmark)
    if on.wanted("kept") and on.device.type == "cpu":
        kept_memory(table, repeats)
    if on.wanted("ray") and on.device.type == "cpu":
        on_two_workers(table, repeats)
    if on.wanted("gpu") and on.device.type == "cuda":
        on_a_gpu(table, repeats, on.device, on.checkout is not None)
    if on.wanted("search") and on.checkout is not None:
        sizes = f"{on.options.val} + {on.options.ood_val}"
        taken = whole_search(table, on.network, on.data, sizes)
    return whole, taken


def write(on: Bench, table: Table) -> None:
    """RESULTS.md."""
    import torchvision

    options, cpu = on.options, torch.device("cpu")
    machine = hardware(cpu) + (f", {hardware(on.device)}" if on.device.type == "cuda" else "")
    beside = (
        "no OpenOOD, its rows are left out"
        if on.checkout is None
        else "OpenOOD's adascale_a beside it in the same run"
    )
    text = f"""# Results

Written by `python benchmarks/run.py --val {options.val} --ood-val {options.ood_val} --repeats {options.repeats}` on \
{datetime.date.today()}: {machine}; torch {torch.__version__}, torchvision {torchvision.__version__}, \
numpy {np.__version__}, Python {platform.python_version()}; {beside}. \
`auto` precision is {fastest_precision(cpu)} here. Times are medians of {options.repeats} rounds in which \
the candidates take turns; the whole search ran once each. Data lie in memory, but for the whole search.

{table.markdown()}
![search time against the number of candidates](search.png)
"""
    notes = HERE / "NOTES.md"
    if notes.is_file():
        text += "\n" + notes.read_text(encoding="utf-8")
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")


def main() -> None:
    options = parse()
    if options.peak_memory:
        peak_memory(*options.peak_memory)
        return
    table = Table()
    with tempfile.TemporaryDirectory() as folder:
        on = prepare(options, Path(folder))
        whole, taken = measure(on, table)
    if options.only:
        return
    picture = HERE / "search.png"
    draw(whole, taken.get("adascale_a"), picture)
    write(on, table)
    print(f"Written: {HERE / 'RESULTS.md'}, {picture}")


if __name__ == "__main__":
    main()
