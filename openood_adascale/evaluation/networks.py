"""A trained network by its name and a file of weights, with the transform that its images need."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from ..errors import SettingError
from .naming import class_names, library, own_object, timm_name, torchvision_builder
from .transforms import Transform, transform_for
from .weights import StateDict, class_count, fill, read_state_dict, without_prefix

ALLOWED = "torchvision:NAME, timm:NAME, package.module:function or file.py:function"
DEFAULT = "default"
"""As ``weights``: the library's own."""
_COUNTS = (7, 11)
"""Of classes, of two networks that show where the head is: they differ there only."""
_SHIFTING = ("googlenet", "inception_v3")
Weights = str | os.PathLike[str] | None


@dataclass
class Loaded:
    """A network that can be run."""

    network: nn.Module
    """In eval mode, on the CPU."""
    transform: Transform
    """Of a PIL image in RGB, the float tensor (3, H, W) that the network wants."""
    name: str
    """What it was loaded by."""
    description: str
    """What the transform does, in a line for people."""
    classes: list[str] = field(default_factory=list)
    """What the classes are called, where the library says it."""


def load_network(spec: str, weights: Weights = None, transform: str | Transform | None = None) -> Loaded:
    """A network with its weights and its transform.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, or ``package.module:function`` or ``file.py:function``, a function
            without arguments that returns a network, or a network and its transform.
        weights: a file (.safetensors, or a state dict in .pth, .pt or .ckpt, read without executing anything);
            ``default`` is the library's own, which may be downloaded; None is what the function gives. How many classes
            torchvision's and timm's networks have follows from the file.
        transform: of torchvision's (``torchvision:NAME``), timm's (``timm:NAME``), one's own (as ``spec``, a function of a
            PIL image; or itself), or ``size=224,resize=256,mean=…,std=…,interpolation=…``, which changes the network's.
            None: that of the library's own weights (of torchvision's, those that the file is named as), or what the function
            gives.

    Raises:
        SettingError: one of them cannot be used, or they do not fit.
    """
    if not isinstance(spec, str) or ":" not in spec:
        raise SettingError("network", spec, ALLOWED)
    if weights is not None and not isinstance(weights, str | os.PathLike):
        raise SettingError("weights", weights, f"a file, {DEFAULT}, or nothing")
    kind, _, name = spec.partition(":")
    own = None
    if kind in ("torchvision", "timm") and name:
        network = _librarys(kind, spec, weights)
    else:
        network, own = _own(spec)
        if weights == DEFAULT:
            raise SettingError(
                "weights", weights, f"a file, or nothing: {spec} is no library's, and gives its own"
            )
        if weights is not None:
            fill(network, read_state_dict(weights), os.fspath(weights), spec)
    network.eval()
    file = "" if weights is None else os.fspath(weights)
    found, description = transform_for(spec, network, own, transform, file)
    return Loaded(network, found, spec, description, class_names(spec, network, file))


def _librarys(kind: str, spec: str, weights: Weights) -> nn.Module:
    build = _torchvisions(spec) if kind == "torchvision" else _timms(spec)
    if weights is None:
        raise SettingError(
            "weights", weights, f"a file, or {DEFAULT}: those of {spec} are random without one"
        )
    if weights == DEFAULT:
        return _defaults(kind, spec, build)
    file = os.fspath(weights)
    state = read_state_dict(file)
    options: dict[str, Any] = {}
    name = spec.partition(":")[2].lower()
    if kind == "torchvision":
        state = _renamed(name, state)
        if name in _SHIFTING:
            # As torchvision's own weights have it, whose transform this is; the auxiliary heads may have been left out.
            auxiliary = any(".fc" in key and "aux" in key.lower() for key in state)
            options = {"transform_input": True, "init_weights": False, "aux_logits": auxiliary}
    one, other = (_outline(build, spec, {**options, "num_classes": count}) for count in _COUNTS)
    state = without_prefix(state, one)
    count = class_count(state, one, other, _COUNTS)
    if count is None:
        heads = [key for key in one if one[key] != other.get(key)]
        raise SettingError(
            "weights", file, f"weights of {spec} with its head ({', '.join(heads) or 'it has none'})"
        )
    network = _built(build, spec, {**options, "num_classes": count})
    fill(network, state, file, spec)
    return network


Build = Callable[..., nn.Module]


def _torchvisions(spec: str) -> Build:
    builder = torchvision_builder(spec)

    def build(**options: Any) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on a random initialisation that is overwritten
            return builder(**options)

    return build


def _timms(spec: str) -> Build:
    timm, name = library("timm", spec), timm_name(spec)

    def build(**options: Any) -> nn.Module:
        network: nn.Module = timm.create_model(name, **options)
        return network

    return build


def _defaults(kind: str, spec: str, build: Build) -> nn.Module:
    try:
        network = build(weights="DEFAULT") if kind == "torchvision" else build(pretrained=True)
    except Exception as error:  # of downloads, the libraries raise whatever theirs do
        allowed = f"a file, since {spec}'s own weights cannot be had ({type(error).__name__}: {error})"
        raise SettingError("weights", DEFAULT, allowed) from error
    if kind == "timm" and getattr(network, "num_classes", None) == 0:
        raise SettingError("weights", DEFAULT, f"a file with a head: {spec}'s own weights have none")
    return network


def _renamed(name: str, state: StateDict) -> StateDict:
    """torchvision's files of DenseNets are older than the names of its layers."""
    if not name.startswith("densenet"):
        return state
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", key): value
        for key, value in state.items()
    }


def _built(build: Build, spec: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        return build(**options)
    except Exception as error:  # of options it does not take, or of what else it needs
        chosen = ", ".join(f"{name}={value}" for name, value in options.items())
        raise SettingError(
            "network", spec, f"one that can be built with {chosen}; building it: {error}"
        ) from error


def _outline(build: Build, spec: str, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights by their names."""
    try:
        with torch.device("meta"):
            network = build(**options)
    except Exception:  # some initialisations look at what they have drawn
        network = _built(build, spec, options)
    return {key: tuple(value.shape) for key, value in network.state_dict().items()}


def _own(spec: str) -> tuple[nn.Module, Any]:
    make = own_object("network", spec, ALLOWED)
    wanted = f"a function without arguments that returns a network, or (network, transform): {spec.rpartition(':')[2]}"
    if isinstance(make, nn.Module) or not callable(make):
        raise SettingError("network", spec, f"{wanted} is {type(make).__name__}")
    try:
        made = make()
    except Exception as error:  # whatever one's own code raises
        raise SettingError("network", spec, f"{wanted} raised {type(error).__name__}: {error}") from error
    network, transform = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(network, nn.Module) or not (transform is None or callable(transform)):
        what = (
            f"({', '.join(type(one).__name__ for one in made)})"
            if isinstance(made, tuple)
            else type(made).__name__
        )
        raise SettingError("network", spec, f"{wanted} returned {what}")
    return network, transform
