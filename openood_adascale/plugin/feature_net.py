"""OpenOOD's feature-based postprocessors on cached features, unmodified.

:class:`FeatureNet` is a network whose input is the feature: it holds the linear head alone. With loaders of cached
features it serves the postprocessors in :data:`FROM_FEATURES`; everything else runs on the images.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..features.cache import CacheEntry, FeatureCache, feature_cache
from ..features.collect import iterate_statistics
from ..features.extractor import FLOAT32, FeatureExtractor, prepare_images
from ..features.head import LinearHead
from ..features.indexed import IndexedLoader, loader_batches
from ..features.network import evaluating, restored_random_state, unwrap
from ..features.statistics import FeatureRequest
from .import_hook import REPLACED_LOADERS, say

FROM_FEATURES = (
    "msp", "mls", "ebo", "gen", "klm", "temp_scaling", "gradnorm", "react", "ash", "scale", "vra", "dice", "she", "knn",
    "nnguide", "fdbd", "nci", "relation", "residual", "vim", "mds", "rmds", "cfood",
)  # fmt: skip
"""OpenOOD's postprocessors that need features only; a test compares each with its run on the images."""


class NotServedError(Exception):
    """A postprocessor, network or dataset that cached features cannot serve."""


class FeatureNet(nn.Module):
    """A network whose input is the feature, with the methods that OpenOOD's postprocessors call.

    Args:
        head: The linear head (default: set later by :meth:`set_head`).
    """

    fc: nn.Linear

    def __init__(self, head: LinearHead | None = None) -> None:
        super().__init__()
        if head is not None:
            self.set_head(head)

    def set_head(self, head: LinearHead) -> None:
        """Use a copy of ``head``."""
        classes, size = head.weight.shape
        self.fc = nn.Linear(size, classes, device="meta")
        self.fc.weight, self.fc.bias = (nn.Parameter(tensor.clone()) for tensor in head)
        self.eval()

    def forward(self, x: Tensor, return_feature: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Return (B, C) logits of (B, D) features, with ``return_feature`` also a copy of the features."""
        logits = self.fc(x)
        return (logits, x.clone()) if return_feature else logits  # some methods write to it

    @property
    def feature_size(self) -> int:
        """D."""
        return self.fc.in_features

    def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the head's (C, D) weight and (C,) bias."""
        return self.fc.weight.detach().cpu().numpy(), self.fc.bias.detach().cpu().numpy()

    def get_fc_layer(self) -> nn.Linear:
        """Return the head."""
        return self.fc


class WrappedLoader:
    """A loader with other batches; its length and other attributes are the original loader's."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)


class FeatureLoader(WrappedLoader):
    """Batches of cached features, in the order of a loader of images, with the same random draws.

    Features are extracted at the first iteration, unless the cache has them. Other attributes are the loader's.

    Args:
        loader: PyTorch's own ``DataLoader`` over an indexed dataset.
        entry: Returns the cache entry of its images (None if they are not cached); called at the first iteration.
        description: Text of the progress bar.

    Raises:
        NotServedError: Another loader; or, at the first iteration, images that are not cached.
    """

    def __init__(self, loader: Any, entry: Callable[[], CacheEntry | None], description: str = "") -> None:
        if IndexedLoader.of(loader) is None:
            raise NotServedError(f"a {type(loader).__name__} does not index a dataset")
        super().__init__(loader)
        self._find, self._description = entry, description
        self._entry: CacheEntry | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._entry is None:
            entry = self._find()
            if entry is None or not entry.fill((), None, self._description):
                raise NotServedError(f"the images of {self._description or 'a loader'} are not cached")
            self._entry = entry
        for indices in loader_batches(self._loader):
            features, labels = self._entry.features(indices)
            feature = features.activation
            yield {"data": feature, "data_aux": feature.clone(), "label": torch.from_numpy(labels)}


def exact_head(network: nn.Module, extractor: FeatureExtractor, images: Tensor) -> LinearHead:
    """Return the head of a network that returns exactly the input of its head with ``return_feature=True``.

    Raises:
        NotServedError: Another network.
    """
    name = type(unwrap(network)).__name__
    try:
        images = prepare_images(unwrap(network), images)
        with evaluating(network), torch.no_grad():
            output = network(images.clone(), return_feature=True)
        features = extractor.extract(images)
    except Exception as error:
        raise NotServedError(f"{name} returns no feature, or has no linear head ({error})") from error
    wanted = (features.logits, features.activation)
    if not isinstance(output, tuple) or len(output) != 2 or not all(map(_same, output, wanted)):
        raise NotServedError(f"the feature that {name} returns is not exactly the input of its head")
    return features.head


def _same(given: Any, wanted: Tensor) -> bool:
    if not isinstance(given, Tensor) or given.dtype != torch.float32 or given.shape != wanted.shape:
        return False
    return torch.allclose(given, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


def first_images(loader: Any) -> Tensor:
    """Return two images of a loader (one, if there is only one), without random draws.

    Raises:
        NotServedError: The loader does not index a dataset.
    """
    source = IndexedLoader.of(loader)
    if source is None or len(source.dataset) == 0:
        raise NotServedError(f"a {type(loader).__name__} does not index a dataset")
    with restored_random_state():
        return source.read(range(min(2, len(source.dataset))))


class Session:
    """Network, feature cache and, if they serve its postprocessor, cached features of an OpenOOD ``Evaluator``.

    The attributes that a user sees are the real network and loaders; they are exchanged for those of features while one
    of the ``Evaluator``'s methods runs.

    Args:
        network: Network that the ``Evaluator`` was given.
        cache: Feature cache in use.
    """

    def __init__(self, network: nn.Module, cache: FeatureCache) -> None:
        self._network, self._cache = network, cache
        self._extractor = FeatureExtractor(network)
        self._name = ""
        self._feature_net: nn.Module | None = None  # in the wrapper that the Evaluator puts around a network
        self._net: Any = None  # the Evaluator's attribute

    def construct(self, original: Callable[..., None], evaluator: Any, call: dict[str, Any]) -> None:
        """Call ``original``, which is ``Evaluator.__init__``, on cached features if they serve its postprocessor.

        Args:
            original: The method.
            evaluator: The ``Evaluator``.
            call: Its arguments.
        """
        table: Mapping[str, type] = sys.modules["openood.evaluation_api.postprocessor"].postprocessors
        given, self._name = call.get("postprocessor"), str(call.get("postprocessor_name") or "")
        kind: Any = table.get(self._name) if given is None else type(given)
        self._name = self._name or next(
            (one for one in FROM_FEATURES if table.get(one) is kind), kind.__name__
        )
        with feature_cache(self._cache):
            try:
                if not self._is_ours(kind):
                    self._require_listed(kind, table)
                    self._construct_from_features(original, evaluator, call)
            except NotServedError as error:
                self._use_images(error)
            if self._feature_net is None:
                original(evaluator, **call)
        self._net, self._weights = evaluator.net, self._extractor.weights_version()

    @staticmethod
    def _is_ours(kind: Any) -> bool:
        return str(getattr(kind, "__module__", "")).startswith("openood_adascale.")

    def _require_listed(self, kind: Any, table: Mapping[str, type]) -> None:
        if self._name not in FROM_FEATURES:
            raise NotServedError("it is not in the list of postprocessors that need features only")
        if kind is not table.get(self._name) or not kind.__module__.startswith("openood."):
            raise NotServedError("it is not OpenOOD's own class")

    def _construct_from_features(
        self, original: Callable[..., None], evaluator: Any, call: dict[str, Any]
    ) -> None:
        net = FeatureNet()
        real: list[Any] = []

        def replace(loaders: Any) -> Any:
            real.append(loaders)
            test = loaders["id"]["test"]
            net.set_head(exact_head(self._network, self._extractor, first_images(test)))
            if self._entry(test) is None:
                raise NotServedError("the images are not cached")
            return self._of_features(loaders)

        token = REPLACED_LOADERS.set(replace)
        try:
            original(evaluator, **{**call, "net": net})
        finally:
            REPLACED_LOADERS.reset(token)
        self._feature_net = evaluator.net
        evaluator.net = self._network if evaluator.net is net else type(evaluator.net)(self._network)
        evaluator.net.eval()
        evaluator.dataloader_dict = real[0]

    def _use_images(self, error: NotServedError) -> None:
        self._feature_net = None
        say(f"{self._name}: runs on the images: {error}", once=False)

    def call(self, method: Callable[[], Any], evaluator: Any) -> Any:
        """Call a method of the ``Evaluator``, on cached features if they serve its postprocessor."""
        with feature_cache(self._cache):
            if self._feature_net is not None and self._is_unchanged(evaluator):
                net, loaders = evaluator.net, evaluator.dataloader_dict
                try:
                    evaluator.net, evaluator.dataloader_dict = self._feature_net, self._of_features(loaders)
                    return method()
                except NotServedError as error:
                    self._use_images(error)
                finally:
                    evaluator.net, evaluator.dataloader_dict = net, loaders
            return method()

    def plain_predictions(self, evaluator: Any, loader: Any) -> tuple[Tensor, Tensor] | None:
        """Return the network's predictions and the labels of a loader's images from a float32 pass that is cached."""
        if not self._is_unchanged(evaluator) or self._entry(loader) is None:
            return None
        with feature_cache(self._cache):
            try:
                batches = [
                    (statistics.prediction.cpu(), torch.from_numpy(labels))
                    for statistics, labels in iterate_statistics(
                        self._extractor, loader, FeatureRequest(), FLOAT32, description="Accuracy"
                    )
                ]
            except (ValueError, TypeError, RuntimeError):  # a network without a linear head, say
                return None
        predictions, labels = (torch.cat(column) for column in zip(*batches, strict=True))
        return predictions, labels

    def _is_unchanged(self, evaluator: Any) -> bool:
        """Return True if the ``Evaluator`` still has its network, with the same weights."""
        return evaluator.net is self._net and self._weights.holds(unwrap(self._network))

    def _entry(self, loader: Any) -> CacheEntry | None:
        return self._cache.entry(self._extractor, loader, FLOAT32)

    def _of_features(self, loaders: Mapping[str, Any], path: str = "") -> Any:
        """Return the same nested dicts with loaders of features."""
        found: Any = copy.copy(loaders)
        for name, loader in loaders.items():
            inner = f"{path} {name}".strip()
            nested = isinstance(loader, Mapping)
            found[name] = self._of_features(loader, inner) if nested else self._loader(loader, inner)
        return found

    def _loader(self, loader: Any, path: str) -> FeatureLoader:
        return FeatureLoader(loader, lambda: self._entry(loader), path)
