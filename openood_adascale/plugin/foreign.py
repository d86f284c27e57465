"""OpenOOD's own postprocessors in ``evaluate``, beside the methods of this package: ``openood:NAME``.

Each is run by OpenOOD's Evaluator, over the benchmark's loaders; what :mod:`~.replay` does for that one, it does here, too.
"""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import SettingError
from ..evaluation.benchmark import Benchmark
from ..evidence.batch import hidden
from ..evidence.encode import prepare
from ..evidence.head import logits_of
from ..evidence.modes import device_of, frozen, unwrap
from ..evidence.sharing import current_store, using_store
from .checkout import configs, evaluation_api
from .comparison import FROM_FEATURES
from .dressed import dressed
from .foreign_loaders import first_images, has_labels, no_images, no_labels, paths_of, tree_of
from .names import postprocessor_methods
from .own_data import Classes, OwnData
from .process import say
from .registration import OWN_NAMES, cuda_is, within_evaluator

KIND = "openood"
_DATA = "openood-adascale-folders"
"""What OpenOOD knows the benchmark by, while it makes an Evaluator."""
_LEARN_FROM = {
    "val": ("klm", "temp_scaling", "react", "vra", "residual"),
    "train": ("dice", "she", "knn", "nnguide", "fdbd", "nci", "relation", "vim", "mds", "rmds"),
}
_LEARN_CLASSES = ("temp_scaling", "she", "mds", "rmds")
_WITHOUT_CLASSES = frozenset(FROM_FEATURES) - frozenset(_LEARN_CLASSES)
"""Those that were seen to read no labels."""

_NORMALISE = ("odin", "iodin", "godin")
"""Those that scale what they do to an image by its normalisation."""


class OpenOODs:
    """OpenOOD's postprocessors, as :func:`~openood_adascale.evaluation.own_images.evaluate_folders` takes another
    library's methods.

    Args:
        progress: as :func:`foreign` takes it.
    """

    def __init__(self, progress: bool | None = None) -> None:
        self._progress = progress

    def names(self, named: str) -> list[str]:
        """Those behind ``all`` need only features; others stand for themselves."""
        return list(FROM_FEATURES) if named == "all" else [named]

    def method(self, name: str, network: nn.Module) -> Foreign:
        """See :func:`foreign`."""
        return foreign(name, network, self._progress)


def foreign(name: str, network: nn.Module, progress: bool | None = None) -> Foreign:
    """A postprocessor of OpenOOD's as a method of :func:`~openood_adascale.evaluation.evaluate.evaluate`.

    Its settings and search are those of OpenOOD's own ``configs/postprocessors/NAME.yml``, and its figures those that
    OpenOOD's Evaluator gives. Stored activations serve it where it needs nothing of an image but these, which is found out;
    where they do not, it is run on the images, and a line says why.

    Args:
        name: as OpenOOD calls it.
        network: the classifier; one that is not made as OpenOOD's are is given what its methods ask for.
        progress: True or False shows or hides the bars of its setup; None shows them in a terminal.

    Raises:
        SettingError: no such postprocessor, or one without a yml; or OpenOOD is not there.
    """
    api = evaluation_api(f"{KIND}:{name}")
    ours = postprocessor_methods()
    known = [one for one in sorted(api.postprocessor.postprocessors) if one not in ours]
    if name not in known:
        allowed = f"{KIND}:all ({', '.join(FROM_FEATURES)}), or {KIND}: and one of {', '.join(known)}"
        raise SettingError("--methods", f"{KIND}:{name}", allowed)
    yml = configs() / "postprocessors" / f"{name}.yml"
    if not yml.is_file():  # OpenOOD itself would download it, and write it there
        raise SettingError("--methods", f"{KIND}:{name}", f"one that OpenOOD has a yml of; there is no {yml}")
    return Foreign(name, network, progress)


class Foreign:
    """See :func:`foreign`. It has the methods of OpenOOD's postprocessors."""

    def __init__(self, name: str, network: nn.Module, progress: bool | None) -> None:
        self.name = name
        self.network = network
        self._progress = progress
        self.APS_mode = False
        self.args_dict: Mapping[str, Any] = {}
        """What is searched."""
        self.hyperparam_search_done = False
        self._paths: dict[int, tuple[str, ...]] = {}
        self._images: Tensor | None = None
        self._own: OwnData | None = None
        self._evaluator: Any = None
        self._chosen: list[Any] | None = None
        self._pending = False

    def __repr__(self) -> str:
        return f"foreign({self.name!r}, {type(self.network).__name__})"

    def check(self, benchmark: Benchmark) -> None:
        """Read the yml, and raise where images that the method is known to need are missing, or their labels are.

        Raises:
            SettingError: they are.
        """
        for kind, learning in _LEARN_FROM.items():
            loader = benchmark.known[kind]
            if self.name in learning and loader is None:
                raise no_images(kind)
            if self.name in learning and self.name in _LEARN_CLASSES and not has_labels(loader):
                raise no_labels(kind)
        self._paths = paths_of(benchmark)
        self._images = prepare(unwrap(self.network), first_images(benchmark.test))[:2]
        self._own = self._described(benchmark)
        with self._lent():
            made = self._made()
        self.APS_mode, self.args_dict = made.aps, made.postprocessor.args_dict if made.aps else {}
        self.hyperparam_search_done = False

    def setup(self, net: Any, id_loader_dict: Any, ood_loader_dict: Any) -> None:
        """Have OpenOOD's Evaluator set the postprocessor up, without a search, over the benchmark that was checked last.

        Raises:
            RuntimeError: none was; and whatever the postprocessor raises.
        """
        self._chosen, self._pending = None, False
        self.hyperparam_search_done = False
        self._construct()

    def inference(
        self, net: Any, data_loader: Iterable[Any], progress: bool | None = True
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(N,) predicted classes, scores and labels of the images of one of the benchmark's loaders."""
        path = self._paths[id(data_loader)]
        calls = 0

        def run(evaluator: Any) -> Any:
            nonlocal calls
            calls += 1
            if self._chosen is not None and (self._pending or calls > 1):  # set up anew, it has forgotten
                evaluator.postprocessor.set_hyperparam(list(self._chosen))
            loader = evaluator.dataloader_dict
            for key in path:
                loader = loader[key]
            return evaluator.postprocessor.inference(evaluator.net, loader, progress=progress is not False)

        with self._quietly(), self._lent():  # it may have to be set up anew, on the images
            found = within_evaluator(self._evaluator, run)
        self._pending = False
        predictions, scores, labels = found
        scores = np.asarray(scores)
        if scores.shape == (len(scores), 1):  # as gram's are
            scores = scores[:, 0]
        return predictions, scores, labels

    def set_hyperparam(self, hyperparam: list[Any]) -> None:
        """Have the next inference begin with these values of :attr:`args_dict`, in its order."""
        self._chosen, self._pending = list(hyperparam), True

    def get_hyperparam(self) -> Any:
        """The values of :attr:`args_dict` that were set last; those of the yml as the postprocessor tells them."""
        return self._evaluator.postprocessor.get_hyperparam() if self._chosen is None else list(self._chosen)

    def _construct(self) -> None:
        images: Any = self._images
        api = evaluation_api(f"{KIND}:{self.name}")
        # Named or not: the activations of this process are there for all methods.
        store = current_store()
        with (
            self._quietly(),
            using_store(False if store is None else store),
            self._lent(),
        ):
            self._evaluator = api.Evaluator(
                dressed(self.network, images),
                id_name=_DATA,
                data_root="",
                config_root=str(configs()),
                postprocessor_name=self.name,  # for what the Evaluator wraps the network in
                postprocessor=self._made().postprocessor,
            )

    def _made(self) -> _Made:
        api = evaluation_api(f"{KIND}:{self.name}")
        postprocessor = api.postprocessor.get_postprocessor(str(configs()), self.name, _DATA)
        searched = bool(postprocessor.APS_mode)
        postprocessor.APS_mode = False  # evaluate searches, which knows whether to
        return _Made(postprocessor, searched)

    def _described(self, benchmark: Benchmark) -> OwnData:
        """The benchmark as a data set of one's own, whose loaders are there already."""
        images: Any = self._images
        with frozen(self.network), torch.no_grad():
            classes = logits_of(self.network, self.network(images.clone())).shape[1]
        read = self.name not in _WITHOUT_CLASSES
        unlabelled = [kind for kind in ("train", "val") if read and not has_labels(benchmark.known[kind])]
        transform = getattr(getattr(benchmark.test, "dataset", None), "transform", None)
        return OwnData(
            place=f"{KIND}:{self.name}",
            name=_DATA,
            classes=Classes(classes),
            preprocessing=transform or _as_it_is,
            network=None,
            known={},
            shifted={},
            ood_val=None,
            near={},
            far={},
            loaders=tree_of(benchmark, unlabelled),
        )

    @contextmanager
    def _lent(self) -> Iterator[None]:
        """OpenOOD knows the benchmark meanwhile, and works where the network is."""
        if self._own is None:
            raise RuntimeError(f"{self!r}: call check(benchmark) first, as evaluate does")
        OWN_NAMES.add(self._own)
        try:
            if self.name in _NORMALISE and OWN_NAMES.preprocessing(_DATA).normalization is None:
                say(f"{self.name}: the images' transform shows no mean and std; 0.5 is taken for both")
            with cuda_is(device_of(self.network)):
                yield
        finally:
            OWN_NAMES.remove(_DATA)

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Without what OpenOOD prints, its bars as ours; the weights' gradients are afterwards what they were."""
        before = [(parameter, parameter.grad) for parameter in self.network.parameters()]
        for parameter, _ in before:
            parameter.grad = None
        try:
            with contextlib.redirect_stdout(io.StringIO()), _bars(self._progress):
                yield
        finally:
            for parameter, gradient in before:
                parameter.grad = gradient


@contextmanager
def _bars(progress: bool | None) -> Iterator[None]:
    """Those that OpenOOD shows without being asked."""
    own = tqdm.__init__
    bars: Any = tqdm
    bars.__init__ = functools.partialmethod(own, disable=hidden(progress))
    try:
        yield
    finally:
        bars.__init__ = own


class _Made:
    def __init__(self, postprocessor: Any, aps: bool) -> None:
        self.postprocessor, self.aps = postprocessor, aps


def _as_it_is(image: Any) -> Any:
    return image
