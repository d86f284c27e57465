"""The command line, image files, result files and code blocks for the tests."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import pickle
import re
import shlex
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from networks import Net, TinyNet, make_images, make_loader
from openood_support import picture
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from openood_adascale import Benchmark, published
from openood_adascale.cli import main
from openood_adascale.metrics import COLUMNS, ood_metrics
from openood_adascale.parallel import SharedObject, current_pool, reader_processes
from openood_adascale.report.run import MethodResult, Run, image_table
from openood_adascale.report.tables import table_of


def call(*arguments, cwd=None, check=True):
    """Run ``openood-adascale`` in this process, and return its status and output."""
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


def pictures(folder, count, seed, classes=None, size=40):
    rng = np.random.default_rng(seed)
    for number in range(count):
        where = folder / classes[number % len(classes)] if classes else folder
        where.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (size, size, 3), dtype=np.uint8)
        pixels[:, :, number % 3] //= 1 + seed
        Image.fromarray(pixels).save(where / f"picture {number:03}.png")
    return folder


SETS = {"near": ("ssb_hard", "ninco"), "far": ("inaturalist", "textures", "openimage_o")}
IMAGENET = (*SETS["near"], "nearood", *SETS["far"], "farood")
RESNET50 = "imagenet_resnet50_tvsv1_base_default"
CIFAR10 = "cifar10_resnet18_32x32_base_e100_lr0.1_default"
HEADER = ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\n"


def command(*words: object) -> int:
    """Run ``openood-adascale`` and return its exit status."""
    return main([str(word) for word in words])


# OpenOOD's files.


def authors(
    dataset: str = "imagenet", network: str = "resnet50", method: str = "AdaSCALE-A", scheme: str = "ood"
) -> pd.DataFrame:
    """Return the authors' published results as an evaluation's table."""
    table = published.results()
    table = table[table["source"].str.startswith("the authors'")].set_index(
        ["dataset", "network", "method", "scheme"]
    )
    table = table.sort_index(kind="stable").loc[(dataset, network, method, scheme)].set_index("ood_set")
    return pd.DataFrame(
        {"FPR@95": table["fpr95"], "AUROC": table["auroc"], "AUPR_IN": 90.0, "AUPR_OUT": 60.0, "ACC": 76.19}
    ).rename_axis(None)


def flat(value: float) -> pd.DataFrame:
    """Return a table with AUROC ``value`` and FPR@95 100 − ``value`` everywhere."""
    return pd.DataFrame([[100 - value, value, 90.0, 50.0, 76.19]] * len(IMAGENET), IMAGENET, list(COLUMNS))


def imagenet_csv(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as ``eval_ood_imagenet.py`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, float_format="{:.2f}".format)
    return path


def seeds_csv(path: Path, table: pd.DataFrame, std: float = 0.25) -> Path:
    """Write a table as ``eval_ood.py`` does, over several training runs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table.map(f"{{:.2f}} ± {std:.2f}".format).to_csv(path)
    return path


def main_csv(path: Path, table: pd.DataFrame) -> Path:
    """Append a table as ``main.py`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=["dataset", *COLUMNS])
        if new:
            writer.writeheader()
        for name, row in table.iterrows():
            writer.writerow({"dataset": name, **{metric: f"{row[metric]:.2f}" for metric in COLUMNS}})
    return path


def triple(rng: np.random.Generator, count: int, mean: float, label: int) -> list[np.ndarray]:
    """Return (prediction, confidence, label), as OpenOOD's ``inference`` does."""
    return [rng.integers(0, 10, count), rng.normal(mean, 1, count).astype(np.float32), np.full(count, label)]


def evaluator_scores(quality: float = 2.0, csid: bool = False, seed: int = 0) -> dict:
    """Return ``Evaluator.scores`` after ``eval_ood()``."""
    rng = np.random.default_rng(seed)
    labels = torch.arange(200) % 10
    return {
        "id": {"train": None, "val": None, "test": triple(rng, 200, quality, 1)},
        "csid": {"imagenet_v2": triple(rng, 100, 0.5, 1) if csid else None},
        "ood": {
            "val": None,
            **{side: {name: triple(rng, 150, 0, -1) for name in names} for side, names in SETS.items()},
        },
        "id_preds": torch.where(torch.arange(200) < 150, labels, labels + 1),
        "id_labels": labels,
        "csid_preds": {"imagenet_v2": torch.zeros(100, dtype=torch.int64) if csid else None},
        "csid_labels": {"imagenet_v2": torch.arange(100) % 2 if csid else None},
    }


def save_scores(path: Path, scores: object, protocol: int = pickle.HIGHEST_PROTOCOL) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(scores, protocol))
    return path


class Hostile:
    """Pickles to a call of a function."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


# This package's runs.


def numbered(path: Path, number: int) -> str:
    """Save a picture of 4 × 3 blocks that show the bits of a number, and return its path."""
    bits = np.array([(number >> bit) & 1 for bit in range(12)], np.uint8).reshape(3, 4)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * bits).repeat(40, 0).repeat(40, 1)).save(path, "png")
    return str(path)


def sample_run(
    folder: Path | None = None, methods: tuple[str, ...] = ("msp", "adascale"), count: int = 40, seed: int = 0
) -> Run:
    """Return a run on two near sets and one far set; with numbered pictures if there is a folder for them.

    AdaSCALE is better than the others. ID images move less than those of each set but "exotic".
    """
    rng = np.random.default_rng(seed)
    near, far = ("cats", "dogs"), ("exotic",)
    keys = ("id", *near, *far)
    base = {key: rng.normal(2 * (key == "id"), 1, count) for key in keys}
    made, columns = [], {}
    for name in methods:
        noise = 0.1 if name.startswith("adascale") else 3.0
        scores = {key: base[key] + rng.normal(0, noise, count) for key in keys}
        rows = {key: ood_metrics(scores["id"], scores[key]) for key in (*near, *far)}
        method = MethodResult(name, table_of(rows, near, far).assign(ACC=90.0))
        columns[f"score_{name}"] = scores
        if name.startswith("adascale"):
            moved = {key: rng.normal({"id": 2, "exotic": 1}.get(key, 3), 0.1, count) for key in keys}
            columns[f"oodness_{name}"] = moved
            columns[f"percentile_{name}"] = {key: 85 - values for key, values in moved.items()}
            method.settings = {"percentile": [80, 85], "k1": 1}
            method.search = pd.DataFrame(
                {"percentile": ["[60, 60]", "[60, 70]", "[70, 70]"], "auroc": [80, 81.5, 79]}
            )
        made.append(method)
    images = image_table(columns)
    number = images.groupby("set").cumcount()
    images["prediction"] = number % 3
    images["label"] = np.where(images["set"] == "id", number % 3, -1)
    if folder is not None:
        first = images["set"].map({key: 100 * place for place, key in enumerate(keys)})
        images["path"] = [
            numbered(folder / key / f"{i}.png", start + i)
            for key, i, start in zip(images["set"], number, first, strict=True)
        ]
    return Run(
        made,
        near,
        far,
        images=images,
        classes=("ant", "bee", "fly"),
        id="insects",
        network="tiny",
        settings={"precision": "float32"},
    )


class Page(HTMLParser):
    """Tags, sources, alternative texts and text of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.script = ""
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self._inside = tag
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        links = ("src", "href", "data", "srcset", "xlink:href", "action", "poster")
        self.sources += [value for name, value in attrs if name in links]

    def handle_data(self, data):
        if self._inside == "script":
            self.script += data
        elif self._inside != "style":
            self.text += data

    def handle_endtag(self, tag):
        self._inside = ""


class OddError(Exception):
    """An exception that pickle cannot rebuild."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def work(objects, piece):
    """Do the work of a piece."""
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
    if action == "exit":
        raise SystemExit(value)
    if action == "lock":
        return threading.Lock()
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


IMAGES = {"train": 230, "val": 50, "ood_val": 50, "test": 60, "near": 40, "far": 40}


def train():
    """Return a network that has learned five kinds of images with different means, and these means."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        means = torch.randn(5, 3, 1, 1)
        network = Net()
        images, labels = kinds(means, 200, 1)
        optimiser = torch.optim.Adam(network.parameters(), 1e-2)
        for _ in range(60):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(images), labels).backward()
            optimiser.step()
    network.zero_grad(set_to_none=True)
    return network.eval(), means


def kinds(means, count, seed):
    labels = torch.arange(count) % 5
    return make_images(count, seed) * 0.3 + means[labels], labels


def loader_of(images, labels=None):
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def benchmark_of(means):
    images, labels = kinds(means, 200, 1)
    # Some training images are OOD and labelled so.
    train = torch.cat([images, make_images(30, 20, shift=3)]), torch.cat([labels, torch.full((30,), -1)])
    return Benchmark(
        test=loader_of(*kinds(means, 60, 2)),
        near={"near": loader_of(make_images(40, 5))},
        far={"far": loader_of(make_images(40, 6) * 3)},
        val=loader_of(*kinds(means, 50, 7)),
        ood_val=loader_of(make_images(50, 8)),
        train=loader_of(*train),
    )


def scores_by_itself(detector, data, fit=True):
    """Return a detector's scores on the test images as pytorch-ood itself computes them, with the sign turned round."""
    detector.to("cpu")
    if detector.requires_fit and fit:
        detector.fit(data.train)
    found = {}
    for name, loader in {"id": data.test, **data.near, **data.far}.items():
        images = loader.dataset.tensors[0].split(16)
        found[name] = -torch.cat([detector.predict(batch).detach() for batch in images]).double().numpy()
    return found


def assert_same_scores(got, want, rtol):
    for name, scores in want.items():
        np.testing.assert_allclose(
            got[name], scores, rtol=rtol, atol=rtol * np.abs(scores).max(), err_msg=name
        )


ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "examples/README.md",
    *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md")),
)
NOT_RUN = re.compile(r"<!-- not run: (\S.*\S) -->")
RUN_WITH = re.compile(r'<!-- run with ("[^"]*" for "[^"]+"(?:, "[^"]*" for "[^"]+")*) -->')


@dataclass(frozen=True)
class Block:
    """A code block of a page."""

    page: str
    line: int
    """Of its first line, counted from 1."""
    language: str
    text: str
    not_run: str = ""
    """Why it is not run; empty if it is."""
    instead: tuple[tuple[str, str], ...] = ()
    """Pairs of a text in the block and its replacement for the run."""

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def code(self) -> str:
        """The code with the replacements."""
        found = self.text
        for there, run_with in self.instead:
            assert there in found, f"{self.name}: {there!r} is not in it"
            found = found.replace(there, run_with)
        return found

    def commands(self) -> list[tuple[dict[str, str], list[str]]]:
        """Of a shell block, each command's variables and words."""
        found = []
        for line in self.code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            variables = {}
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, variables[name] = words.pop(0).partition("=")
            if words:
                found.append((variables, words))
        return found


def blocks_of(page: str, text: str) -> list[Block]:
    """A page's code blocks in their order; Sphinx's directives, whose language stands in braces, are none."""
    found, opened, before = [], None, ""
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r" *```(.*)$", line)
        if opened is None:
            if fence:
                opened = (number + 1, fence[1].strip(), before, [])
            before = line.strip()
        elif fence:
            start, language, marker, lines = opened
            opened, before = None, ""
            if not language.startswith("{"):
                found.append(_block(page, start, language, "\n".join(lines) + "\n", marker))
        else:
            opened[-1].append(line)
    assert opened is None, f"{page}: a code block does not end"
    return found


def _block(page: str, line: int, language: str, text: str, marker: str) -> Block:
    not_run, run_with = NOT_RUN.fullmatch(marker), RUN_WITH.fullmatch(marker)
    pairs = re.findall(r'"([^"]*)" for "([^"]+)"', run_with[1]) if run_with else []
    instead = tuple((there, smaller) for smaller, there in pairs)
    return Block(page, line, language, text, not_run[1] if not_run else "", instead)


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks_of(page, (ROOT / page).read_text(encoding="utf-8"))]


MOST = 4
"""Images in each of OpenOOD's lists, at most: a ResNet-18 runs over them."""


def tiny_network() -> TinyNet:
    """5 classes, 64 rectified activations, 8 x 8 images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TinyNet().eval()


def names() -> dict[str, Any]:
    """Return the names that pages and docstrings use without defining them."""
    from openood_adascale import Benchmark

    loaders = {
        "val_loader": make_loader(make_images(50, 1)),
        "ood_val_loader": make_loader(make_images(40, 2, 0.7)),
        "train_loader": make_loader(make_images(60, 3)),
        "test_loader": make_loader(make_images(30, 4)),
        "near_loader": make_loader(make_images(20, 5, 0.3)),
        "far_loader": make_loader(make_images(20, 6, 3)),
    }
    benchmark = Benchmark(
        test=loaders["test_loader"],
        near={"wolves": loaders["near_loader"]},
        far={"textures": loaders["far_loader"]},
        val=loaders["val_loader"],
        ood_val=loaders["ood_val_loader"],
        train=loaders["train_loader"],
    )
    network = tiny_network()
    found = {**loaders, "network": network, "images": make_images(24, 7), "benchmark": benchmark}
    return {**found, **activations(network)}


def activations(network: TinyNet) -> dict[str, Any]:
    """Return the names a, a_eps, val_a, val_a_eps, W and b of ``docs/method.md``."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        val_a, a = (network.features(make_images(count, seed)) for count, seed in ((50, 1), (24, 7)))
        val_moved, moved = ((x + 0.1 * torch.randn(x.shape, generator=generator)).relu() for x in (val_a, a))
    head = {"W": network.fc.weight.detach(), "b": network.fc.bias.detach()}
    return {"a": a, "a_eps": moved, "val_a": val_a, "val_a_eps": val_moved, **head}


def pytorch_ood_names() -> dict[str, Any]:
    """Return the names of ``docs/pytorch-ood.md``: a network with parts, loaders with pytorch-ood's labels."""
    from networks import Net, known_and_unknown

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Net().eval()
    return {
        "network": network,
        "features": network.features,
        "loader": known_and_unknown(make_images(50, 1), make_images(30, 2, 4)),
        "validation_loader": known_and_unknown(make_images(40, 3), make_images(35, 4, 0.7)),
    }


def write_folders(place: Path) -> None:
    """Write folders of images, and a network in a file, for the commands."""
    (place / "file.py").write_text(NETWORK, encoding="utf-8")
    rng = np.random.default_rng(0)
    for folder, count in (("test", 12), ("val", 12), ("ood-val", 8), ("wolves", 6), ("textures", 6)):
        for number in range(count):
            name = f"{('cat', 'dog', 'fox')[number % 3]}/{number}.png"
            picture(place / "images" / folder / name, int(rng.integers(255)), (32, 32))
    picture(place / "new" / "1.png")
    picture(place / "one.jpg")


def write_published(place: Path) -> None:
    """Write a run with the authors' results."""
    imagenet_csv(place / "results" / RESNET50 / "ood" / "adascale.csv", authors())


def write_pets(place: Path) -> None:
    """Write the images that ``docs/own-datasets.md`` describes; the page has the YAML file."""
    for split, count in (("train", 20), ("val", 4), ("test", 4), ("blurred", 2)):
        for label, name in enumerate(("cat", "dog", "old horse")):
            for number in range(count):
                picture(place / "images" / split / name / f"{number}.png", 10 + 60 * label + number, (32, 32))
    for number in range(6):
        for folder in ("ood-val", "textures", "packs"):
            picture(place / "images" / folder / f"{number}.png", 200 + number, (32, 32))
    (place / "lists").mkdir()
    (place / "lists" / "wolves.csv").write_text("path\n" + "".join(f"packs/{n}.png\n" for n in range(6)))


def write_checkout(place: Path, root: Path) -> None:
    """A small benchmark cifar10 in a copy of OpenOOD, and an untrained network where the pages have a trained one."""
    from openood_support import copy_checkout, importable, write_cifar10_benchmark

    copy_checkout(root, place)
    write_cifar10_benchmark(place / "data")
    for path in (place / "data" / "benchmark_imglist" / "cifar10").glob("*.txt"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:: len(lines) // MOST + 1]))  # of each class some
    with importable(place), torch.random.fork_rng(devices=[]):
        from openood.networks.resnet18_32x32 import ResNet18_32x32

        torch.manual_seed(0)
        weights = ResNet18_32x32(num_classes=10).state_dict()
    for name in ("cifar10_resnet18", "cifar10_resnet18_32x32_base_e100_lr0.1_default"):
        run = place / "results" / name / "s0"
        run.mkdir(parents=True)
        torch.save(weights, run / "best.ckpt")
