"""Every method on random networks, images, settings and loaders: the reference's scores, or one clear error."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz import expected, networks
from fuzz.expected import Read
from fuzz.loaders import Images, batches_of, loader_of
from fuzz.networks import Made
from fuzz.watch import Wrong, require
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale.detectors.base import Detector
from openood_adascale.detectors.learning import LearningDetector
from openood_adascale.detectors.registry import METHODS, Method
from openood_adascale.errors import NotFinite
from openood_adascale.evidence.dataset import undisturbed
from openood_adascale.evidence.reader import Reader
from openood_adascale.evidence.sharing import forget


def case(rng: random.Random, folder: Path) -> str:
    """A network, its images, a method; fit, score, save, load, search."""
    forget()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.getrandbits(60))
        made = networks.make(rng)
        known, unknown = (
            networks.images(rng, made, rng.choice([1, 2, rng.randint(3, 20)])) for _ in range(2)
        )
    detector = _detector(rng, rng.choice(list(METHODS.values())), made)
    before = _state_of(made)
    try:
        if not made.right:
            return _without_reference(rng, detector, made, known, unknown)
        if rng.random() < 0.12:
            return _bad_images(rng, detector, known, unknown)
        return _agrees(rng, detector, made, known, unknown, folder)
    finally:
        require(_state_of(made) == before, "the network, or a random state, is not as it was")


def _state_of(made: Made) -> tuple[Any, ...]:
    network = made.network
    tensors = tuple(tensor.cpu().numpy().tobytes() for tensor in network.state_dict().values())
    flags = tuple((p.requires_grad, p.grad is None) for p in network.parameters())
    hooks = sum(len(module._forward_hooks) for module in network.modules())
    modes = tuple(module.training for module in network.modules())
    return tensors, flags, modes, hooks, torch.get_rng_state().numpy().tobytes(), random.getstate()


def _detector(rng: random.Random, method: Method, made: Made) -> Detector[Any, Any]:
    def number(low: float, high: float) -> float:
        return round(rng.uniform(low, high), rng.randint(0, 4)) or high

    two = sorted(rng.choice([number(0.1, 99.9), rng.choice([0.001, 50, 99.999])]) for _ in range(2))
    several: dict[str, dict[str, Any]] = {
        "scale": {"percentile": two[0]}, "lts": {"percentile": two[0]},
        "bfact": {"percentile": two[0], "order": rng.choice([1, 2, number(1, 9), 1e3]), "learn_from": "val"},
        "optfs": {
            "bins": rng.choice([1, 2, 100, rng.randint(1, 3000)]), "percentile": [two[0] / 2, 50 + two[1] / 2],
            "score": rng.choice(["vanilla", "energy"]), "learn_from": "val",
        },
        "adascale": {
            "percentile": two, "k1": number(0.1, 100), "k2": number(0.1, 100), "lmbda": rng.choice([0, 1, number(0, 50)]),
            "o": rng.choice([0.05, number(0.001, 1), 1]), "epsilon": rng.choice([0.5, number(0.01, 5)]),
            "pixels": rng.choice(["trivial", "salient", "random", "all"]), "seed": rng.randint(0, 2**40),
        },
    }  # fmt: skip
    chosen = several.get(method.name.removesuffix("_logit"), {})
    if rng.random() < 0.15:
        chosen["memory_format"] = rng.choice(["contiguous", "channels_last"])
    if rng.random() < 0.15:
        chosen["batch"] = rng.choice([1, 3, 7])
    return method.detector(made.network, **{**method.defaults, **chosen})


def _read(detector: Detector[Any, Any], batches: list[Tensor]) -> tuple[Read, np.ndarray, np.ndarray]:
    """What the network says, batch by batch, and its head."""
    plan, execution, reader = detector.settings.plan(), detector.settings.execution, Reader(detector.network)
    parts = [reader.encode(batch, plan.perturbations, execution) for batch in batches]
    moved = [
        np.concatenate([part.perturbed[p].double().numpy() for part in parts]) for p in plan.perturbations
    ]
    a, logits, predicted = (
        np.concatenate([np.asarray(tensor.double()) for tensor in tensors])
        for tensors in zip(
            *((part.activation, part.logits, part.logits.argmax(1)) for part in parts), strict=True
        )
    )
    head = parts[0].head
    read = Read(a, moved[0] if moved else None, logits, predicted.astype(int))
    return read, head.weight.double().numpy(), head.bias.double().numpy()


def _agrees(
    rng: random.Random, detector: Detector[Any, Any], made: Made, known: Tensor, unknown: Tensor, folder: Path
) -> str:
    loader = loader_of(rng, known)
    detector.fit(loader, progress=False)
    learnt, weight, bias = _read(detector, batches_of(loader))
    predicted, scores = detector.predict(unknown)
    read, _, _ = _read(detector, [unknown])
    _check_read(made, unknown, read, weight, bias)
    eps = float(torch.finfo(made.dtype).eps)
    if type(detector.settings).__name__ in ("BFActSettings", "OptFSSettings"):
        why = expected.learnt_state(detector.settings, detector.state, learnt, weight)
        require(not why, why)
    label = type(detector).__name__
    if type(detector.settings).__name__ == "Settings":
        wanted = expected.plain(label, read, weight, bias, eps)
    else:
        wanted = expected.scores(detector.settings, detector.state, learnt, read, weight, bias, eps)
    _near(scores.double().numpy(), wanted, f"{detector!r}: its scores")
    require(len(predicted) == len(unknown) and int(predicted.max()) < len(bias), "classes")
    _saved(detector, unknown, scores, folder)
    if isinstance(detector, LearningDetector):
        require(
            detector.validation_scores is None or np.isfinite(detector.validation_scores).all(),
            "validation scores",
        )
    _by_data_loader(rng, detector, unknown, scores)
    if rng.random() < 0.4:
        _searched(rng, detector, loader, loader_of(rng, unknown))
    return "scores"


@contextmanager
def _in_eval(network: networks.Classified) -> Iterator[networks.Classified]:
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            yield network.eval()
    finally:
        for module, mode in modes:
            module.training = mode


def _check_read(made: Made, images: Tensor, read: Read, weight: np.ndarray, bias: np.ndarray) -> None:
    """The activations and logits are what the network's own layers give."""
    with _in_eval(made.inner) as inner:
        a = inner.body(images.to(made.dtype).clone()).flatten(1).double().numpy()
    size = np.abs(a).max() + 1e-30
    require(
        np.allclose(read.a, a, rtol=1e-3, atol=1e-3 * size), "other activations than the network's body gives"
    )
    terms = np.abs(read.a) @ np.abs(weight).T + np.abs(bias)
    off = np.abs(read.logits - (read.a @ weight.T + bias))
    require((off <= 1e-30 + 1e-5 * terms).all(), f"logits that are off W a + b by {off.max()}")


def _near(found: np.ndarray, wanted: expected.Wanted, what: str) -> None:
    require(found.shape == wanted.scores.shape, f"{what} have the shape {found.shape}")
    require(np.isfinite(found).all(), f"{what}: {found}")
    off = np.abs(found - wanted.scores) - wanted.tolerance
    wrong = ((off > 0) | np.isnan(off)) & wanted.certain
    require(not wrong.any(), f"{what} are {found[wrong][:5]}; expected {wanted.scores[wrong][:5]}")


def _saved(detector: Detector[Any, Any], images: Tensor, scores: Tensor, folder: Path) -> None:
    place = folder / "detector"
    detector.save(place)
    again = type(detector).load(place, detector.network)
    require(torch.equal(again.score(images), scores), "a detector from its file scores otherwise")
    require(again.settings == detector.settings, "a detector from its file has other settings")


def _by_data_loader(
    rng: random.Random, detector: Detector[Any, Any], unknown: Tensor, scores: Tensor
) -> None:
    """By a DataLoader, whose images are shared and cut otherwise: the same but for rounding, which few scores show."""
    size = rng.choice([1, 4, 64])
    dataset: Any = (
        Images(unknown) if rng.random() < 0.5 else TensorDataset(unknown, torch.zeros(len(unknown)))
    )
    with undisturbed():  # a DataLoader draws on the global random state
        found = detector.predict_loader(DataLoader(dataset, batch_size=size), progress=False)[1]
    wanted = scores.double().numpy()
    require(found.shape == wanted.shape and np.isfinite(found).all(), f"of a DataLoader: {found}")
    if type(detector).__name__ in ("MSP", "Energy"):
        off = np.abs(found - wanted) > 1e-3 * (1 + np.abs(wanted))
        require(not off.any(), f"of a DataLoader {found[off]}; of the images {wanted[off]}")


def _searched(rng: random.Random, detector: Detector[Any, Any], known: Any, unknown: Any) -> None:
    sweep: dict[str, list[Any]] = {}
    for key, values in detector.default_sweep.items():
        sweep[key] = rng.sample(list(values), rng.randint(1, 3))
    if not sweep:
        return
    cls, settings = type(detector), detector.settings
    found = cls(detector.network, settings).search(known, unknown, sweep, progress=False)
    for candidate, auroc in zip(
        cls(detector.network, settings).tried(sweep), found.table["auroc"], strict=True
    ):
        alone = cls(detector.network, candidate).fit(known, progress=False)
        scores = [
            np.concatenate([alone.score(batch).numpy() for batch in batches_of(loader)])
            for loader in (known, unknown)
        ]
        truth = np.concatenate([np.full(len(one), place) for place, one in zip((1, 0), scores, strict=True)])
        wanted = 100 * roc_auc_score(truth, np.concatenate(scores))
        require(abs(auroc - wanted) < 1e-6, f"{candidate!r}: AUROC {auroc}, and alone {wanted}")
    require(found.auroc == found.table["auroc"].max(), "not the best")


# Where there is nothing to agree with


def _without_reference(
    rng: random.Random, detector: Detector[Any, Any], made: Made, known: Tensor, unknown: Tensor
) -> str:
    """A network that no method is defined for: an error, unless what is the matter with it cannot be seen."""
    detector.fit(loader_of(rng, known), progress=False)
    found = detector.score(unknown)
    with _in_eval(made.inner) as inner:
        feature = inner.body(torch.cat([known, unknown]).to(made.dtype).clone())
        logits = inner.head(feature)
        given = networks.GIVES[inner.gives](logits, feature)
    if isinstance(given, Tensor) and torch.equal(given, logits):  # twice nothing is nothing
        return "scores"
    raise Wrong(f"a network that has no linear head, or logits, was taken: {detector!r} gave {found}")


def _bad_images(rng: random.Random, detector: Detector[Any, Any], known: Tensor, unknown: Tensor) -> str:
    """Images or loaders that cannot be used are named."""
    kind = rng.choice(["nan", "inf", "ints", "empty", "shape", "batch", "type", "none", "one"])
    if kind in ("nan", "inf"):
        row = rng.randrange(len(known))
        known = known.clone()
        known[row].view(-1)[rng.randrange(known[row].numel())] = float(kind)
        try:
            detector.fit(loader_of(rng, known), progress=False).predict_loader(
                loader_of(rng, known), progress=False
            )
        except NotFinite as error:
            require(error.rows == [row] and error.what == "images", f"{error}; it is number {row}")
            raise
    else:
        bad: dict[str, Any] = {
            "ints": known.int(),
            "empty": [],
            "shape": torch.cat([known, known], 1),
            "batch": {"image": known},
            "type": "images",
            "none": [None],
            "one": [[]],
        }
        loader = bad[kind] if kind in ("empty", "type", "none", "one") else [bad[kind]]
        detector.fit(loader, progress=False).predict_loader(loader, progress=False)
    raise Wrong(f"{kind}: taken")
