"""Fills the table of benchmarks/RESULTS.md: this package side by side with OpenOOD's own `adascale_a`.

    python benchmarks/run.py [--val 200] [--ood-val 100] [--repeats 5] [--only ROW ...]

Images are scikit-learn's digits and photos. OpenOOD is found as the tests find it (`import openood` or OPENOOD_ROOT);
without it, the rows that need it are left out. Needs the extras `test`, and `openood` for those rows.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import datetime
import importlib.util
import io
import json
import os
import pickle
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from openood_adascale import AdaSCALE, functional
from openood_adascale.encode import Encoded, Perturbation, fastest_precision
from openood_adascale.evaluation import ood_metrics
from openood_adascale.evidence import Evidence, Plan
from openood_adascale.models import Head
from openood_adascale.settings import candidates

HERE = Path(__file__).resolve().parent
BATCH = 200
PERCENTILES = AdaSCALE.default_sweep["percentile_list"]


def fixtures() -> Any:
    """The tests' data and training, and where they find OpenOOD."""
    spec = importlib.util.spec_from_file_location(
        "openood_fixtures", HERE.parent / "tests/openood/conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def side_by_side(calls: dict[str, Callable[[], Any]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, in turn, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in tqdm(range(repeats + 1), leave=False):
        for name, call in calls.items():
            taken = seconds(call, device)
            if number:
                times[name].append(taken)
    return {name: median(values) for name, values in times.items()}


def quiet(call: Callable[[], Any]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return call()


class Table:
    """Rows of what was measured against what; printed at once, written at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []

    def add(self, what: str, measured: str, target: str = "", met: bool | None = None) -> None:
        verdict = "" if met is None else ("yes" if met else "**no**")
        self.rows.append((what, measured, target, verdict))
        print(f"  {what}: {measured}" + (f"  [{target}: {verdict}]" if target else ""), flush=True)

    def markdown(self) -> str:
        head = "| what | measured | target | met |\n|---|---|---|---|\n"
        return head + "".join("| " + " | ".join(row) + " |\n" for row in self.rows)


# --- the rows ------------------------------------------------------------------------------------------------


def scoring(table: Table, network: nn.Module, images: torch.Tensor, repeats: int, theirs: Any) -> None:
    """Scoring a batch against one plain float32 forward pass of it, as OpenOOD's MSP runs it."""
    device = images.device

    def plain() -> None:
        with torch.no_grad():
            network(images).softmax(1).max(1)

    variants = {
        "float32": {},
        "bfloat16": {"precision": "bfloat16"},
        "random pixels, float32": {"pixels": "random"},
        "random pixels, bfloat16": {"pixels": "random", "precision": "bfloat16"},
    }
    detectors = {
        name: AdaSCALE(network, **v).fit([images[:100]], progress=False) for name, v in variants.items()
    }
    calls = {"plain": plain, **{n: (lambda d=d: d.score(images)) for n, d in detectors.items()}}
    if theirs is not None:
        calls["adascale_a"] = lambda: theirs.postprocess(theirs.net, images.clone())
    found = side_by_side(calls, repeats, device)
    targets = {"float32": 2.8, "bfloat16": 0.8, "random pixels, float32": 1.8}
    kind = (
        "ResNet-18, 32×32" if images.shape[-1] == 32 else f"ResNet-50, {images.shape[-1]}×{images.shape[-1]}"
    )
    for name in [n for n in found if n != "plain"]:
        ratio = found[name] / found["plain"]
        target = targets.get(name)
        table.add(
            f"scoring {len(images)} images, {name} ({kind})",
            f"{ratio:.2f} × a plain float32 forward pass ({found['plain']:.2f} s)",
            f"≤ {target} ×" if target else "",
            None if target is None else ratio <= target,
        )


def outside_the_network(table: Table, repeats: int, device: torch.device) -> None:
    """Pixels, sorting, statistics, CDF and energy against a ResNet-50's forward pass."""
    from torchvision.models import resnet50

    network = resnet50().eval().to(device)
    images = torch.randn(32, 3, 224, 224, device=device)
    gradient, activation = torch.randn_like(images), torch.randn(32, 2048, device=device).relu()
    perturbation = Perturbation("trivial", 0.05, 0.5)
    head = Head(network.fc.weight.detach(), network.fc.bias.detach())
    detector = AdaSCALE(network)
    detector.state = torch.rand(5000, dtype=torch.float64).mul(100).sort().values
    encoded = Encoded(activation @ head.weight.T, activation, {perturbation: activation + 0.1}, head)

    def plain() -> None:
        with torch.no_grad():
            network(images)

    def ours() -> None:
        images + 0.5 * functional.perturbation_direction(gradient, 0.05, "trivial")
        detector.judge(Evidence.of(encoded, detector.settings.plan()), detector.settings, detector.state)

    found = side_by_side({"plain": plain, "ours": ours}, repeats, device)
    share = 100 * found["ours"] / found["plain"]
    table.add(
        "everything outside the network (ResNet-50, 224×224, batch 32)",
        f"{share:.2f} % of a forward pass ({1000 * found['ours']:.1f} ms)",
        "≤ 3 %",
        share <= 3,
    )


def factors(table: Table, repeats: int, device: torch.device) -> None:
    """r with a percentile per image against the fixed-percentile factor written with one topk."""
    for size in (128, 512, 1024, 2048, 3024):
        activation = torch.randn(BATCH, size, device=device).relu()
        percentiles = torch.empty(BATCH, dtype=torch.float64, device=device).uniform_(80, 85)
        kept = size - round(size * 85 / 100)

        def fixed(activation=activation, kept=kept) -> None:
            for _ in range(50):
                activation.sum(1) / activation.topk(kept, dim=1).values.sum(1)

        def ours(activation=activation, percentiles=percentiles) -> None:
            for _ in range(50):
                functional.scaling_factor(activation, percentiles)

        found = side_by_side({"fixed": fixed, "ours": ours}, max(repeats, 7), device)
        ratio = found["ours"] / found["fixed"]
        table.add(
            f"r with a percentile per image, D = {size}, batch {BATCH}",
            f"{ratio:.2f} × one topk at a fixed percentile ({found['fixed'] / 50 * 1e6:.0f} µs)",
            "≤ 1.5 ×",
            ratio <= 1.5,
        )


def many_candidates(
    table: Table, network: nn.Module, val: DataLoader, ood_val: DataLoader
) -> dict[int, float]:
    """A search with more and more candidates against itself with one, OpenOOD's metrics left out."""
    sweeps: dict[int, dict[str, list[Any]]] = {
        1: {"percentile_list": PERCENTILES[:1]},
        36: {"percentile_list": PERCENTILES},
        216: {"percentile_list": PERCENTILES, "k2_list": [1, 5, 10, 20, 50, 100]},
        1000: {
            "percentile_list": PERCENTILES[:25],
            "k1_list": [1, 5],
            "k2_list": [5, 10, 50, 100],
            "lmbda_list": [0, 1, 5, 10, 100],
        },
    }
    taken = {}
    for number, sweep in sweeps.items():
        detector = AdaSCALE(network)
        tried = candidates(detector.settings, sweep)
        plan = Plan.union(settings.plan() for settings in tried)
        start = time.perf_counter()
        known, unknown = (detector.collect(loader, plan, False)[0] for loader in (val, ood_val))
        passed = time.perf_counter() - start
        for settings in tqdm(tried, leave=False):
            state = detector.learn(known, settings)
            for evidence in (known, unknown):
                detector.judge(evidence, settings, state)
        # The pass is the same for all; its scatter between runs must not hide what the candidates add.
        taken[number] = (passed, time.perf_counter() - start - passed)
    one_pass = median(passed for passed, _ in taken.values())
    whole = {number: one_pass + arithmetic for number, (_, arithmetic) in taken.items()}
    for number, limit in ((36, 1.1), (216, 1.2), (1000, 1.5)):
        ratio = whole[number] / whole[1]
        table.add(
            f"search with {number} candidates",
            f"{ratio:.3f} × with one ({1000 * taken[number][1] / number:.1f} ms a candidate)",
            f"≤ {limit} ×",
            ratio <= limit,
        )
    return whole


def evidence_size(table: Table) -> None:
    """Evidence of 50,000 images with D = 2,048 and C = 1,000 for the joint search."""
    sweep = yaml.safe_load((HERE.parent / "configs/postprocessors/adascale_joint.yml").read_text())
    tried = candidates(AdaSCALE.settings_class(), sweep["postprocessor"]["postprocessor_sweep"])
    plan = Plan.union(settings.plan() for settings in tried)
    head, parts = Head(torch.zeros(1000, 2048), torch.zeros(1000)), []
    for _ in tqdm(range(50), leave=False):
        activation = torch.rand(1000, 2048)
        perturbed = dict.fromkeys(plan.perturbations, activation)
        parts.append(Evidence.of(Encoded(torch.zeros(1000, 1000), activation, perturbed, head), plan).cpu())
    evidence = Evidence.cat(parts)
    tensors = [
        evidence.logits,
        evidence.total,
        evidence.kept,
        *evidence.shift.values(),
        *evidence.correction.values(),
    ]
    size = sum(t.numel() * t.element_size() for t in tensors) / 1e9
    table.add(
        f"Evidence of 50,000 images, D = 2,048, C = 1,000, {len(tried)} candidates",
        f"{size:.2f} GB",
        "≤ 2 GB",
        size <= 2,
    )


def agreement(table: Table, network: nn.Module, benchmark: Any) -> None:
    """AUROC of bfloat16 and random pixels against float32 with trivial pixels, on every OOD set."""
    images = lambda loader: torch.cat([batch[0] for batch in loader])  # noqa: E731
    known, val = images(benchmark["test"]), images(benchmark["val"])
    for name, changes in (("bfloat16", {"precision": "bfloat16"}), ("random pixels", {"pixels": "random"})):
        differences = {}
        for ood_name, loader in benchmark["ood"].items():
            aurocs = []
            for setting in ({}, changes):
                detector = AdaSCALE(network, **setting).fit([val], progress=False)
                scores = (detector.score(known).numpy(), detector.score(images(loader)).numpy())
                aurocs.append(ood_metrics(*scores)["AUROC"])
            differences[ood_name] = aurocs[1] - aurocs[0]
        worst = max(abs(value) for value in differences.values())
        listed = ", ".join(f"{ood_name} {value:+.2f}" for ood_name, value in differences.items())
        table.add(
            f"AUROC of {name} minus float32 with trivial pixels, points", listed, "within ± 0.3", worst <= 0.3
        )


def peak_memory(which: str, checkpoint: str) -> None:
    """In a process of its own: prints how far scoring one batch raises the peak, in MB."""
    from openood.networks import ResNet18_32x32
    from openood.networks.adascale_net import AdaScaleANet

    network = ResNet18_32x32(num_classes=10)
    network.load_state_dict(torch.load(checkpoint))
    network.eval()
    images = torch.randn(BATCH, 3, 32, 32)
    if which == "adascale_a":
        postprocessor = their_postprocessor()
        network = AdaScaleANet(network)
        call = lambda: postprocessor.postprocess(network, images)  # noqa: E731
        quiet(lambda: postprocessor.setup(network, {"val": [{"data": images[:8].clone()}]}, {}))
        postprocessor.set_hyperparam([[80, 85], 5, 1, 10, 0.05])
    else:
        detector = AdaSCALE(network, precision=which).fit([images[:8]], progress=False)
        call = lambda: detector.score(images)  # noqa: E731
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew here; Linux only
    before = resident("VmRSS")
    call()
    print(json.dumps(resident("VmHWM") - before))


def resident(what: str) -> float:
    """MB that this process holds (VmRSS) or has held at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def their_postprocessor() -> Any:
    import openood
    from openood.evaluation_api.postprocessor import get_postprocessor

    return get_postprocessor(str(Path(openood.__file__).parents[1] / "configs"), "adascale_a", "cifar10")


def memory(table: Table, checkpoint: Path) -> None:
    found = {}
    for which in ("adascale_a", "float32", "bfloat16"):
        command = [sys.executable, __file__, "--peak-memory", which, str(checkpoint)]
        done = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
        found[which] = median(float(output.splitlines()[-1]) for output in done)
    for which in ("float32", "bfloat16"):
        ratio = found[which] / found["adascale_a"]
        table.add(
            f"peak memory of scoring a batch of {BATCH}, {which}",
            f"{ratio:.2f} × adascale_a ({found[which]:.0f} of {found['adascale_a']:.0f} MB)",
            "≤ 0.8 ×" if which == "float32" else "",
            ratio <= 0.8 if which == "float32" else None,
        )


def whole_search(table: Table, network: nn.Module, data: Path, sizes: str) -> dict[str, float]:
    """OpenOOD's Evaluator with its 36 candidates, loaders included; and the pickles."""
    import openood
    from openood.evaluation_api import Evaluator

    from openood_adascale.plugin import configs_root

    configs = Path(openood.__file__).parents[1] / "configs"
    taken, pickles = {}, {}
    ours = yaml.safe_load((configs_root() / "postprocessors/adascale.yml").read_text())
    for name in ("float32", "bfloat16", "adascale_a"):
        with tempfile.TemporaryDirectory() as folder:
            root = str(configs)
            if name != "adascale_a":
                changed = copy.deepcopy(ours)
                changed["postprocessor"]["postprocessor_args"]["precision"] = name
                path = Path(folder) / "postprocessors/adascale.yml"
                path.parent.mkdir()
                path.write_text(yaml.safe_dump(changed, sort_keys=False))
                root = folder
            method = "adascale_a" if name == "adascale_a" else "adascale"
            print(f"  Evaluator with {method} ({name}) …", flush=True)
            start = time.perf_counter()
            evaluator = quiet(
                lambda root=root, method=method: Evaluator(
                    network,
                    "cifar10",
                    str(data),
                    root,
                    postprocessor_name=method,
                    num_workers=0,
                    batch_size=BATCH,
                )
            )
            taken[name] = time.perf_counter() - start
            pickles[name] = len(pickle.dumps(evaluator.postprocessor, pickle.HIGHEST_PROTOCOL))
    for name, target in (("float32", 50), ("bfloat16", 130)):
        ratio = taken["adascale_a"] / taken[name]
        table.add(
            f"whole search, 36 candidates, {name} (Evaluator, {sizes} images)",
            f"{ratio:.0f} × faster than adascale_a ({taken[name]:.1f} s, {taken['adascale_a']:.0f} s)",
            f"≥ {target} ×",
            ratio >= target,
        )
    share = pickles["adascale_a"] / pickles["float32"]
    table.add(
        "pickle", f"1/{share:.0f} of adascale_a's ({pickles['float32'] / 1e3:.1f} kB, {pickles['adascale_a'] / 1e6:.1f} MB)",
        "≤ 1/500", share >= 500,
    )  # fmt: skip
    return taken


# --- the whole -----------------------------------------------------------------------------------------------


def draw(whole: dict[int, float], theirs: float | None, path: Path) -> None:
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot(list(whole), list(whole.values()), "o-", color="#0072B2")
    axis.annotate(
        "this package", (1000, whole[1000]), (0, 8), textcoords="offset points", color="#0072B2", ha="right"
    )
    if theirs is not None:
        # Its time is linear in the number of candidates: each runs the network anew.
        axis.plot(list(whole), [theirs / 36 * n for n in whole], "--", color="#D55E00")
        axis.plot([36], [theirs], "s", color="#D55E00")
        axis.annotate(
            "OpenOOD's adascale_a\n(square: measured; line: per candidate)", (36, theirs), (10, -26),
            textcoords="offset points", color="#D55E00",
        )  # fmt: skip
    axis.set(xscale="log", yscale="log", xlabel="candidates", ylabel="search time (s)")
    axis.set_title("Hyperparameter search, ResNet-18 at 32×32", loc="left", fontsize=11)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.2)
    figure.savefig(path, dpi=150)


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    has = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = "AMX" if has.get("amx_bf16") else "AVX-512" if has.get("avx512_bf16") else "no"
    return f"{name}, {torch.get_num_threads()} threads, {bf16} bfloat16 arithmetic"


def images_of(module: Any, n_val: int, n_ood_val: int, root: Path) -> dict[str, Any]:
    """The benchmark's images on disk as OpenOOD's cifar10, and as loaders in memory."""
    module.SPLITS = (slice(0, 100), slice(100, 100 + n_val // 6 + 1), slice(140, 175))
    module.write_cifar10_benchmark(root)
    known, unknown = module.digit_images()
    val = [item for digit in known for item in digit[module.SPLITS[1]]][:n_val]
    module.save_images(val, root, "images_classic", "cifar10/val", ["cifar10/val_cifar10.txt"])
    held_out = [item for digit in unknown for item in digit[40:]][:: max(1, 500 // n_ood_val)][:n_ood_val]
    module.save_images(held_out, root, "images_classic", "tin/val", ["cifar10/val_tin.txt"])
    test = [item for digit in known for item in digit[module.SPLITS[2]]]
    sets = {
        "digits 6, 7": unknown[0][:60] + unknown[1][:60],
        "digits 8, 9": unknown[2][:60] + unknown[3][:60],
        "photos": module.photo_patches(120, seed=5, crop=64),
        "photos on black": module.on_black(module.photo_patches(120, seed=3, crop=64, grey=True)),
    }

    def loader(images: Any) -> DataLoader:
        mean, std = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]], np.float32)
        pixels = np.stack([(image.astype(np.float32) / 255 - mean) / std for image, _ in images]).astype(
            np.float32
        )
        tensors = (
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
            torch.tensor([label for _, label in images]),
        )
        return DataLoader(TensorDataset(*tensors), batch_size=BATCH)

    return {
        "train": loader([item for digit in known for item in digit[module.SPLITS[0]]]), "val": loader(val),
        "ood_val": loader(held_out), "test": loader(test), "ood": {name: loader(images) for name, images in sets.items()},
    }  # fmt: skip


def main() -> None:
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
    options = parser.parse_args()
    if options.peak_memory:
        peak_memory(*options.peak_memory)
        return
    module = fixtures()
    checkout = module.find_openood()
    if checkout is not None:
        sys.path.insert(0, str(checkout))
        os.environ["PYTHONPATH"] = module.python_path(checkout)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table, theirs, taken, whole = Table(), None, {}, {}

    def wanted(row: str) -> bool:
        return not options.only or row in options.only

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        print("Data and network …", flush=True)
        benchmark = images_of(module, options.val, options.ood_val, data)
        torch.manual_seed(0)
        if checkout is not None:
            from openood.networks import ResNet18_32x32

            network = ResNet18_32x32(num_classes=10)
            print("openood", checkout.name, flush=True)
        else:
            from torchvision.models import resnet18

            network = resnet18(num_classes=10)
            network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
        images, labels = (torch.cat(parts) for parts in zip(*benchmark["train"], strict=True))
        module.train_digits(network, images, labels, 60, 0.03)
        checkpoint = Path(folder) / "best.ckpt"
        torch.save(network.state_dict(), checkpoint)
        batch = torch.cat([b[0] for loader in benchmark["ood"].values() for b in loader])[:BATCH]
        if checkout is not None:
            from openood.networks.adascale_net import AdaScaleANet

            theirs = their_postprocessor()
            quiet(lambda: theirs.setup(AdaScaleANet(network), {"val": [{"data": batch[:32].clone()}]}, {}))
            theirs.set_hyperparam([[80, 85], 5, 1, 10, 0.05])
        if wanted("scoring"):
            scoring(table, network, batch, options.repeats, theirs)
        if wanted("outside"):
            outside_the_network(table, options.repeats, torch.device("cpu"))
        if wanted("factor"):
            factors(table, options.repeats, torch.device("cpu"))
        if wanted("memory") and checkout is not None:
            memory(table, checkpoint)
        if wanted("agreement"):
            agreement(table, network, benchmark)
        if wanted("evidence"):
            evidence_size(table)
        if wanted("candidates"):
            whole = many_candidates(table, network, benchmark["val"], benchmark["ood_val"])
        if device.type == "cuda":
            from torchvision.models import resnet50

            big = torch.randn(BATCH, 3, 224, 224, device=device)
            scoring(table, resnet50().eval().to(device), big, options.repeats, None)
            outside_the_network(table, options.repeats, device)
            factors(table, options.repeats, device)
        if wanted("search") and checkout is not None:
            taken = whole_search(table, network, data, f"{options.val} + {options.ood_val}")
    if options.only:
        return
    picture = HERE / "search.png"
    draw(whole, taken.get("adascale_a"), picture)
    import torchvision

    text = f"""# Results

Written by `python benchmarks/run.py --val {options.val} --ood-val {options.ood_val} --repeats {options.repeats}` on \
{datetime.date.today()}: {hardware(torch.device("cpu"))}{", " + hardware(device) if device.type == "cuda" else ""}; \
torch {torch.__version__}, torchvision {torchvision.__version__}, numpy {np.__version__}, \
Python {platform.python_version()}; \
{"OpenOOD's adascale_a beside it in the same run" if checkout is not None else "no OpenOOD, its rows are left out"}. \
`auto` precision is {fastest_precision(torch.device("cpu"))} here. Times are medians of {options.repeats} rounds in which \
the candidates take turns; the whole search ran once each. Data lie in memory, but for the whole search.

{table.markdown()}
![search time against the number of candidates](search.png)
"""
    notes = HERE / "NOTES.md"
    if notes.is_file():
        text += "\n" + notes.read_text(encoding="utf-8")
    (HERE / "RESULTS.md").write_text(text, encoding="utf-8")
    print(f"Written: {HERE / 'RESULTS.md'}, {picture}")


if __name__ == "__main__":
    main()
