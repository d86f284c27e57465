"""OpenOOD's checkout, images for its benchmarks and networks for them, for tests and benchmarks alike.

OpenOOD is taken from the environment variable OPENOOD_ROOT or, failing that, from where Python finds it. The
images are scikit-learn's digits and its two sample photos, laid out under the names that OpenOOD's benchmarks give
to their data sets.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

SPLITS = (slice(0, 110), slice(110, 122), slice(140, 152))  # of each digit's images: train, val, test

Images = list[tuple[np.ndarray, int]]  # uint8 images [height, width, 3] and their labels, -1 for OOD


# --- the checkout ------------------------------------------------------------------------------------------


def find_openood() -> Path | None:
    """The checkout that holds the package `openood`, without importing it."""
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
    """A private copy of a checkout, committed, without its data and results."""
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


@contextlib.contextmanager
def importable(checkout: Path) -> Iterator[None]:
    """`openood` is the checkout's, if it is not imported yet."""
    sys.path.insert(0, str(checkout))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(checkout))


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


def write_cifar10_benchmark(data: Path, splits: tuple[slice, slice, slice] = SPLITS) -> None:
    """What OpenOOD's Evaluator and YAML files expect for CIFAR-10, with the digits 0-5 as its classes."""
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
    """The benchmark in `data`, with ten images of each class to learn from and few to judge."""
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
    """A tiny benchmark imagenet of photo patches; returns its training images."""
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
    return train
