"""OpenOOD's feature-based postprocessors on cached features, unmodified.

:class:`FeatureNet` is a network whose input is the feature: it holds the linear head alone. With loaders of cached
features it serves the postprocessors in :data:`FROM_FEATURES`; everything else runs on the images.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import data

from ..features.cache import CacheEntry, FeatureCache, feature_cache
from ..features.collect import iterate_statistics
from ..features.extractor import FLOAT32, FeatureExtractor, prepare_images
from ..features.head import LinearHead
from ..features.indexed import IndexedLoader
from ..features.modes import evaluating, restored_random_state, unwrap
from ..features.statistics import FeatureRequest
from .import_hook import say

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


class _Indices(data.Dataset[int]):
    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index


class FeatureLoader(data.DataLoader[Any]):
    """Batches of cached features, in the order of a loader of images, with the same random draws.

    Features are extracted at the first iteration, as far as the cache lacks them.

    Args:
        loader: PyTorch's own ``DataLoader`` over an indexed dataset.
        entry: Returns the cache entry of its images (None if they are not cached); called at the first iteration.
        description: Text of the progress bar.
    """

    def __init__(self, loader: Any, entry: Callable[[], CacheEntry | None], description: str = "") -> None:
        if IndexedLoader.of(loader) is None:
            raise NotServedError(f"a {type(loader).__name__} does not index a dataset")
        if loader.batch_size is None:
            batches: dict[str, Any] = {"batch_sampler": loader.batch_sampler}
        else:
            batches = {name: getattr(loader, name) for name in ("batch_size", "sampler", "drop_last")}
        super().__init__(
            _Indices(len(loader.dataset)), generator=loader.generator, collate_fn=self._collate, **batches
        )
        self._find, self._description = entry, description
        self._entry: CacheEntry | None = None
        self._names = image_names(loader.dataset)

    def __iter__(self) -> Any:
        if self._entry is None:
            entry = self._find()
            if entry is None or not entry.fill((), None, self._description):
                raise NotServedError(f"the images of {self._description or 'a loader'} are not cached")
            self._entry = entry
        return super().__iter__()

    def _collate(self, indices: list[int]) -> dict[str, Any]:
        entry: Any = self._entry
        features, labels = entry.features(indices)
        feature = features.activation
        batch = {"data": feature, "data_aux": feature.clone(), "label": torch.from_numpy(labels)}
        if self._names:
            batch["image_name"] = [self._names[index] for index in indices]
        return batch


def image_names(dataset: Any) -> Sequence[str]:
    """Return the image names of OpenOOD's image lists and of this package's datasets (empty for others)."""
    if (lines := getattr(dataset, "imglist", None)) is not None:
        return [line.split(" ", 1)[0] for line in lines]
    paths = getattr(getattr(dataset, "files", dataset), "paths", ())
    return paths if isinstance(paths, Sequence) else ()


def exact_head(network: nn.Module, extractor: FeatureExtractor, images: Tensor) -> LinearHead:
    """Return the head of a network that returns exactly what its head saw with ``return_feature=True``.

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
    same = isinstance(output, tuple) and len(output) == 2
    if not same or not all(_same(*pair) for pair in zip(output, wanted, strict=True)):
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


# OpenOOD's Evaluator.


def construct(
    original: Callable[..., None],
    evaluator: Any,
    call: dict[str, Any],
    replaced_loaders: ContextVar[Callable[[Any], Any] | None],
) -> Session:
    """Call ``original``, which is ``Evaluator.__init__``, on cached features if they serve its postprocessor.

    Args:
        original: The method.
        evaluator: The ``Evaluator``.
        call: Its arguments.
        replaced_loaders: Variable whose function replaces the loaders that the method makes.
    """
    with feature_cache() as cache:
        if cache is None:
            raise RuntimeError("feature_net.construct: it needs a feature cache in use")
        session = Session(call["net"], cache)
        name, kind = _postprocessor(call)
        if not getattr(kind, "__module__", "").startswith("openood_adascale."):
            try:
                _require_listed(name, kind)
                session.construct(original, evaluator, call, replaced_loaders)
            except NotServedError as error:
                session.feature_net = None
                say(f"{name}: runs on the images: {error}", once=False)
            else:
                return session
        original(evaluator, **call)
    return session


def _table() -> Mapping[str, type]:
    found: Mapping[str, type] = vars(sys.modules["openood.evaluation_api.postprocessor"])["postprocessors"]
    return found


def _postprocessor(call: Mapping[str, Any]) -> tuple[str, type | None]:
    """Return name and class of the postprocessor that an ``Evaluator`` is made for."""
    given, name, table = call.get("postprocessor"), call.get("postprocessor_name"), _table()
    if given is None:
        return str(name), table.get(str(name))
    kind = type(given)
    if name is None:
        name = next((one for one in FROM_FEATURES if table.get(one) is kind), kind.__name__)
    return str(name), kind


def _require_listed(name: str, kind: type | None) -> None:
    if name not in FROM_FEATURES:
        raise NotServedError("it is not in the list of postprocessors that need features only")
    if kind is not _table().get(name) or not str(getattr(kind, "__module__", "")).startswith("openood."):
        raise NotServedError("it is not OpenOOD's own class")


class Session:
    """Network, feature cache and, if they serve its postprocessor, cached features of an ``Evaluator``.

    The ``Evaluator``'s own network and loaders are exchanged for those of features while one of its methods runs.

    Args:
        network: Network that the ``Evaluator`` was given.
        cache: Feature cache in use.
    """

    def __init__(self, network: nn.Module, cache: FeatureCache) -> None:
        self.feature_net: Any = None
        """:class:`FeatureNet`, in the wrapper that the ``Evaluator`` puts around a network."""
        self._network, self._cache = network, cache
        self._extractor = FeatureExtractor(network)
        self._loaders: list[tuple[Any, FeatureLoader]] = []  # by the loaders themselves; an id can be reused
        self._weights = self._extractor.weights_version()

    def construct(
        self,
        original: Callable[..., None],
        evaluator: Any,
        call: dict[str, Any],
        replaced_loaders: ContextVar[Callable[[Any], Any] | None],
    ) -> None:
        """Make the ``Evaluator`` on cached features; see :func:`construct`.

        Raises:
            NotServedError: They do not serve network or datasets.
        """
        net = FeatureNet()
        real: list[Any] = []

        def replace(loaders: Any) -> Any:
            real.append(loaders)
            test = loaders["id"]["test"]
            net.set_head(exact_head(self._network, self._extractor, first_images(test)))
            if self._entry(test) is None:
                raise NotServedError("the images are not cached")
            return self._of_features(loaders)

        token = replaced_loaders.set(replace)
        try:
            original(evaluator, **{**call, "net": net})
        finally:
            replaced_loaders.reset(token)
        self.feature_net = evaluator.net
        self._weights = self._extractor.weights_version()
        # The attributes that a user sees are the real ones.
        evaluator.net = self._network if evaluator.net is net else type(evaluator.net)(self._network)
        evaluator.net.eval()
        evaluator.dataloader_dict = real[0]

    def call(self, original: Callable[..., Any], evaluator: Any, args: tuple[Any, ...], name: str) -> Any:
        """Call a method of the ``Evaluator``, on cached features if they serve its postprocessor."""
        with feature_cache(self._cache):
            if self.feature_net is None or evaluator.net is self.feature_net or not self._is_of(evaluator):
                return self._on_images(original, evaluator, args, name)
            net, loaders = evaluator.net, evaluator.dataloader_dict
            try:
                evaluator.net, evaluator.dataloader_dict = self.feature_net, self._of_features(loaders)
                return original(evaluator, *args)
            except NotServedError as error:
                self.feature_net = None
                say(f"{type(evaluator.postprocessor).__name__}: runs on the images: {error}", once=False)
            finally:
                evaluator.net, evaluator.dataloader_dict = net, loaders
            return self._on_images(original, evaluator, args, name)

    def _on_images(
        self, original: Callable[..., Any], evaluator: Any, args: tuple[Any, ...], name: str
    ) -> Any:
        found = None
        if name == "_classifier_inference" and args and evaluator.net is not self.feature_net:
            found = self._predictions(evaluator, args[0])
        return original(evaluator, *args) if found is None else found

    def _predictions(self, evaluator: Any, loader: Any) -> tuple[Tensor, Tensor] | None:
        """Return the network's predictions and the labels of a loader's images, if a float32 pass has them."""
        if not self._is_of(evaluator) or self._entry(loader) is None:
            return None
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

    def _is_of(self, evaluator: Any) -> bool:
        """Return True if the ``Evaluator`` still has the network that it was given, with the same weights."""
        net = evaluator.net
        if type(net).__module__.startswith("openood.networks.") and net is not self._network:
            net = getattr(net, "backbone", None)  # in a wrapper of the Evaluator's
        return net is self._network and self._weights.holds(unwrap(self._network))

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
        for known, made in self._loaders:
            if known is loader:
                return made
        self._loaders.append((loader, FeatureLoader(loader, lambda: self._entry(loader), path)))
        return self._loaders[-1][1]
