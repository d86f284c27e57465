"""A detector of pytorch-ood's in ``evaluate``, beside the methods of this package."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pytorch_ood.api import Detector, GradientDetector, RequiresFittingException
from torch import Tensor, nn
from torch.utils import data

from ...detectors.settings import SOURCES, one_of
from ...evaluation.benchmark import Benchmark
from ...evidence.batch import unpack, watched
from ...evidence.dataset import undisturbed
from ...evidence.modes import device_of, unwrap
from ...evidence.plan import Execution
from ...evidence.rows import Rows, rows_of
from .features import reader_of
from .served import CHECKED, Source, for_learning, for_scores, kind_of

EXECUTION = Execution()


def adapt(
    detector: Detector, network: nn.Module, *, learn_from: str = "train", search: bool = False
) -> Adapted:
    """A detector of pytorch-ood's as a method of :func:`~openood_adascale.evaluation.evaluate.evaluate`.

    Its scores are the negatives of the detector's: larger is more in-distribution. Where a detector needs nothing of an
    image but the network's logits, or the activations before its last layer, those of the store in use serve it, so that
    the network is not run again; which is found out with some images of every set (:attr:`Adapted.reasons` says where it
    was not so). All others are run on the images as they are.

    Args:
        detector: of pytorch-ood or by its interface. Fitted already, it is not fitted anew.
        network: the classifier that it is on top of, for the accuracy and what is stored.
        learn_from: whose images it is fitted with, ``train`` or ``val`` of the benchmark.
        search: have ``evaluate`` search its ``hyperparameter_space``, unless it is told ``search=False``.

    Raises:
        TypeError: no detector of pytorch-ood's, or no network.
        SettingError: another ``learn_from``.
    """
    return Adapted(detector, network, learn_from, search)


class Adapted:
    """See :func:`adapt`. It has the methods of OpenOOD's postprocessors."""

    def __init__(self, detector: Detector, network: nn.Module, learn_from: str, search: bool) -> None:
        if not isinstance(detector, Detector):
            raise TypeError(f"detector: {type(detector).__name__} is not a detector of pytorch-ood's")
        if not isinstance(network, nn.Module):
            raise TypeError(f"network: {type(network).__name__} is not a torch.nn.Module")
        one_of("learn_from", learn_from, SOURCES)
        self.detector = detector
        self.network = network
        self.learn_from = learn_from
        self.APS_mode = search
        self.args_dict = dict(detector.hyperparameter_space)
        """What is searched."""
        self.hyperparam_search_done = False
        self.reasons: list[str] = []
        """Why it was run on images, where it was."""
        self._reader = reader_of(network)
        self._learn: Iterable[Any] | None = None

    def __repr__(self) -> str:
        return f"adapt({type(self.detector).__name__}, {type(self.network).__name__})"

    def check(self, benchmark: Benchmark) -> None:
        """Raise where the images to learn from lack.

        Raises:
            ValueError: they do, and the detector is to be fitted.
        """
        if self.detector.requires_fit and not self._is_fitted(benchmark.test):
            benchmark.loader(self.learn_from)

    def setup(self, net: Any, id_loader_dict: Mapping[str, Any], ood_loader_dict: Mapping[str, Any]) -> None:
        """Fit the detector, unless it is fitted, or needs no fit.

        Raises:
            ValueError: the images to learn from lack; and whatever the detector's ``fit`` raises.
        """
        self._learn = id_loader_dict.get(self.learn_from)
        if self.detector.requires_fit and not self._is_fitted(id_loader_dict.get("test")):
            self._fit()

    def inference(
        self, net: Any, data_loader: Iterable[Any], progress: bool | None = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) predicted classes (−1 where it was run on images), scores and labels of a loader's images.

        Raises:
            ValueError: something else than a score per image; and whatever the detector's ``predict`` raises.
        """
        parts = list(self._scored(data_loader, progress))
        if not parts:
            raise ValueError("loader: it yields no images; expected at least one batch")
        preds, scores, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return preds, scores, labels

    def set_hyperparam(self, hyperparam: Sequence[Any]) -> None:
        """Set the values of :attr:`args_dict`, in its order, and fit anew."""
        self.detector.set_hyperparameters(**dict(zip(self.args_dict, hyperparam, strict=True)))
        if self.detector.requires_fit:
            self._fit()

    def get_hyperparam(self) -> list[Any]:
        """The present values."""
        now = self.detector.get_hyperparameters()
        return [now[name] for name in self.args_dict]

    def _scored(
        self, loader: Iterable[Any], progress: bool | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        if served := self._served(loader, learning=False):
            rows, source = served
            predict = getattr(self.detector, source.kind.predict)
            for encoded, labels in rows.batches((), progress, "Score"):
                with torch.no_grad():
                    scores = self._checked(predict(source.of(encoded)), len(labels))
                yield encoded.prediction.cpu().numpy(), scores, labels
            return
        for batch in watched(loader, progress, "Score"):
            images, labels = unpack(batch)
            if len(images):
                with self._grad():
                    scores = self._checked(self.detector.predict(images.to(self._device())), len(labels))
                yield np.full(len(labels), -1), scores, labels

    def _checked(self, found: Any, count: int) -> np.ndarray:
        if not isinstance(found, Tensor) or found.shape != (count,):
            what = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{type(self.detector).__name__}: it gives {what} for {count} images; expected ({count},)"
            )
        scores: np.ndarray = -found.detach().double().cpu().numpy()
        return scores

    def _fit(self) -> None:
        if self._learn is None:
            raise ValueError(
                f"benchmark.{self.learn_from}: None is not allowed; {type(self.detector).__name__} needs these images to fit"
            )
        served = self._served(self._learn, learning=True)
        if served is None:
            self.detector.fit(_Pairs(self._learn))
            return
        rows, source = served
        values, labels = [], []
        for encoded, label in rows.batches((), False, ""):
            known = label >= 0
            values.append(source.of(encoded).cpu()[torch.from_numpy(known)])
            labels.append(torch.from_numpy(label[known]))
        getattr(self.detector, source.kind.fit)(torch.cat(values), torch.cat(labels))

    def _served(self, loader: Iterable[Any], learning: bool) -> tuple[Rows, Source] | None:
        """The loader's images in the store in use, and what of them serves; None where the images are to."""
        found = self._found_out(loader, learning)
        if isinstance(found, tuple):
            return found
        if found not in self.reasons:
            self.reasons.append(found)
        return None

    def _found_out(self, loader: Iterable[Any], learning: bool) -> tuple[Rows, Source] | str:
        if kind_of(self.detector) is None:
            return f"{type(self.detector).__name__} works on images"
        rows = rows_of(self._reader, loader, EXECUTION)
        if rows is None:
            return "the images, or what the network makes of them, cannot be stored"
        some = _some(loader)
        if some is None:
            return "no batch can be made of some of the images"
        images, labels = some[0].to(self._device()), torch.from_numpy(some[1])
        encoded = self._reader.encode(images, (), EXECUTION)
        if learning:
            source = for_learning(self.detector, images, labels, encoded)
        else:
            source = for_scores(self.detector, images, encoded)
        return (rows, source) if isinstance(source, Source) else source

    def _is_fitted(self, loader: Iterable[Any] | None) -> bool:
        some = None if loader is None else _some(loader)
        if some is None:
            return False
        try:
            with self._grad():
                self.detector.predict(some[0].to(self._device()))
        except RequiresFittingException:
            return False
        except Exception:  # some fall over what they lack
            return False
        return True

    def _device(self) -> torch.device:
        return self.detector.device or device_of(unwrap(self.network))

    def _grad(self) -> Any:
        """What ``predict`` is called under: some need gradients, of weights, too."""
        needs = isinstance(self.detector, GradientDetector) or kind_of(self.detector) is None
        return torch.set_grad_enabled(needs)


class _Pairs:
    """A loader whose batches are (images, labels), as pytorch-ood's detectors expect."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self._loader:
            images, labels = unpack(batch)
            if len(images):
                yield images, torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)


def _some(loader: Any) -> tuple[Tensor, np.ndarray] | None:
    """Some images of a loader, and their labels; None where it is used up by reading it, or they make no batch."""
    dataset: Any = getattr(loader, "dataset", None)
    try:
        with undisturbed():
            if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
                count = len(dataset)
                places = np.unique(np.linspace(0, count - 1, min(count, CHECKED)).astype(int)).tolist()
                collate = getattr(loader, "collate_fn", None) or data.default_collate
                return unpack(collate([dataset[place] for place in places]))
            if iter(loader) is loader:
                return None
            images, labels = unpack(next(iter(loader)))
            return images[:CHECKED], labels[:CHECKED]
    except Exception:  # whatever it is: the pass itself says it better
        return None
