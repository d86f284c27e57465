"""A network by its name or file, with its weights and the transform of its images."""

from __future__ import annotations

import functools
import os
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..features.extractor import prepare_images
from ..features.head import logits_in_eval_mode
from ..features.network import check_network
from .huggingface import load_classifier
from .specs import DEFAULT, import_object, library, library_class_names, timm_name, torchvision_builder
from .transforms import Transform, transform_for
from .weights import Say, StateDict, class_count, load_weights, read_state_dict, renamed_to_fit

ALLOWED = "torchvision:NAME, timm:NAME, hf:NAME_OR_FOLDER, package.module:function or file.py:function"
_BUILT = 7
"""Number of classes of the network that weights are compared with."""
_TRANSFORMING_INPUT = ("googlenet", "inception_v3")
Weights = str | os.PathLike[str] | None
Build = Callable[..., nn.Module]


@dataclass
class LoadedNetwork:
    """A network that is ready to run."""

    network: nn.Module
    """In eval mode, on the CPU."""
    transform: Transform
    """From a PIL image in RGB to the float tensor (3, H, W) that the network expects."""
    name: str
    """Spec that it was loaded by."""
    description: str
    """The transform in one line."""
    classes: list[str] = field(default_factory=list)
    """Names of the classes 0, 1, … (empty if they are unknown)."""

    def class_count(self, image: Tensor) -> int:
        """Return C, the number of logits.

        Args:
            image: One transformed image, (3, H, W).
        """
        check_network(self.network)
        images = prepare_images(self.network, torch.stack([image, image]))  # it may fail on a single image
        return int(logits_in_eval_mode(self.network, images).shape[1])


def load_network(
    spec: str, weights: Weights = None, transform: str | Transform | None = None, say: Say | None = None
) -> LoadedNetwork:
    """Load a network with its weights and its transform.

    >>> loaded = load_network("timm:test_resnet", "weights.pth")          # doctest: +SKIP
    >>> logits = loaded.network(loaded.transform(image)[None])            # doctest: +SKIP
    >>> load_network("resnet50")                                          # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    openood_adascale.errors.SettingError: ...

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME`` (a model of the Hugging Face hub, or a folder of its files),
            ``package.module:function`` or ``file.py:function``. The function takes no arguments and returns a network, or a
            network and its transform.
        weights: A file (.safetensors, or a state dict in .pth, .pt or .ckpt), read without executing anything, or
            ``default``, the library's own, which may be downloaded (default: those of the function or of ``hf:``). The
            number of classes of torchvision's and timm's networks follows from the file.
        transform: ``torchvision:NAME``, ``timm:NAME``, ``hf:NAME`` (an image processor), or a function of your own (as
            ``spec``, or itself). ``size=224,resize=256,mean=…,std=…,interpolation=…`` changes the network's (default: that
            of the library's weights, or of the function).
        say: Called with a line if names in the file were changed to fit.

    Raises:
        SettingError: One of them cannot be used, or they do not fit.
    """
    if not isinstance(spec, str) or ":" not in spec:
        raise SettingError("network", spec, ALLOWED)
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise SettingError("weights", weights, f"a file, {DEFAULT}, or nothing")
    kind, _, name = spec.partition(":")
    own: Any = None
    classes: list[str] | None = None
    if kind in ("torchvision", "timm") and name:
        network = _from_library(kind, spec, weights, say)
    else:
        if kind == "hf":
            network, own, classes = load_classifier(spec)
            weights = None if weights == DEFAULT else weights
        else:
            network, own = _from_function(spec)
        if weights == DEFAULT:
            raise SettingError("weights", weights, f"a file, or nothing: {spec} has its own")
        if weights is not None:
            load_weights(network, read_state_dict(weights, say), os.fspath(weights), spec, say)
    network.eval()
    file = "" if weights is None else os.fspath(weights)
    found, description = transform_for(spec, network, own, transform, file)
    if classes is None:
        classes = library_class_names(spec, network, file)
    return LoadedNetwork(network, found, spec, description, classes)


def _from_library(kind: str, spec: str, weights: Weights, say: Say | None) -> nn.Module:
    if kind == "torchvision":
        make = torchvision_builder(spec)
    else:
        make = functools.partial(library("timm", spec).create_model, timm_name(spec))
    if weights is None:
        raise SettingError(
            "weights", weights, f"a file, or {DEFAULT}: those of {spec} are random without one"
        )
    if weights == DEFAULT:
        return _with_default_weights(kind, spec, make)
    file = os.fspath(weights)
    state = read_state_dict(file, say)
    options: dict[str, Any] = {}
    name = spec.partition(":")[2].lower()
    if kind == "torchvision":
        state = _with_new_names(name, state)
        if name in _TRANSFORMING_INPUT:
            # As for torchvision's own weights, whose transform is used; auxiliary heads may have been left out.
            auxiliary = any(".fc" in key and "aux" in key.lower() for key in state)
            options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}
    build = functools.partial(_build, make, spec)
    shapes = _shapes(build, {**options, "num_classes": _BUILT})
    count = class_count(renamed_to_fit(state, shapes)[0], shapes, _BUILT)
    network = build(**options, num_classes=count)
    load_weights(network, state, file, spec, say)
    return network


def _with_default_weights(kind: str, spec: str, make: Build) -> nn.Module:
    try:
        network = make(weights="DEFAULT") if kind == "torchvision" else make(pretrained=True)
    except Exception as error:  # a download that fails
        allowed = f"a file, since {spec}'s own weights cannot be loaded ({type(error).__name__}: {error})"
        raise SettingError("weights", DEFAULT, allowed) from error
    if kind == "timm" and getattr(network, "num_classes", None) == 0:
        raise SettingError("weights", DEFAULT, f"a file with a head: {spec}'s own weights have none")
    return network


def _build(make: Build, spec: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # on a random initialisation that is overwritten
        try:
            return make(**options)
        except Exception as error:  # options that it does not take
            chosen = ", ".join(f"{name}={value}" for name, value in options.items())
            allowed = f"one that can be built with {chosen}; building it: {error}"
            raise SettingError("network", spec, allowed) from error


def _with_new_names(name: str, state: StateDict) -> StateDict:
    """Rename the weights in torchvision's files of DenseNets, which are older than the names of its layers."""
    if not name.startswith("densenet"):
        return state
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    return {old.sub(r"\1\2.", key): value for key, value in state.items()}


def _shapes(build: Build, options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network's weights by name."""
    try:
        with torch.device("meta"):
            network = build(**options)
    except SettingError:  # some initialisations look at the drawn values
        network = build(**options)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _from_function(spec: str) -> tuple[nn.Module, Any]:
    make = import_object("network", spec, ALLOWED)
    wanted = f"a function without arguments that returns a network, or (network, transform): {spec.rpartition(':')[2]}"
    if isinstance(make, nn.Module) or not callable(make):
        raise SettingError("network", spec, f"{wanted} is {type(make).__name__}")
    try:
        made = make()
    except Exception as error:  # anyone's code
        raise SettingError("network", spec, f"{wanted} raised {type(error).__name__}: {error}") from error
    network, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(network, nn.Module) or not (transform is None or callable(transform)):
        kinds = [type(one).__name__ for one in made] if isinstance(made, tuple) else []
        returned = f"({', '.join(kinds)})" if kinds else type(made).__name__
        raise SettingError("network", spec, f"{wanted} returned {returned}")
    try:
        check_network(network)
    except ValueError as error:
        allowed = f"one that can be used; {str(error).removeprefix('network: ')}"
        raise SettingError("network", spec, allowed) from error
    return network, transform
