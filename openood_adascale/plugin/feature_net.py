"""OpenOOD's feature-based postprocessors on cached features, unmodified.

:class:`FeatureNet` is a network whose input is the feature: it holds the linear head alone. If a feature cache is in use,
:func:`on_features` gives it, and loaders of cached features, to the postprocessors in ``FROM_FEATURES``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ..features.cache import CacheEntry, FeatureCache, current_cache, feature_cache
from ..features.collect import iterate_statistics
from ..features.extractor import FLOAT32, FeatureExtractor, prepare_images
from ..features.head import LinearHead
from ..features.indexed import IndexedLoader, loader_batches
from ..features.network import evaluating, restored_random_state, unwrap
from ..features.statistics import FeatureRequest
from .import_hook import say

WRAPPERS = {
    "react": "ReactNet", "ash": "ASHNet", "scale": "ScaleNet", "adascale_a": "AdaScaleANet", "adascale_l": "AdaScaleLNet",
}  # fmt: skip
"""Networks that OpenOOD's ``Evaluator`` puts around the network."""


class NotServedError(Exception):
    """A postprocessor, network or dataset that cached features cannot serve."""


class FeatureNet(nn.Module):
    """A network whose input is the feature, with the methods that OpenOOD's postprocessors call.

    Args:
        head: The linear head, which is copied.
    """

    def __init__(self, head: LinearHead) -> None:
        super().__init__()
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

    @staticmethod
    def unwrap(loader: Any) -> Any:
        """Return the original loader."""
        return loader._loader if isinstance(loader, WrappedLoader) else loader

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
        NotServedError: At the first iteration, if the images are not cached.
    """

    def __init__(self, loader: Any, entry: Callable[[], CacheEntry | None], description: str) -> None:
        super().__init__(loader)
        self._find, self._description = entry, description
        self._entry: CacheEntry | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._entry is None:
            entry = self._find()
            if entry is None or not entry.fill((), None, self._description):
                raise NotServedError("its images are not cached")
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


class Features:
    """Cached features of the images that a postprocessor is called with.

    Args:
        network: Network that the postprocessor is called with.
        cache: Feature cache in use.
    """

    def __init__(self, network: nn.Module, cache: FeatureCache) -> None:
        self.cache = cache
        self.refused = False
        """True if the postprocessor runs on the images."""
        self._network = network
        self._extractor = FeatureExtractor(network)
        self._weights = self._extractor.weights_version()
        self._head: LinearHead | None = None
        self._loaders: dict[Any, FeatureLoader] = {}

    def are_of(self, network: nn.Module, cache: FeatureCache) -> bool:
        """Return True if these are a network's features, with its present weights, in the same cache."""
        same = (cache.directory, cache.tag) == (self.cache.directory, self.cache.tag)
        return same and network is self._network and self._weights.holds(unwrap(network))

    def network(self) -> FeatureNet:
        """Return the network for the features of the :meth:`loaders`."""
        if self._head is None:
            raise NotServedError("it was given no images")
        return FeatureNet(self._head)

    def loaders(self, value: Any, name: str = "Images") -> Any:
        """Return an argument of a postprocessor's method with loaders of features in place of loaders.

        Raises:
            NotServedError: Another loader than PyTorch's over an indexed dataset, or a network that gives other features.
        """
        if isinstance(value, Mapping):
            found: Any = copy.copy(value)
            found.update({key: self.loaders(inner, str(key)) for key, inner in value.items()})
            return found
        if value is None or isinstance(value, bool | Exception):
            return value
        loader = WrappedLoader.unwrap(value)
        if IndexedLoader.of(loader) is None:
            raise NotServedError(f"a {type(loader).__name__} does not index a dataset")
        if self._head is None:
            self._head = exact_head(self._network, self._extractor, first_images(loader))
        if loader not in self._loaders:
            self._loaders[loader] = FeatureLoader(loader, lambda: self._entry(loader), name)
        return self._loaders[loader]

    def _entry(self, loader: Any) -> CacheEntry | None:
        return self.cache.entry(self._extractor, loader, FLOAT32)


_FEATURES: WeakKeyDictionary[Any, Features] = WeakKeyDictionary()
"""Features by postprocessor."""


def on_features(
    original: Callable[..., Any], name: str, postprocessor: Any, net: nn.Module, *args: Any, **kwargs: Any
) -> Any:
    """Call a method of a postprocessor of OpenOOD on cached features, or on the images if these do not serve.

    Args:
        original: ``setup`` or ``inference``.
        name: OpenOOD's name of the postprocessor.
        postprocessor: The postprocessor.
        net: Its network, perhaps in the wrapper that OpenOOD's ``Evaluator`` puts around it.
        args: The other arguments.
        kwargs: The other arguments by name.
    """
    network, cache = without_wrapper(net), current_cache()
    if cache is None or isinstance(network, FeatureNet):  # called by a method that is served
        return original(postprocessor, net, *args, **kwargs)
    features = _FEATURES.get(postprocessor)
    if features is None or not features.are_of(network, cache):
        features = _FEATURES[postprocessor] = Features(network, cache)
    if not features.refused:
        with feature_cache(features.cache):
            try:
                loaders = [features.loaders(value) for value in args]
                named = {key: features.loaders(value) for key, value in kwargs.items()}
                feature_net = features.network()
                wrapped = feature_net if net is network else type(net)(feature_net).eval()
                return original(postprocessor, wrapped, *loaders, **named)
            except NotServedError as error:
                say(f"{name}: runs on the images: {error}")
                features.refused = True
    return original(postprocessor, net, *args, **kwargs)


def without_wrapper(net: nn.Module) -> nn.Module:
    """Return the network inside the wrapper that OpenOOD's ``Evaluator`` puts around it."""
    is_wrapper = type(net).__name__ in WRAPPERS.values() and type(net).__module__.startswith("openood.")
    return net.get_submodule("backbone") if is_wrapper else net


def plain_predictions(net: nn.Module, loader: Any) -> tuple[Tensor, Tensor] | None:
    """Return the network's predictions and the labels of a loader's images from a float32 pass that is cached."""
    extractor, cache = FeatureExtractor(without_wrapper(net)), current_cache()
    if cache is None or cache.entry(extractor, loader, FLOAT32) is None:
        return None
    try:
        batches = [
            (statistics.prediction.cpu(), torch.from_numpy(labels))
            for statistics, labels in iterate_statistics(
                extractor, loader, FeatureRequest(), FLOAT32, description="Accuracy"
            )
        ]
    except (ValueError, TypeError, RuntimeError):  # a network without a linear head, say
        return None
    predictions, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return predictions, labels
