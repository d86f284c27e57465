"""Fixtures for the tests against the real OpenOOD: a private checkout of it, data, checkpoints, its scripts.

OpenOOD is taken from the environment variable OPENOOD_ROOT or, failing that, from where Python finds it; with
neither, these tests are skipped. The checkout that is found is only read. The images are scikit-learn's
digits and its two sample photos, laid out under the names that OpenOOD's benchmarks give to their data sets.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

NO_OPENOOD = "OpenOOD is not there: set OPENOOD_ROOT to a checkout of it"

SPLITS = (slice(0, 110), slice(110, 122), slice(140, 152))  # of each digit's images: train, val, test

Images = list[tuple[np.ndarray, int]]  # uint8 images [height, width, 3] and their labels, -1 for OOD


# --- the checkout ------------------------------------------------------------------------------------------


def find_openood() -> Path | None:
    """The checkout that holds the package `openood`, without importing it."""
    named = os.environ.get("OPENOOD_ROOT")
    if named:
        root = Path(named).expanduser().resolve()
        if not (root / "openood" / "evaluation_api").is_dir():
            pytest.fail(f"OPENOOD_ROOT={named} is not a checkout of OpenOOD", pytrace=False)
        return root
    spec = importlib.util.find_spec("openood")
    # Without OpenOOD, tests/openood itself would pass for a namespace package of that name.
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).resolve().parents[1]
    return root if (root / "scripts" / "eval_ood.py").is_file() else None


@pytest.fixture(scope="session")
def openood_root() -> Path:
    """The user's own checkout: only to be read. Skips where there is none."""
    root = find_openood()
    if root is None:
        pytest.skip(NO_OPENOOD)
    return root


@pytest.fixture(autouse=True)
def _openood_importable(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every test here `openood` is the private checkout's, in this process and in those it starts."""
    monkeypatch.syspath_prepend(str(checkout))
    monkeypatch.setenv("PYTHONPATH", python_path(checkout))
    # The networks of these tests are on the CPU, wherever they run.
    monkeypatch.setenv("OPENOOD_DEVICE", "cpu")


def python_path(checkout: Path) -> str:
    return os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))


@contextlib.contextmanager
def importable(checkout: Path) -> Iterator[None]:
    """For session fixtures, which run before `_openood_importable`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(checkout))
        yield


@pytest.fixture(scope="session")
def checkout(openood_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private copy of the checkout, with `data/` laid out for the benchmark cifar10.

    OpenOOD's .gitignore names data/ and results/, so `git status --porcelain` is empty until a script changes
    the checkout itself.
    """
    # eval_ood.py takes another network if 'csi' or 'udg' occurs in the path of the runs.
    root = tmp_path_factory.mktemp("bench") / "OpenOOD"
    cloned = (openood_root / ".git").exists() and not subprocess.run(
        ["git", "clone", "--quiet", "--no-hardlinks", str(openood_root), str(root)],
        capture_output=True,
        check=False,
    ).returncode
    if not cloned:
        shutil.rmtree(root, ignore_errors=True)
        left_out = {str(openood_root / name) for name in ("data", "results", "checkpoints")}
        shutil.copytree(
            openood_root,
            root,
            ignore=lambda folder, names: [n for n in names if os.path.join(folder, n) in left_out],
        )
    if not (root / ".git").exists():
        git = ["git", "-c", "user.name=tests", "-c", "user.email=tests", "-C", str(root)]
        for command in (["init", "--quiet"], ["add", "."], ["commit", "--quiet", "--message", "as found"]):
            subprocess.run([*git, *command], check=True)
    write_cifar10_benchmark(root / "data")
    return root


# --- images ------------------------------------------------------------------------------------------------


def save_images(images: Images, data: Path, store: str, folder: str, lists: list[str]) -> None:
    """Writes images as PNG to data/<store>/<folder>, and the lists of them below data/benchmark_imglist."""
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
    """Handwritten digits at 32x32: for 0-5 and for 6-9, a list by digit of (image, label)."""
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
    """`n` square patches of scikit-learn's two photos, `crop` pixels wide, scaled to `size`; label -1."""
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
    """Patches that fade to black at the rim, as the digits do: harder to tell from them."""
    across = np.linspace(-1, 1, patches[0][0].shape[0])
    window = np.clip(1.2 - np.hypot(across[:, None], across[None]), 0, 1)[..., None]
    return [((image * window).astype(np.uint8), label) for image, label in patches]


def corrupted(images: Images, seed: int) -> Images:
    """The same images, brighter and noisy."""
    rng = np.random.default_rng(seed)
    return [
        (np.clip(image * 0.9 + 20 + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8), label)
        for image, label in images
    ]


def write_cifar10_benchmark(data: Path) -> None:
    """What OpenOOD's Evaluator and YAML files expect for CIFAR-10, with the digits 0-5 as its classes."""
    known, unknown = digit_images()
    # The digits are in the order of their writers, so a split by position leaves the test set unseen hands.
    train, val, test = ([item for digit in known for item in digit[part]] for part in SPLITS)
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


@pytest.fixture(scope="session")
def imagenet_checkpoint(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adds a tiny benchmark imagenet to the checkout's data; returns a ResNet-50 for it as `--ckpt-path`.

    The network is untrained (only its batch norms have seen images), so its figures mean nothing.
    """
    import torch

    data = checkout / "data"
    store = "images_largescale"

    def patches(n: int, seed: int, crop: int, size: int = 256) -> Images:
        return photo_patches(n, seed, crop, size)

    def labelled(images: Images) -> Images:
        return [(image, i % 10) for i, (image, _) in enumerate(images)]

    digits = [(image.repeat(8, 0).repeat(8, 1), -1) for image, _ in digit_images()[1][0][:8]]
    train = labelled(patches(24, seed=11, crop=256))
    save_images(train, data, store, "imagenet_1k/train", ["imagenet/train_imagenet.txt"])
    val = labelled(patches(10, seed=12, crop=256))
    save_images(val, data, store, "imagenet_1k/val", ["imagenet/val_imagenet.txt"])
    test = labelled(patches(10, seed=13, crop=256))
    save_images(test, data, store, "imagenet_1k/test", ["imagenet/test_imagenet.txt"])
    for i, version in enumerate(("v2", "c", "r", "es")):
        # OpenOOD does not resize those of ImageNet-C.
        images = labelled(patches(4, seed=14 + i, crop=256, size=224))
        save_images(images, data, store, f"imagenet_{version}", [f"imagenet/test_imagenet_{version}.txt"])
    for i, name in enumerate(("ssb_hard", "ninco", "inaturalist")):
        images = patches(8, seed=20 + i, crop=(64, 32, 128)[i])
        save_images(images, data, store, name, [f"imagenet/test_{name}.txt"])
    save_images(digits[4:], data, store, "openimage_o/test", ["imagenet/test_openimage_o.txt"])
    ood_val = patches(6, seed=24, crop=64) + digits[:4]
    save_images(ood_val, data, store, "openimage_o/val", ["imagenet/val_openimage_o.txt"])
    textures = patches(8, seed=25, crop=48)
    save_images(textures, data, "images_classic", "texture/large", ["imagenet/test_textures.txt"])

    with importable(checkout), torch.random.fork_rng(devices=[]):
        from openood.networks.resnet50 import ResNet50

        torch.manual_seed(0)
        net = ResNet50()
        net.train()
        with torch.no_grad():
            for start in (0, 12):
                batch = np.stack([image[16:240, 16:240] for image, _ in train[start : start + 12]])
                net(torch.from_numpy(batch).permute(0, 3, 1, 2) / 127.5 - 1)
    path = checkout / "results" / "patches_resnet50" / "best.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(net.eval().state_dict(), path)
    return path


# --- networks ----------------------------------------------------------------------------------------------


def cifar10_batch(data: Path, split: str) -> tuple[Any, Any]:
    """Images of an ID split as OpenOOD's preprocessing gives them, [n, 3, 32, 32], and labels, [n]."""
    import torch
    from PIL import Image

    mean, std = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]], np.float32)
    images, labels = [], []
    for line in (data / "benchmark_imglist" / "cifar10" / f"{split}_cifar10.txt").read_text().splitlines():
        name, label = line.split()
        image = np.asarray(Image.open(data / "images_classic" / name), np.float32) / 255
        images.append((image - mean) / std)
        labels.append(int(label))
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), torch.tensor(labels)


def train_digits(net: Any, images: Any, labels: Any, steps: int, learning_rate: float) -> None:
    """Trains in place on random batches of 32; leaves the network in eval mode."""
    import torch
    from torch.nn import functional as F

    # bfloat16 halves the time or better where the processor has it, and is slower where not.
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    has_bf16 = bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))
    optimizer = torch.optim.SGD(
        net.parameters(), learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    net.train().to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3  # in so few steps the default leaves the running statistics behind
    for chosen in torch.randint(len(images), (steps, 32)):
        batch = images[chosen].to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16):
            loss = F.cross_entropy(net(batch), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval().to(memory_format=torch.contiguous_format)


@pytest.fixture(scope="session")
def checkpoint_root(checkout: Path, request: pytest.FixtureRequest) -> Path:
    """`--root` for eval_ood.py: two training runs, s0 and s1 (the same network, trained a little further).

    They are trained once and then kept in pytest's cache, until this file or torch is another.
    """
    import torch

    root = checkout / "results" / "digits_resnet18_32x32"
    cache = getattr(request.config, "cache", None)
    if cache is None:  # -p no:cacheprovider
        train_runs(checkout, root)
        return root
    recipe = hashlib.sha256(Path(__file__).read_bytes() + torch.__version__.encode()).hexdigest()[:16]
    kept = cache.mkdir("digits_resnet18_32x32") / recipe
    if not kept.is_dir():
        for outdated in kept.parent.iterdir():
            shutil.rmtree(outdated, ignore_errors=True)
        train_runs(checkout, root)
        # Under its name only when complete: another session may be looking.
        unfinished = Path(tempfile.mkdtemp(dir=kept.parent))
        shutil.copytree(root, unfinished, dirs_exist_ok=True)
        with contextlib.suppress(OSError):
            unfinished.rename(kept)
    else:
        shutil.copytree(kept, root)
    return root


def train_runs(checkout: Path, root: Path) -> None:
    """Trains on the digits, and writes <root>/s0/best.ckpt and <root>/s1/best.ckpt."""
    import torch

    with importable(checkout), torch.random.fork_rng(devices=[]):
        from openood.networks.resnet18_32x32 import ResNet18_32x32

        images, labels = cifar10_batch(checkout / "data", "train")
        val_images, val_labels = cifar10_batch(checkout / "data", "val")

        def accuracy() -> float:
            with torch.no_grad():
                return (net(val_images).argmax(1) == val_labels).double().mean().item()

        torch.manual_seed(0)
        net = ResNet18_32x32(num_classes=10)
        for run, steps, learning_rate in (("s0", 40, 0.03), ("s1", 14, 0.01)):
            train_digits(net, images, labels, steps, learning_rate)
            # How far these steps lead is another matter on another processor.
            for _ in range(3):
                if accuracy() > 0.95:
                    break
                train_digits(net, images, labels, 14, 0.01)
            else:
                pytest.fail(
                    f"the network that these tests stand on was not learnt: {accuracy():.1%} of val right"
                )
            (root / run).mkdir(parents=True)
            torch.save(net.state_dict(), root / run / "best.ckpt")


@pytest.fixture(scope="session")
def digits_net(checkout: Path, checkpoint_root: Path) -> Callable[..., Any]:
    """digits_net(run="s0"): a fresh ResNet18_32x32 with that run's weights, in eval mode, on the CPU."""
    import torch

    def load(run: str = "s0") -> torch.nn.Module:
        with importable(checkout):
            from openood.networks.resnet18_32x32 import ResNet18_32x32

        net = ResNet18_32x32(num_classes=10)
        net.load_state_dict(torch.load(checkpoint_root / run / "best.ckpt", map_location="cpu"))
        return net.eval()

    return load


@pytest.fixture
def run_root(checkpoint_root: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A `--root` of this test's own, holding the runs of `checkpoint_root`.

    eval_ood.py keeps postprocessors, scores and tables below its root and takes them up in the next run. For
    one run alone: `@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)`.
    """
    slug = "".join(c if c.isalnum() else "_" for c in request.node.name)
    # See `checkout` for the two words that must not occur.
    root = checkpoint_root.parent / f"run_{slug}".replace("csi", "c_si").replace("udg", "u_dg")
    for run in getattr(request, "param", ("s0", "s1")):
        (root / run).mkdir(parents=True)
        shutil.copyfile(checkpoint_root / run / "best.ckpt", root / run / "best.ckpt")
    yield root
    shutil.rmtree(root)


# --- OpenOOD's ways in -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def evaluator_kwargs(checkout: Path) -> dict[str, Any]:
    """Keyword arguments of `openood.evaluation_api.Evaluator`, but for the network and the postprocessor."""
    return {
        "id_name": "cifar10",
        "data_root": str(checkout / "data"),
        "config_root": str(checkout / "configs"),
        "num_workers": 0,
    }


@pytest.fixture
def make_evaluator(digits_net: Callable[..., Any], evaluator_kwargs: dict[str, Any]) -> Callable[..., Any]:
    """make_evaluator("msp", net=None, **kwargs) -> Evaluator, of a fresh `digits_net()` if net is None."""

    def make(postprocessor_name: str | None = None, net: Any = None, **kwargs: Any) -> Any:
        from openood.evaluation_api import Evaluator

        net = digits_net() if net is None else net
        return Evaluator(net, postprocessor_name=postprocessor_name, **{**evaluator_kwargs, **kwargs})

    return make


@pytest.fixture(scope="session")
def run_script(checkout: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """run_script(args, env=None, timeout=600, check=True): `python <args>` in the private checkout.

    `env` is added to the environment. If the script fails, so does the test, with the end of its output,
    unless `check` is False.
    """

    def run(
        args: list[str], env: dict[str, str] | None = None, timeout: float = 600, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *map(str, args)]
        full_env = {**os.environ, "PYTHONPATH": python_path(checkout), **(env or {})}
        try:
            done = subprocess.run(
                command,
                cwd=checkout,
                env=full_env,
                capture_output=True,
                text=True,
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired as late:
            pytest.fail(f"{command} took more than {timeout} s\n{_tail(late.stdout)}\n{_tail(late.stderr)}")
        if check and done.returncode:
            pytest.fail(f"{command} gave {done.returncode}\n{_tail(done.stdout)}\n{_tail(done.stderr)}")
        return done

    return run


def _tail(output: str | bytes | None, n: int = 4000) -> str:
    text = output.decode(errors="replace") if isinstance(output, bytes) else output or ""
    return text[-n:]


@pytest.fixture(scope="session")
def main_args(checkout: Path, checkpoint_root: Path) -> Callable[..., list[str]]:
    """main_args("configs/postprocessors/ash.yml", *overrides, mark="0", fsood=False): for run_script.

    As OpenOOD's scripts/ood/*/cifar10_test_ood_*.sh call main.py, with the run s0 of `checkpoint_root`.
    `overrides` are more command line arguments ("--postprocessor.postprocessor_args.percentile", "80"). The
    table comes to `results/*_<mark>/s0/ood/ood.csv` below the checkout, where every run appends to it.
    """

    def build(
        postprocessor_yml: str | Path, *overrides: str, mark: str = "0", fsood: bool = False
    ) -> list[str]:
        scheme = "fsood" if fsood else "ood"
        return [
            "main.py",
            "--config",
            "configs/datasets/cifar10/cifar10.yml",
            f"configs/datasets/cifar10/cifar10_{scheme}.yml",
            "configs/networks/resnet18_32x32.yml",
            f"configs/pipelines/test/test_{scheme}.yml",
            "configs/preprocessors/base_preprocessor.yml",
            str(postprocessor_yml),
            "--num_workers",
            "0",
            "--network.checkpoint",
            str((checkpoint_root / "s0" / "best.ckpt").relative_to(checkout)),
            "--mark",
            mark,
            # The default asks at the terminal where the folder is there already.
            "--merge_option",
            "merge",
            *overrides,
        ]

    return build
