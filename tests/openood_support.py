"""OpenOOD for the tests: a checkout with small benchmarks and networks, custom datasets, and an imitation of it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import pickle
import shutil
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from networks import HEAD
from torch import nn
from torch.utils.data import DataLoader

from openood_adascale import Benchmark
from openood_adascale.data.files import find_images
from openood_adascale.models.transforms import transform_for

SPLITS = (slice(0, 110), slice(110, 122), slice(140, 152))  # of each digit's images: train, val, test

Images = list[tuple[np.ndarray, int]]  # uint8 images [height, width, 3] and their labels, -1 for OOD


# --- the checkout ------------------------------------------------------------------------------------------


def find_openood() -> Path | None:
    """Return the checkout that holds the package `openood`, without importing it."""
    named = os.environ.get("OPENOOD_ROOT")
    if named:
        root = Path(named).expanduser().resolve()
        if not (root / "openood" / "evaluation_api").is_dir():
            raise FileNotFoundError(f"OPENOOD_ROOT={named} is not a checkout of OpenOOD")
        return root
    spec = importlib.util.find_spec("openood")
    # Without OpenOOD, tests/openood itself would pass for a namespace package of that name.
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).resolve().parents[1]
    return root if (root / "scripts" / "eval_ood.py").is_file() else None


def copy_checkout(openood_root: Path, root: Path) -> None:
    """Copy a checkout without its data and results, and commit the copy."""
    left_out = {str(openood_root / name) for name in (".git", "data", "results", "checkpoints")}
    shutil.copytree(
        openood_root,
        root,
        ignore=lambda folder, names: [n for n in names if os.path.join(folder, n) in left_out],
    )
    git = ["git", "-c", "user.name=tests", "-c", "user.email=tests", "-C", str(root)]
    for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "as found"]):
        subprocess.run([*git, *command], check=True)


@contextlib.contextmanager
def importable(checkout: Path) -> Iterator[None]:
    """Let Python find the package `openood` in a checkout."""
    sys.path.insert(0, str(checkout))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(checkout))


# --- images ------------------------------------------------------------------------------------------------


def save_images(images: Images, data: Path, store: str, folder: str, lists: list[str]) -> None:
    """Write images as PNG to data/<store>/<folder>, and the lists of them below data/benchmark_imglist."""
    from PIL import Image

    target = data / store / folder
    target.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (image, label) in enumerate(images):
        Image.fromarray(image).save(target / f"{i:04d}.png")
        lines.append(f"{folder}/{i:04d}.png {label}\n")
    for name in lists:
        path = data / "benchmark_imglist" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))


def digit_images() -> tuple[list[Images], list[Images]]:
    """Return handwritten digits at 32x32: for 0-5 and for 6-9, a list by digit of (image, label)."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    by_digit: list[Images] = [[] for _ in range(10)]
    for pixels, label in zip(digits.images, digits.target, strict=True):
        small = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        image = np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC).convert("RGB"))
        by_digit[label].append((image, int(label) if label < 6 else -1))
    return by_digit[:6], by_digit[6:]


def photo_patches(
    n: int, seed: int, crop: int, size: int = 32, grey: bool = False, blur: float = 0.0
) -> Images:
    """Return `n` square patches of scikit-learn's two photos, `crop` pixels wide, scaled to `size`; label -1."""
    from PIL import Image, ImageFilter
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    rng = np.random.default_rng(seed)
    patches: Images = []
    for i in range(n):
        photo = photos[i % len(photos)]
        left, top = (int(rng.integers(0, side - crop + 1)) for side in photo.size)
        patch = photo.crop((left, top, left + crop, top + crop)).resize(
            (size, size), Image.Resampling.BICUBIC
        )
        if grey:
            patch = patch.convert("L").convert("RGB")
        if blur:
            patch = patch.filter(ImageFilter.GaussianBlur(blur))
        patches.append((np.asarray(patch), -1))
    return patches


def on_black(patches: Images) -> Images:
    """Return patches that fade to black at the rim, as the digits do."""
    across = np.linspace(-1, 1, patches[0][0].shape[0])
    window = np.clip(1.2 - np.hypot(across[:, None], across[None]), 0, 1)[..., None]
    return [((image * window).astype(np.uint8), label) for image, label in patches]


def corrupted(images: Images, seed: int) -> Images:
    """Return the same images, brighter and noisy."""
    rng = np.random.default_rng(seed)
    return [
        (np.clip(image * 0.9 + 20 + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8), label)
        for image, label in images
    ]


def write_cifar10_benchmark(data: Path, splits: tuple[slice, slice, slice] = SPLITS) -> None:
    """Write the files that OpenOOD's Evaluator and YAML files expect for CIFAR-10, with the digits 0-5 as its classes."""
    known, unknown = digit_images()
    # The digits are in the order of their writers, so a split by position leaves the test set unseen hands.
    train, val, test = ([item for digit in known for item in digit[part]] for part in splits)
    save_images(train, data, "images_classic", "cifar10/train", ["cifar10/train_cifar10.txt"])
    save_images(val, data, "images_classic", "cifar10/val", ["cifar10/val_cifar10.txt"])
    save_images(test, data, "images_classic", "cifar10/test", ["cifar10/test_cifar10.txt"])
    # main.py's yml has cinic10 where the Evaluator has cifar10c.
    csid = corrupted(test[::2], seed=1)
    lists = ["cifar10/test_cifar10c.txt", "cifar10/val_cinic10.txt"]
    save_images(csid, data, "images_classic", "cifar10c/test", lists)

    six, seven, eight, nine = unknown
    save_images(six[:12] + seven[:12], data, "images_classic", "cifar100", ["cifar10/test_cifar100.txt"])
    save_images(eight[:12] + nine[:12], data, "images_classic", "tin/test", ["cifar10/test_tin.txt"])
    # As in OpenOOD, the OOD validation set resembles the near sets; some of it the far ones.
    held_out = eight[30:44] + nine[30:44] + photo_patches(12, seed=2, crop=48)
    lists = ["cifar10/val_tin.txt", "cifar10/val_cifar100.txt"]
    save_images(held_out, data, "images_classic", "tin/val", lists)
    far = {
        "mnist": on_black(photo_patches(24, seed=3, crop=64, grey=True)),
        "svhn": photo_patches(24, seed=4, crop=96, blur=1.5),
        "texture": photo_patches(24, seed=5, crop=32),
        "places365": photo_patches(24, seed=6, crop=256),
    }
    for name, images in far.items():
        save_images(images, data, "images_classic", name, [f"cifar10/test_{name}.txt"])


def write_small_benchmark(data: Path, small: Path) -> None:
    """Write lists of few images of the benchmark in `data`, ten of each class for training."""
    small.mkdir()
    (small / "images_classic").symlink_to(data / "images_classic")
    source, target = (root / "benchmark_imglist" / "cifar10" for root in (data, small))
    target.mkdir(parents=True)
    lines = {path.stem: path.read_text().splitlines() for path in source.glob("*.txt")}

    def spread(name: str, n: int) -> list[str]:
        return lines[name][:: len(lines[name]) // n][:n]

    chosen = {name: spread(name, 4) for name in lines}
    chosen |= {name: spread(name, 12) for name in ("val_cifar10", "test_cifar10", "val_tin")}
    of_class: list[list[str]] = [[] for _ in range(10)]
    for line in lines["train_cifar10"]:
        of_class[int(line.split()[1])].append(line)
    # The known digits are six classes only; class statistics need some image of each of the ten. The near sets are
    # twelve images of each of the others.
    unknown = lines["test_cifar100"] + lines["test_tin"]
    for i in range(4):
        of_class[6 + i] = [line.replace(" -1", f" {6 + i}") for line in unknown[i * 12 : (i + 1) * 12]]
    chosen["train_cifar10"] = [line for of_one in of_class for line in of_one[:10]]
    for name, some in chosen.items():
        (target / f"{name}.txt").write_text("".join(f"{line}\n" for line in some))


def write_imagenet_benchmark(data: Path) -> Images:
    """Write a tiny benchmark imagenet of photo patches, and return its training images."""
    sets = {
        **{f"imagenet_1k/{split}": f"{split}_imagenet" for split in ("train", "val", "test")},
        **{f"imagenet_{shift}": f"test_imagenet_{shift}" for shift in ("v2", "c", "r", "es")},
        **{name: f"test_{name}" for name in ("ssb_hard", "ninco", "inaturalist")},
        **{f"openimage_o/{split}": f"{split}_openimage_o" for split in ("test", "val")},
        "texture/large": "test_textures",
    }
    written = {}
    for seed, (folder, name) in enumerate(sets.items()):
        known = folder.startswith("imagenet_")
        size = 224 if folder == "imagenet_c" else 256  # OpenOOD does not resize those of ImageNet-C
        patches = photo_patches(24 if folder.endswith("train") else 8, seed, 256 if known else 48, size)
        written[folder] = [(image, number % 10 if known else -1) for number, (image, _) in enumerate(patches)]
        store = "images_classic" if folder == "texture/large" else "images_largescale"
        save_images(written[folder], data, store, folder, [f"imagenet/{name}.txt"])
    return written["imagenet_1k/train"]


def cifar10_batch(data: Path, split: str) -> tuple[Any, Any]:
    """Return images of an ID split as OpenOOD's preprocessing gives them, [n, 3, 32, 32], and labels, [n]."""
    from PIL import Image

    mean, std = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]], np.float32)
    images, labels = [], []
    for line in (data / "benchmark_imglist" / "cifar10" / f"{split}_cifar10.txt").read_text().splitlines():
        name, label = line.split()
        image = np.asarray(Image.open(data / "images_classic" / name), np.float32) / 255
        images.append((image - mean) / std)
        labels.append(int(label))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def train_runs(checkout: Path, root: Path) -> None:
    """Fit two heads of a random ResNet18_32x32 to the digits, and write <root>/s0/best.ckpt and <root>/s1/best.ckpt."""
    with importable(checkout):
        from openood.networks.resnet18_32x32 import ResNet18_32x32

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        images, labels = cifar10_batch(checkout / "data", "train")
        val_images, val_labels = cifar10_batch(checkout / "data", "val")
        torch.manual_seed(0)
        net = ResNet18_32x32(num_classes=10)
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None  # the statistics are those of one batch
        net.train()(images[::3])
        net.eval()
        rows = torch.cat(
            [
                nn.functional.pad(net(part, return_feature=True)[1], (0, 1), value=1)
                for part in images.split(66)
            ]
        )
        rows = rows.double()
        wanted = 10 * nn.functional.one_hot(labels, 10).double()
        for run, ridge in (("s0", 1.0), ("s1", 10.0)):
            solution = torch.linalg.solve(rows.T @ rows + ridge * torch.eye(rows.shape[1]), rows.T @ wanted)
            net.fc.weight.copy_(solution[:-1].T)
            net.fc.bias.copy_(solution[-1])
            accuracy = (net(val_images).argmax(1) == val_labels).double().mean().item()
            assert accuracy >= 0.8, f"{accuracy:.1%} of val are right"
            (root / run).mkdir(parents=True)
            torch.save(net.state_dict(), root / run / "best.ckpt")


def write_untrained(checkout: Path, path: Path) -> None:
    """Write a tiny benchmark imagenet, and a ResNet-50 with random weights and the batch statistics of its images."""
    train = write_imagenet_benchmark(checkout / "data")
    with importable(checkout), torch.random.fork_rng(devices=[]):
        from openood.networks.resnet50 import ResNet50

        torch.manual_seed(0)
        net = ResNet50()
        net.train()
        with torch.no_grad():
            for start in (0, 12):
                batch = np.stack([image[16:240, 16:240] for image, _ in train[start : start + 12]])
                net(torch.from_numpy(batch).permute(0, 3, 1, 2) / 127.5 - 1)
    path.parent.mkdir(parents=True)
    torch.save(net.eval().state_dict(), path)


PAIRS = [[60, 70], [80, 85], [65, 95]]
ID_VAL_AND_OOD_VAL = (72, 40)  # images of write_cifar10_benchmark's sets
SWEEPS = {
    "lts": {"percentile_list": [80, 95]},
    "bfact": {"percentile_list": [80, 95], "order_list": [1, 2]},
    "optfs": {"bins_list": [20, 100], "score_list": ["vanilla", "energy"]},
}
"""Searches of the methods that are fitted on training images, if at all."""
FITTED = ("bfact", "optfs")

seen_images: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
"""Number of images that each network was given."""
LOOKED_AT = HEAD + 2
"""Images that go through a network with ``return_feature`` while its head is looked for."""


class SmallNet(torch.nn.Module):
    """Fast, with what OpenOOD's wrappers expect; counts the images it is given."""

    feature_size = 128

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(3, 32, 5, 4)
            self.fc = torch.nn.Linear(128, 10)

    @property
    def images(self) -> int:
        """Number of images that it was given."""
        return seen_images.get(self, 0)

    @images.setter
    def images(self, count: int) -> None:
        seen_images[self] = count

    def forward(self, images, return_feature=False):
        self.images += len(images)
        feature = torch.nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1)
        logits = self.fc(feature)
        return (logits, feature) if return_feature else logits

    def get_fc_layer(self):
        return self.fc


def standalone(postprocessor, loader):
    """Return the same method without OpenOOD, with the postprocessor's settings, fitted on a loader."""
    settings = {name: getattr(postprocessor.settings, name) for name in postprocessor.settings.names()}
    return postprocessor.method.detector(SmallNet().eval(), **settings).fit(loader)


def batches(count: int, seed: int) -> list:
    """A loader whose items cannot be fingerprinted."""
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return [{"data": images, "label": torch.arange(count) % 10}]


def loaders_of(images: int, seed: int) -> tuple[dict, dict]:
    return {"val": batches(images, seed), "test": batches(30, seed + 1)}, {"val": batches(20, seed + 2)}


def through_file(postprocessor, path: Path):
    """Pickle and load as eval_ood.py does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        pickle.dump(postprocessor, f, pickle.HIGHEST_PROTOCOL)
    with open(path, "rb") as f:
        return pickle.load(f)


BATCH = 64
TRANSFORM = "size=32,resize=32,mean=0.5,std=0.25"


def count_images(network, count):
    seen_images[network] = seen_images.get(network, 0) + count


class Plain(nn.Module):
    """A network without the methods that OpenOOD's postprocessors call. Counts the images that it is given."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 32, 5, 4), nn.Linear(128, 6)

    def feature(self, images):
        count_images(self, len(images))
        return nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1)

    def forward(self, images):
        return self.head(self.feature(images))


class OpenOODsWay(Plain):
    """The same network as OpenOOD's are made."""

    feature_size = 128

    @property
    def fc(self):
        return self.head

    def forward(self, images, return_feature=False):
        feature = self.feature(images)
        return (self.head(feature), feature) if return_feature else self.head(feature)

    def get_fc(self):
        return self.head.weight.detach().numpy(), self.head.bias.detach().numpy()

    def get_fc_layer(self):
        return self.head


def listed(checkout, name):
    """Return one of OpenOOD's lists in its benchmark cifar10, with its root."""
    data = checkout / "data"
    return {"images": str(data / "benchmark_imglist/cifar10" / name), "root": str(data / "images_classic")}


def places(checkout):
    """Return list and root of each set of digits."""
    sets = {"near": ("cifar100", "tin"), "far": ("mnist", "texture"), "csid": ("cifar10c",)}
    return {
        **{split: listed(checkout, f"{split}_cifar10.txt") for split in ("train", "val", "test")},
        "ood_val": listed(checkout, "val_tin.txt"),
        **{kind: {n: listed(checkout, f"test_{n}.txt") for n in names} for kind, names in sets.items()},
    }


def digits_of(checkout):
    """Return the sets as a Benchmark."""
    transform, _ = transform_for("", None, None, TRANSFORM)

    def loader(of):
        files = find_images(of["images"], root=of["root"]).with_transform(transform)
        return DataLoader(files, batch_size=BATCH)

    found = places(checkout)
    near, far, csid = (
        {name: loader(of) for name, of in found.pop(split).items()} for split in ("near", "far", "csid")
    )
    return Benchmark(near=near, far=far, covariate_shift=csid, **{k: loader(of) for k, of in found.items()})


class Scaled:
    """A transform that other processes find."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __repr__(self) -> str:
        return f"Scaled({self.by})"

    def __call__(self, image: Any) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 * self.by


def picture(path, shade=100, size=(8, 8), colour=None):
    """Save a picture of one colour and return its path."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour or (shade, 255 - shade, shade // 2)).save(path)
    return path


def write_images(folder: Path) -> None:
    """Write three classes of two images in train, val and test, and three OOD sets of one image."""
    shade = 0
    for split in ("train", "val", "test"):
        for name in ("cat", "dog", "old horse"):
            for number in range(2):
                shade += 7
                picture(folder / "images" / split / name / f"{number}.png", shade)
    for number, name in enumerate(("birds", "textures", "unknown val")):
        picture(folder / "images" / name / "a 1.png", 200 + 10 * number)


def description() -> dict[str, Any]:
    """Describe the images of :func:`write_images`, with relative paths."""
    return {
        "name": "mine",
        "classes": 3,
        "preprocessing": "cifar10",
        "id": {split: f"images/{split}" for split in ("train", "val", "test")},
        "ood": {
            "val": "images/unknown val",
            "near": {"birds": "images/birds"},
            "far": {"textures": "images/textures"},
        },
    }


def write_description(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def openood_description(checkout):
    """Describe OpenOOD's cifar10 under another name."""
    found = places(checkout)
    far = {name: listed(checkout, f"test_{name}.txt") for name in ("mnist", "svhn", "texture", "places365")}
    return {
        "name": "my-digits",
        "classes": 10,
        "preprocessing": "cifar10",
        "id": {split: found[split] for split in ("train", "val", "test")},
        "csid": found["csid"],
        "ood": {"val": found["ood_val"], "near": found["near"], "far": far},
    }


ROOT = Path(__file__).resolve().parents[1]
Run = Callable[..., subprocess.CompletedProcess]

FAKE = {
    "__init__.py": "",
    "evaluation_api/__init__.py": "from .evaluator import Evaluator\n",
    "evaluation_api/evaluator.py": """
        from openood.postprocessors import BasePostprocessor
        from .datasets import DATA_INFO, data_setup, get_id_ood_dataloader
        from .postprocessor import get_postprocessor
        from .preprocessor import get_default_preprocessor

        class Evaluator:
            def __init__(self, name, id_name='cifar10', preprocessor=None):
                if id_name not in DATA_INFO:
                    raise ValueError('not supported')
                preprocessor = preprocessor or get_default_preprocessor(id_name)
                self.id_name = id_name
                self.postprocessor = get_postprocessor('configs', name, id_name)
                data_setup('data', id_name)
                self.dataloader_dict = get_id_ood_dataloader(id_name, 'data', preprocessor, batch_size=2)

            def eval_ood(self, *args, **kwargs):
                raise NotImplementedError

            eval_acc = hyperparam_search = _classifier_inference = eval_ood
        """,
    "evaluation_api/datasets.py": """
        from .preprocessor import get_default_preprocessor

        DATA_INFO = {'cifar10': {'num_classes': 10}}

        def data_setup(data_root, id_data_name):
            print('downloaded', id_data_name)

        def get_id_ood_dataloader(id_name, data_root, preprocessor, **loader_kwargs):
            return id_name
        """,
    "evaluation_api/preprocessor.py": """
        default_preprocessing_dict = {'cifar10': {'normalization': [[0.4, 0.5, 0.6], [0.2, 0.2, 0.3]]}}

        class Preset:
            mean, std = default_preprocessing_dict['cifar10']['normalization']

            def __call__(self, image):
                import numpy, torch
                return torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255

        def get_default_preprocessor(data_name, att=False):
            if data_name not in default_preprocessing_dict:
                raise NotImplementedError
            return Preset()
        """,
    "evaluation_api/postprocessor.py": """
        import os
        from openood.postprocessors import BasePostprocessor

        postprocessors = {'msp': BasePostprocessor}

        def get_postprocessor(config_root, postprocessor_name, id_data_name):
            path = os.path.join(config_root, 'postprocessors', f'{postprocessor_name}.yml')
            if not os.path.exists(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                open(path, 'w').write('downloaded')
            return postprocessors[postprocessor_name](path)
        """,
    "postprocessors/__init__.py": """
        from .base import BasePostprocessor
        from .utils import get_postprocessor
        """,
    "postprocessors/base.py": """
        class BasePostprocessor:
            def __init__(self, config):
                self.config = config

            def setup(self, net, id_loader_dict, ood_loader_dict):
                pass

            def inference(self, net, data_loader, progress=True):
                pass
        """,
    "postprocessors/info.py": "num_classes_dict = {'cifar10': 10}\n",
    "preprocessors/__init__.py": "",
    "preprocessors/transform.py": "normalization_dict = {'cifar10': [[0.4], [0.2]]}\n",
    "postprocessors/utils.py": """
        from openood.preprocessors.transform import normalization_dict
        from .base import BasePostprocessor
        from .info import num_classes_dict

        def get_postprocessor(config):
            postprocessors = {'msp': BasePostprocessor}
            return postprocessors[config.postprocessor.name](config)
        """,
    "pipelines.py": "from openood.postprocessors import get_postprocessor\n",
}

# Before anything else: classes of ours that do not need the real OpenOOD.
OURS = """
import sys, types
ours = sys.modules['openood_adascale.plugin.postprocessor'] = types.ModuleType('openood_adascale.plugin.postprocessor')
class Ours:
    def __init__(self, config):
        self.config = config
ours.POSTPROCESSORS = {'adascale': Ours}
def config(name):
    return types.SimpleNamespace(postprocessor=types.SimpleNamespace(name=name))
"""

AUTOLOAD = "import openood_adascale_autoload; openood_adascale_autoload.autoload()"

REGISTER = "import openood_adascale; openood_adascale.register()"

CHECK = """
import tabnanny  # any import: what was half-initialised is looked at again
import os, openood.evaluation_api as api, openood.postprocessors as pp, openood.pipelines
from openood.evaluation_api import evaluator, postprocessor
assert postprocessor.postprocessors['adascale'] is Ours
assert evaluator.get_postprocessor is postprocessor.get_postprocessor
assert not hasattr(postprocessor.get_postprocessor.__wrapped__, '__wrapped__')
found = api.Evaluator('adascale').postprocessor
assert type(found) is Ours
assert found.yaml_name == 'adascale'
assert os.path.isfile(found.config), 'the packaged yml'
assert not os.path.exists('configs'), 'written into the user\\'s tree'
assert pp.get_postprocessor is pp.utils.get_postprocessor is openood.pipelines.get_postprocessor
assert type(pp.get_postprocessor(config('adascale'))) is Ours
assert type(pp.get_postprocessor(config=config('msp'))) is pp.BasePostprocessor
assert type(api.Evaluator('msp').postprocessor) is pp.BasePostprocessor
assert os.path.exists('configs/postprocessors/msp.yml')
"""

UNREGISTERED = """
import openood.pipelines
from openood.evaluation_api import postprocessor
assert list(postprocessor.postprocessors) == ['msp']
assert not hasattr(postprocessor.get_postprocessor, '__wrapped__')
assert not hasattr(openood.pipelines.get_postprocessor, '__wrapped__')
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    for name, text in FAKE.items():
        path = tmp_path / "fake" / "openood" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dedent(text))
    return tmp_path / "fake" / "openood"


@pytest.fixture
def run(fake: Path, tmp_path: Path) -> Run:
    """run(*code): run code in a fresh process that finds the imitation of OpenOOD."""

    def call(*code: str, ours: bool = True, **variables: str) -> subprocess.CompletedProcess:
        path = os.pathsep.join([str(fake.parent), str(ROOT), os.environ.get("PYTHONPATH", "")])
        env = {k: v for k, v in os.environ.items() if not k.startswith("OPENOOD_")}
        script = tmp_path / "script.py"
        script.write_text("\n".join([OURS if ours else "", *map(dedent, code)]))
        env |= {"PYTHONPATH": path} | variables
        command = [sys.executable, str(script)]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, timeout=120, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done

    return call
