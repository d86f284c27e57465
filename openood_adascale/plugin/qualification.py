"""Whether a postprocessor of OpenOOD's needs nothing of an image but z and a."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn
from torch.utils import data

from ..evidence.dataset import undisturbed
from ..evidence.description import described
from .stored_images import NeedsMore, StoredImages
from .stored_network import StoredNetwork

CHECKED = 16
"""Images of each of two data sets that are scored both ways."""

DISAGREES = "from stored activations"

NEED_IMAGES = {
    "adascale_a": "it perturbs the images",
    "adascale_l": "it perturbs the images",
    "odin": "it perturbs the images",
    "iodin": "it perturbs the images",
    "gram": "it needs features of inner layers",
    "grood": "it needs more of the network",
    "rankfeat": "it needs features of inner layers",
    "mds_ensemble": "it needs features of inner layers",
    "gmm": "it needs features of inner layers",
    "dropout": "it needs the network in training mode",
    "mcd": "it needs a network of its own",
    "ensemble": "it needs networks of its own",
}
"""OpenOOD's postprocessors that are known to need more than z and a; others that do are found out."""


def disagreement(
    evaluator: Any, network: nn.Module, real: Mapping[str, Any], stored: Mapping[str, Any]
) -> str:
    """Why the scores of some images from the store are not those of the images themselves, if so."""
    attributes = vars(evaluator.postprocessor)
    before, kept = _state(evaluator.postprocessor), dict(attributes)
    near = next(iter(real["ood"]["near"]), None)
    checked = [("id", "test"), *([] if near is None else [("ood", "near", near)])]
    for path in checked:
        of_images: Any = real
        of_rows: Any = stored
        for name in path:
            of_images, of_rows = of_images[name], of_rows[name]
        of_rows.fill()
        count = len(of_rows.dataset)
        some = np.unique(np.linspace(0, count - 1, min(count, CHECKED)).astype(int)).tolist()
        results = []
        for loader, net in ((of_images, network), (of_rows, evaluator.net)):
            few = data.DataLoader(
                data.Subset(loader.dataset, some), batch_size=len(some), collate_fn=loader.collate_fn
            )
            with undisturbed():
                results.append(evaluator.postprocessor.inference(net, few, progress=False))
        for what, one, other in zip(("predictions", "scores"), *results, strict=False):
            if not _agree(np.asarray(one, dtype=float), np.asarray(other, dtype=float)):
                return f"{DISAGREES} its {what} are others"
    attributes.clear()  # what it has found out meanwhile is taken back
    attributes.update(kept)
    if before is None or _state(evaluator.postprocessor) != before:
        return "scoring images changes it, or it does not show whether it does"
    return ""


def _state(postprocessor: Any) -> str | None:
    """A digest of what it has learnt; None where that does not show."""
    try:
        return described(vars(postprocessor))
    except Exception:
        digest = _Digest()
    try:
        pickle.Pickler(digest, pickle.HIGHEST_PROTOCOL).dump(postprocessor)
    except Exception:
        return None
    return digest.text


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    size = np.abs(one[np.isfinite(one)]).max(initial=0)
    return bool(np.allclose(one, other, rtol=1e-3, atol=1e-4 * size, equal_nan=True))


def what_it_keeps(postprocessor: Any) -> str:
    """What speaks against using it: eval_ood.py pickles it, and nothing of ours is to be in that file."""
    try:
        _Search(_Digest(), pickle.HIGHEST_PROTOCOL).dump(postprocessor)
    except NeedsMore as error:
        return str(error)
    except Exception:  # it cannot be pickled as it is, either
        return ""
    return ""


class _Search(pickle.Pickler):
    """Looks for what stands in for a network or an image."""

    def persistent_id(self, found: Any) -> str | None:
        if isinstance(found, StoredNetwork | StoredImages):
            raise NeedsMore("it keeps the network or images")
        # Of classes and functions nothing is looked at, so those of a test or a notebook are no hindrance.
        return "" if isinstance(found, type) or (callable(found) and hasattr(found, "__code__")) else None


class _Digest:
    """A file that keeps nothing but a digest of what is written."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=16)

    def write(self, content: Any) -> int:
        self._digest.update(content)
        return len(content)

    @property
    def text(self) -> str:
        return self._digest.hexdigest()
