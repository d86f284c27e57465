"""The network that a data set of one's own names for OpenOOD's ``eval_ood.py``, without its weights."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import SettingError
from ..evaluation.naming import library, own_object, timm_name, torchvision_builder

ALLOWED = (
    "a class of OpenOOD's networks, such as ResNet18_32x32, torchvision:NAME, timm:NAME, package.module:function or "
    "file.py:function"
)


def build_network(spec: str, place: str, num_classes: int) -> nn.Module:
    """A network, as its weights find it.

    Args:
        spec: a class of ``openood.networks``, a model of torchvision's or timm's, or a function of one's own that returns a
            network (or a network and its transform), given ``num_classes`` if it takes that.
        place: where it is named, for errors.
        num_classes: how many outputs it is to have.

    Raises:
        SettingError: there is no such network, or it cannot be built.
    """
    try:
        make = _maker(spec)
    except SettingError as error:
        raise SettingError(place, error.value, error.allowed) from error
    options = {"num_classes": num_classes} if _takes_a_count(make) else {}
    try:
        made = make(**options)
    except Exception as error:  # whatever one's own code raises
        allowed = f"{ALLOWED}; building it raised {type(error).__name__}: {error}"
        raise SettingError(place, spec, allowed) from error
    network = made[0] if isinstance(made, tuple) and made else made
    if not isinstance(network, nn.Module):
        raise SettingError(place, spec, f"{ALLOWED}; it returned {type(network).__name__}")
    return network


def _maker(spec: str) -> Callable[..., Any]:
    kind, colon, _ = spec.partition(":")
    if kind == "torchvision" and colon:
        return torchvision_builder(spec)
    if kind == "timm" and colon:
        return functools.partial(library("timm", spec).create_model, timm_name(spec))
    make = own_object("network", spec, ALLOWED) if colon else _openoods(spec)
    if isinstance(make, nn.Module) or not callable(make):
        raise SettingError("network", spec, ALLOWED)
    return make


def _openoods(name: str) -> Any:
    from openood import networks

    known = [
        key
        for key, value in vars(networks).items()
        if inspect.isclass(value) and issubclass(value, nn.Module)
    ]
    if name not in known:
        raise SettingError("network", name, f"{ALLOWED}; OpenOOD has {', '.join(sorted(known))}")
    return getattr(networks, name)


def _takes_a_count(make: Callable[..., Any]) -> bool:
    parameters = inspect.signature(make).parameters.values()
    return any(one.name == "num_classes" or one.kind is one.VAR_KEYWORD for one in parameters)
