"""Rows about the search: candidates, feature statistics, OpenOOD's Evaluator as a whole; and its picture."""

from __future__ import annotations

import copy
import pickle
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from measure import BATCH, Table, quiet
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from openood_adascale import AdaSCALE
from openood_adascale.detectors.adascale import AdaSCALESettings
from openood_adascale.detectors.search import candidates
from openood_adascale.features.collect import collect_statistics
from openood_adascale.features.extractor import FeatureExtractor
from openood_adascale.features.head import LinearHead
from openood_adascale.features.statistics import FeatureRequest, Features, FeatureStatistics

HERE = Path(__file__).resolve().parent
PERCENTILES = AdaSCALE.default_sweep["percentile_list"]


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
        request = FeatureRequest.union(settings.request() for settings in tried)
        start = time.perf_counter()
        id_val, ood = (
            collect_statistics(
                FeatureExtractor(network), loader, request, detector.settings.inference, False
            ).statistics
            for loader in (val, ood_val)
        )
        passed = time.perf_counter() - start
        for settings in tqdm(tried, leave=False):
            state = detector.fit_state(id_val, settings)
            for statistics in (id_val, ood):
                detector.score_statistics(statistics, settings, state)
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


def statistics_size(table: Table) -> None:
    """Measure the feature statistics of 50,000 images with D = 2,048 and C = 1,000 for the joint search."""
    sweep = yaml.safe_load((HERE.parent / "configs/postprocessors/adascale_joint.yml").read_text())
    tried = candidates(AdaSCALESettings(), sweep["postprocessor"]["postprocessor_sweep"])
    request = FeatureRequest.union(settings.request() for settings in tried)
    head, parts = LinearHead(torch.zeros(1000, 2048), torch.zeros(1000)), []
    for _ in tqdm(range(50), leave=False):
        activation = torch.rand(1000, 2048)
        perturbed = dict.fromkeys(request.perturbations, activation)
        z, prediction = torch.zeros(1000, 1000), torch.zeros(1000, dtype=torch.int64)
        features = Features(z, prediction, activation, perturbed, head)
        parts.append(FeatureStatistics.from_features(features, request).cpu())
    tensors = FeatureStatistics.cat(parts).parts.values()
    size = sum(t.numel() * t.element_size() for t in tensors) / 1e9
    table.add(
        f"feature statistics of 50,000 images, D = 2,048, C = 1,000, {len(tried)} candidates",
        f"{size:.2f} GB",
        "≤ 2 GB",
        size <= 2,
    )


def whole_search(table: Table, network: nn.Module, data: Path, sizes: str) -> dict[str, float]:
    """OpenOOD's Evaluator with its 36 candidates, loaders included; and the pickles."""
    import openood
    from openood.evaluation_api import Evaluator

    from openood_adascale.plugin.import_hook import configs_root

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
