"""OpenOOD's own postprocessors in ``evaluate``, next to this package's methods: ``openood:NAME``.

Those in :data:`~.evaluator.FROM_FEATURES` run on cached features, the others on the images.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..data.files import ImageFiles
from ..errors import SettingError
from ..evaluation.benchmark import Benchmark
from ..features.cache import FeatureCache, current_cache
from ..features.extractor import FeatureExtractor, prepare_images
from ..features.head import SplitNetwork, logits_of
from ..features.loading import is_hidden, unpack
from ..features.network import NetworkWrapper, device_of, original, unwrap
from .custom_dataset import RequiredLoaders, normalization_of
from .evaluator import FROM_FEATURES, serving
from .feature_net import WRAPPERS, FeatureNet, NotServedError, WrappedLoader, first_images
from .import_hook import Changes, say
from .registration import evaluation_api, openood_configs
from .system import CUDA

KIND = "openood"
_DATASET = "openood-adascale-folders"
"""Name of the benchmark in OpenOOD's tables while one of its methods runs."""
_WITHOUT_CLASSES = {*FROM_FEATURES} - {"temp_scaling", "she", "mds", "rmds"}
"""Postprocessors that read no labels."""
_NORMALISE = ("odin", "iodin", "godin")
"""Postprocessors that scale a perturbation by the standard deviation of the preprocessing."""
_OPTIONS = {"train": "--train", "val": "--val", "ood val": "--ood-val"}


class OpenOODMethods:
    """OpenOOD's postprocessors by name, for :func:`~openood_adascale.evaluation.own_images.evaluate_folders`.

    Args:
        progress: True or False shows or hides progress bars (default: shown in a terminal).
    """

    def __init__(self, progress: bool | None = None) -> None:
        self.progress = progress
        self._directory: Any = None
        self._cache: FeatureCache | None = None

    def names(self, named: str) -> list[str]:
        """Return the names behind ``all``, which are :data:`~.evaluator.FROM_FEATURES`, or ``named`` itself."""
        return list(FROM_FEATURES) if named == "all" else [named]

    def method(self, name: str, network: nn.Module) -> OpenOODMethod:
        """Return a postprocessor of OpenOOD as a method of :func:`~openood_adascale.evaluate`.

        Settings and search are those of OpenOOD's own ``configs/postprocessors/NAME.yml``.

        Args:
            name: OpenOOD's name.
            network: A classifier that ends in a linear layer.

        Raises:
            SettingError: No such postprocessor, one without a YAML file, or OpenOOD is not found.
        """
        api = evaluation_api(f"{KIND}:{name}")
        table = api.postprocessor.postprocessors
        known = [one for one in sorted(table) if not table[one].__module__.startswith("openood_adascale.")]
        if name not in known:
            expected = f"{KIND}:all ({', '.join(FROM_FEATURES)}), or {KIND}: and one of {', '.join(known)}"
            raise SettingError("--methods", f"{KIND}:{name}", expected)
        path = openood_configs() / "postprocessors" / f"{name}.yml"
        if not path.is_file():  # OpenOOD would download it, and write it there
            raise SettingError(
                "--methods", f"{KIND}:{name}", f"one with a YAML file in OpenOOD; there is no {path}"
            )
        return OpenOODMethod(name, network, self)

    @property
    def cache(self) -> FeatureCache:
        """Feature cache in use, else one in a temporary directory."""
        if (found := current_cache()) is not None:
            return found
        if self._cache is None:
            self._directory = tempfile.TemporaryDirectory(prefix="openood_adascale_")
            self._cache = FeatureCache(self._directory.name)
        return self._cache


class OpenOODMethod:
    """A postprocessor of OpenOOD; see :meth:`OpenOODMethods.method`. It has OpenOOD's postprocessor methods."""

    def __init__(self, name: str, network: nn.Module, methods: OpenOODMethods) -> None:
        self.name = name
        self.network = network
        self.APS_mode = False
        self.args_dict: Mapping[str, Any] = {}
        """Sweep of the search."""
        self.hyperparam_search_done = False
        self._methods = methods
        self._extractor = FeatureExtractor(network)
        self._benchmark: Benchmark | None = None
        self._postprocessor: Any = None
        self._net: nn.Module | None = None
        self._classes = 0

    @property
    def from_features(self) -> bool:
        """True if the postprocessor takes features from the feature cache in use."""
        return self.name in FROM_FEATURES

    def __repr__(self) -> str:
        return f"OpenOODMethod({self.name!r}, {type(self.network).__name__})"

    def check(self, benchmark: Benchmark) -> None:
        """Read the YAML file: the search, and its sweep."""
        self._benchmark = benchmark
        self._classes = self._extractor.extract(self._images()).logits.shape[1]
        with self._lent():
            made = self._make()
        self.APS_mode, self.args_dict = bool(made.APS_mode), made.args_dict if made.APS_mode else {}
        self.hyperparam_search_done = False

    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        """Set the postprocessor up with the benchmark that was checked last, without a search."""
        self.hyperparam_search_done = False
        if not self.from_features:
            reason = "it is not in the list of postprocessors that need features only"
            say(f"{KIND}:{self.name}: runs on the images: {reason}")
        with self._lent():
            self._net, self._postprocessor = self._network(), self._make()
            self._postprocessor.setup(
                self._net, self._tree(id_loader_dict), self._tree(ood_loader_dict, "ood ")
            )

    def inference(
        self, net: Any, data_loader: Iterable[Any], progress: bool | None = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (N,) predicted classes, scores and labels of the images of one of the benchmark's loaders."""
        with self._lent():
            predictions, scores, labels = self._postprocessor.inference(
                self._net, _loader(data_loader), progress=progress is not False
            )
        scores = np.asarray(scores)
        return predictions, scores[:, 0] if scores.shape == (len(scores), 1) else scores, labels  # gram's

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Use these values of :attr:`args_dict`, in its order."""
        self._postprocessor.set_hyperparam(list(hyperparam))

    def get_hyperparam(self) -> Any:
        """Return the present values."""
        return self._postprocessor.get_hyperparam()

    def _make(self) -> Any:
        api = evaluation_api(f"{KIND}:{self.name}")
        return api.postprocessor.get_postprocessor(str(openood_configs()), self.name, _DATASET)

    def _network(self) -> nn.Module:
        """Return the network that OpenOOD's ``Evaluator`` would use.

        A network without the methods of OpenOOD's networks gets a wrapper that has them.
        """
        network, inside = self.network, unwrap(self.network)
        takes = "return_feature" in inspect.signature(inside.forward).parameters
        if not takes or not all(callable(getattr(inside, name, None)) for name in ("get_fc", "get_fc_layer")):
            self._extractor.extract(self._images())
            if self._extractor.split is None:
                raise RuntimeError("network: no head was found")
            network = NetworkWithFeatures(self.network, self._extractor.split)
        wrapper = getattr(sys.modules["openood.evaluation_api.evaluator"], WRAPPERS.get(self.name, ""), None)
        return network if wrapper is None else wrapper(network)

    def _images(self) -> Tensor:
        test: Any = None if self._benchmark is None else self._benchmark.test
        try:
            images = first_images(test)
        except NotServedError:
            images = unpack(next(iter(test)))[0][:2]
        return prepare_images(unwrap(self.network), images)

    def _tree(self, loaders: Mapping[str, Any], prefix: str = "") -> RequiredLoaders:
        found: dict[str, Any] = {}
        needs_classes = not prefix and self.name not in _WITHOUT_CLASSES
        for name, loader in loaders.items():
            if isinstance(loader, Mapping):
                found[name] = {key: _loader(one) for key, one in loader.items()}
            elif needs_classes and name in ("train", "val") and not _has_labels(loader):
                found[name] = _missing(
                    name,
                    ": labels",
                    f"the class of each {name} image, which this method needs (a folder for each class "
                    "and --labels folders)",
                )
            elif loader is not None:
                found[name] = _loader(loader)
        return RequiredLoaders(
            found, lambda key: _missing(prefix + key, "", f"{prefix}{key} images, which this method needs")
        )

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """Make OpenOOD know the benchmark, run where the network is and print nothing; gradients are left as they were."""
        if self._benchmark is None:
            raise RuntimeError(f"{self!r}: call check(benchmark) first, as evaluate does")
        evaluation_api(f"{KIND}:{self.name}")
        changes, gradients = Changes(), [(p, p.grad) for p in self.network.parameters()]
        changes.set(sys.modules["openood.postprocessors.info"].num_classes_dict, _DATASET, self._classes)
        if self.name in _NORMALISE:
            transform = getattr(getattr(self._benchmark.test, "dataset", None), "transform", None)
            table = sys.modules["openood.preprocessors.transform"].normalization_dict
            changes.set(table, _DATASET, normalization_of(transform, self.name))
        hidden = functools.partialmethod(tqdm.__init__, disable=is_hidden(self._methods.progress))
        changes.set(tqdm, "__init__", hidden)
        for parameter, _ in gradients:
            parameter.grad = None
        try:
            cache, device = serving(self._methods.cache), CUDA.going_to(device_of(self.network))
            with contextlib.redirect_stdout(io.StringIO()), cache, device:
                yield
        finally:
            changes.undo()
            for parameter, gradient in gradients:
                parameter.grad = gradient


class NetworkWithFeatures(NetworkWrapper):
    """A classifier with the methods of OpenOOD's networks; images have gradients through it.

    Args:
        network: The classifier.
        split: The same, split at its head.
    """

    def __init__(self, network: nn.Module, split: SplitNetwork) -> None:
        super().__init__(unwrap(network))
        self._split = split

    def forward(
        self, x: Tensor, return_feature: bool = False, return_feature_list: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Return (B, C) logits; with ``return_feature`` also the (B, D) activation.

        Raises:
            TypeError: Features of inner layers.
        """
        if return_feature_list:
            raise TypeError(
                f"network: {type(self.module).__name__} has no features of inner layers (return_feature_list)"
            )
        if not return_feature:
            return logits_of(self.module, x)
        output = self._split(x)
        return output.logits, output.activation

    @property
    def fc(self) -> nn.Linear:
        """The head, or a linear layer with its weight and bias if it has another form."""
        own = original(self.module).get_submodule(self._split.layer_name or "")
        return own if isinstance(own, nn.Linear) and own.bias is not None else FeatureNet(self._split.head).fc

    @property
    def feature_size(self) -> int:
        """D."""
        return int(self._split.head.weight.shape[1])

    def get_fc(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the head's (C, D) weight and (C,) bias."""
        weight, bias = self._split.head
        return weight.cpu().numpy(), bias.cpu().numpy()

    def get_fc_layer(self) -> nn.Linear:
        """Return the head."""
        return self.fc


class _Dicts(WrappedLoader):
    """A loader with OpenOOD's batches."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._loader:
            images, labels = unpack(batch)
            if len(images):
                yield {"data": images, "data_aux": images, "label": torch.from_numpy(labels)}


def _loader(loader: Any) -> Any:
    """Return a loader with OpenOOD's batches."""
    dataset: Any = getattr(loader, "dataset", None)
    has_them = hasattr(dataset, "__getitem__") and len(dataset) and isinstance(dataset[0], Mapping)
    return loader if has_them else _Dicts(loader)


def _missing(name: str, part: str, expected: str) -> SettingError:
    return SettingError(_OPTIONS.get(name, name) + part, None, expected)


def _has_labels(loader: Any) -> bool:
    """Return False for image files without labels."""
    dataset = getattr(loader, "dataset", None)
    return not isinstance(dataset, ImageFiles) or min(dataset.labels, default=0) >= 0
