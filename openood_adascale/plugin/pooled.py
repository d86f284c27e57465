"""``inference`` of OpenOOD's image-based postprocessors on the workers of the pool in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..features.indexed import IndexedLoader, describe_images, loader_batches
from ..features.loading import is_hidden
from ..parallel import SharedObject, content_key, current_pool

ONE_SCORE_PER_IMAGE = frozenset(
    {
        "ODINPostprocessor",
        "IODINPostprocessor",
        "GRAMPostprocessor",
        "RankFeatPostprocessor",
        "AdaScalePostprocessor",
    }
)
"""OpenOOD's classes whose score of an image depends on that image alone, without random draws."""
_BATCHES = 4  # in a piece of work


def infer(
    original: Callable[..., Any], postprocessor: Any, net: Any, loader: Any, progress: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (N,) predictions, confidences and labels of a loader's images, computed by the pool in use.

    Args:
        original: OpenOOD's ``inference``.
        postprocessor: The postprocessor, set up.
        net: Its network.
        loader: Loader of the images; one that is not PyTorch's over an indexed dataset is run by this process.
        progress: True shows the progress bar in a terminal.
    """
    source, pool = IndexedLoader.of(loader), current_pool()
    batches = [] if source is None else loader_batches(loader)
    if source is None or pool.workers == 1 or len(batches) < 2:
        found: tuple[np.ndarray, np.ndarray, np.ndarray] = original(postprocessor, net, loader, progress)
        return found
    size = max(1, min(_BATCHES, len(batches) // (4 * pool.workers)))
    pieces = [tuple(batches[start : start + size]) for start in range(0, len(batches), size)]
    shared = {
        "postprocessor": SharedObject(
            content_key("postprocessor", (postprocessor, net)), (postprocessor, net)
        ),
        "dataset": SharedObject(content_key("dataset", source), source),
    }
    parts = []
    with tqdm(
        total=sum(map(len, batches)), unit="image", disable=is_hidden(None if progress else False)
    ) as bar:
        for part in pool.map(_infer_piece, pieces, shared, describe_images):
            parts.append(part)
            bar.update(len(part[2]))
    predictions, confidences, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return predictions, confidences, labels


def _infer_piece(objects: Mapping[str, Any], piece: tuple[tuple[int, ...], ...]) -> Any:
    postprocessor, net = objects["postprocessor"]
    net.eval().cuda()  # OpenOOD's way to the worker's device
    return postprocessor.inference(net, objects["dataset"].loader(piece), progress=False)
