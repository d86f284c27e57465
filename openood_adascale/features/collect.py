"""Feature statistics of the images of a loader: the entry point of every pass over images."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import NotFiniteError
from ..parallel import CHOSEN, POOL_VARIABLE, current_pool
from .cache import current_cache
from .extractor import FeatureExtractor, InferenceSettings
from .head import LinearHead
from .indexed import IndexedLoader, loader_batches, run_pass
from .loading import file_names, is_hidden, progress_over, unpack
from .network import device_of, unwrap
from .statistics import FeatureRequest, Features, FeatureStatistics

NO_IMAGES = "loader: it yields no images; expected at least one batch"


class LabelledStatistics(NamedTuple):
    """Feature statistics of N images and their labels."""

    statistics: FeatureStatistics
    labels: np.ndarray
    """(N,) int64, −1 for unlabelled."""


def iterate_statistics(
    extractor: FeatureExtractor,
    loader: Iterable[Any],
    request: FeatureRequest,
    inference: InferenceSettings,
    progress: bool | None = None,
    description: str = "",
) -> Iterator[LabelledStatistics]:
    """Yield the feature statistics and labels of each batch of a loader, on the network's device.

    The features come from the feature cache in use, if any; missing ones are extracted and added.

    Args:
        extractor: Feature extractor of the network.
        loader: Yields ``(images, labels, …)``, OpenOOD's dicts or images. Empty batches are skipped.
        request: Requested statistics.
        inference: Inference settings.
        progress: True or False shows or hides the progress bar (default: shown in a terminal).
        description: Text of the progress bar.

    Raises:
        ValueError: The loader yields no images.
        TypeError: A batch has none of the accepted forms.
        NotFiniteError: NaN or infinity; names the images by their place in the loader and, if known, file.
        CacheError: The cache in use cannot be read or written.
    """
    cache = current_cache()
    entry = None if cache is None else cache.entry(extractor, loader, inference)
    if entry is not None and entry.fill(request.perturbations, progress, description):
        for indices in loader_batches(loader):
            features, labels = entry.features(indices, request.perturbations)
            yield LabelledStatistics(FeatureStatistics.from_features(features, request), labels)
        return
    pooled = CHOSEN.get(None) is not None or POOL_VARIABLE in os.environ
    if pooled and current_pool().workers > 1 and (source := IndexedLoader.of(loader)) is not None:
        batches = loader_batches(loader)
        if not batches:
            raise ValueError(NO_IMAGES)
        reduce = functools.partial(_to_statistics, request)
        found = run_pass(extractor, source, batches, request.perturbations, inference, reduce)
        device, total = device_of(unwrap(extractor.network)), sum(map(len, batches))
        with tqdm(total=total, desc=description, unit="image", disable=is_hidden(progress)) as bar:
            for info, (statistics, labels) in found:
                yield LabelledStatistics(replace(statistics, head=info.head).to(device), labels)
                bar.update(len(labels))
        return
    seen = 0
    for batch in progress_over(loader, progress, description):
        images, labels = unpack(batch)
        if len(images) == 0:
            continue
        try:
            statistics = extractor.statistics(images, request, inference)
        except NotFiniteError as error:
            raise error.located(list(range(seen, seen + len(images))), file_names(batch)) from None
        yield LabelledStatistics(statistics, labels)
        seen += len(images)
    if not seen:
        raise ValueError(NO_IMAGES)


def _to_statistics(
    request: FeatureRequest, features: Features, labels: np.ndarray
) -> tuple[FeatureStatistics, np.ndarray]:
    statistics = FeatureStatistics.from_features(features, request).cpu()
    return replace(statistics, head=LinearHead(torch.empty(0), torch.empty(0))), labels  # sent once


def collect_statistics(
    extractor: FeatureExtractor,
    loader: Iterable[Any],
    request: FeatureRequest,
    inference: InferenceSettings,
    progress: bool | None = None,
    description: str = "",
) -> LabelledStatistics:
    """Return the statistics and labels of all images in main memory; see :func:`iterate_statistics`."""
    parts, labels = [], []
    for statistics, label in iterate_statistics(extractor, loader, request, inference, progress, description):
        parts.append(statistics.cpu())
        labels.append(label)
    return LabelledStatistics(FeatureStatistics.cat(parts), np.concatenate(labels))
