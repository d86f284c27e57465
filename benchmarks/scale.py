"""Estimate the cost of an evaluation of many images from the cost per image on this machine.

    python benchmarks/scale.py [--network resnet50] [--workers 8] [--readers 16] [--forward-ms MS --adascale-ms MS]

Milliseconds per image of another machine, a GPU say, are taken as given. Prints Markdown.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
import torchvision
from measure import hardware, quiet, side_by_side
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision import transforms

from openood_adascale import MSP, AdaSCALE, feature_cache
from openood_adascale.memory import keep_memory

IMAGENET = {
    "OpenOOD's ImageNet-1K: 50,000 known, 87,671 OOD images": (0, 50_000 + 1_763 + 49_000 + 5_879 + 10_000 + 5_160 + 15_869),
    "the same, OptFS and BFAct learning from the 1,281,167 training images": (
        1_281_167, 50_000 + 1_763 + 49_000 + 5_879 + 10_000 + 5_160 + 15_869,
    ),
    "10^9 images, scored by AdaSCALE": (0, 10**9),
    "10^9 images, scored by methods without perturbed images": (10**9, 0),
}  # fmt: skip
"""Images that go through the network as they are, and those of which AdaSCALE takes perturbed ones, too."""
CACHED, WIDTH, CLASSES = 20_000, 2048, 1000


def decoding(repeats: int = 100) -> float:
    """Milliseconds on one core for a JPEG of 500 × 375 to become (3, 224, 224)."""
    files = []
    for photo in load_sample_images().images:
        file = io.BytesIO()
        Image.fromarray(photo).resize((500, 375)).save(file, "JPEG", quality=90)
        files.append(file)
    read = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
         transforms.Normalize([0.5] * 3, [0.25] * 3)]
    )  # fmt: skip
    times = []
    for number in range(repeats):
        start = time.perf_counter()
        read(Image.open(files[number % len(files)]).convert("RGB"))
        times.append(time.perf_counter() - start)
    return 1e3 * median(times)


def passes(name: str, precision: str, device: torch.device, repeats: int = 5) -> tuple[float, float]:
    """Milliseconds per image of a plain pass and of AdaSCALE's passes, by a GPU or by all threads of this process."""
    torch.manual_seed(0)
    network = getattr(torchvision.models, name)().eval().to(device)
    batch = 32 if device.type == "cpu" else 256
    images = torch.randn(batch, 3, 224, 224, device=device)
    plain, perturbing = MSP(network, precision=precision), AdaSCALE(network, precision=precision)
    quiet(lambda: perturbing.fit([images[:16]], progress=False))
    calls = {"plain": lambda: plain.score(images), "adascale": lambda: perturbing.score(images)}
    taken = side_by_side(calls, repeats, device)
    return 1e3 * taken["plain"] / batch, 1e3 * taken["adascale"] / batch


class Wide(nn.Module):
    """A network that costs next to nothing before an activation of 2,048 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.fc = nn.Linear(12, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.features(images.flatten(1))))


def cache() -> tuple[float, float, float]:
    """Bytes, and milliseconds to write and to read, per image."""
    torch.manual_seed(0)
    network = Wide().eval()
    loader = DataLoader(TensorDataset(torch.randn(CACHED, 3, 2, 2), torch.zeros(CACHED)), batch_size=200)

    def seconds() -> float:
        start = time.perf_counter()
        quiet(lambda: MSP(network).predict_loader(loader, False))
        return time.perf_counter() - start

    without = seconds()
    with tempfile.TemporaryDirectory() as folder, feature_cache(folder):
        writing, reading = seconds(), seconds()
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return size / CACHED, 1e3 * max(0.0, writing - without) / CACHED, 1e3 * reading / CACHED


def hours(milliseconds: float, count: int, shared_by: int) -> str:
    found = milliseconds * count / shared_by / 3.6e6
    return f"{found:,.0f}" if found >= 10 else f"{found:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50", help="of torchvision's (default: %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=8, help="GPUs, or CPUs like this (default: %(default)s)"
    )
    parser.add_argument("--readers", type=int, default=16, help="cores that decode (default: %(default)s)")
    parser.add_argument("--forward-ms", type=float, help="of another machine, in place of what is measured")
    parser.add_argument("--adascale-ms", type=float, help="the same, of AdaSCALE's passes")
    parser.add_argument("--precision", default="float32", help="of the network (default: %(default)s)")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    keep_memory()
    decode = decoding()
    size, write, read = cache()
    forward, adascale = options.forward_ms, options.adascale_ms
    if forward is None or adascale is None:
        forward, adascale = passes(options.network, options.precision, device)
    machine = hardware(torch.device("cpu")) + (f", {hardware(device)}" if device.type == "cuda" else "")
    print(f"{machine}, torch {torch.__version__}, {options.precision}; per image:\n")
    print("| step | |\n|---|---|")
    print(f"| decoding a JPEG of 500 × 375 to 224 × 224, one core | {decode:.2f} ms |")
    print(f"| {options.network}, a plain pass | {forward:.2f} ms |")
    print(f"| {options.network}, AdaSCALE's passes | {adascale:.2f} ms |")
    print(f"| cache, D = {WIDTH:,}, float32: size | {size:,.0f} bytes |")
    print(f"| cache: writing, reading and scoring by MSP | {write:.3f} ms, {read:.3f} ms |\n")
    print(
        f"| what | network, {options.workers} of them (h) | decoding, {options.readers} cores (h) | cache |"
    )
    print("|---|---|---|---|")
    for what, (plain, perturbed) in IMAGENET.items():
        network = hours(
            (forward * plain + adascale * perturbed) / (plain + perturbed),
            plain + perturbed,
            options.workers,
        )
        bytes_kept = size * (plain + 2 * perturbed) / 1e9
        print(
            f"| {what} | {network} | {hours(decode, plain + perturbed, options.readers)} | {bytes_kept:,.1f} GB |"
        )


if __name__ == "__main__":
    main()
