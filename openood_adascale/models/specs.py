"""Names of networks and functions: ``torchvision:NAME``, ``timm:NAME``, ``module:function`` and ``file.py:function``."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from ..errors import SettingError
from ..parallel.sending import import_file

DEFAULT = "default"
"""Value of ``weights``: the library's own."""


def library(name: str, spec: str, setting: str = "network") -> Any:
    """Import a library that only some specs need."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a library built for another torch raises anything
        allowed = f"an installed {name} (pip install {name}); importing it: {error}"
        raise SettingError(setting, spec, allowed) from error


def torchvision_builder(spec: str) -> Callable[..., nn.Module]:
    """Return torchvision's function that builds a classifier."""
    models = library("torchvision", spec).models
    names = models.list_models(module=models)  # classifiers; detection and so on are in modules of their own
    name = spec.partition(":")[2]
    if name.lower() not in names:
        raise SettingError("network", spec, f"torchvision:NAME of a classifier{nearest(name, names)}")
    builder: Callable[..., nn.Module] = models.get_model_builder(name)
    return builder


def torchvision_weights(spec: str, file: str = "") -> tuple[Any, bool]:
    """Return torchvision's weights that ``file`` is, by the name that it is downloaded under, and True.

    For other files, return its best weights and False.
    """
    known = library("torchvision", spec).models.get_model_weights(torchvision_builder(spec))
    for weights in known:
        if os.path.basename(weights.url) == os.path.basename(file):
            return weights, True
    return known.DEFAULT, file == DEFAULT


def timm_name(spec: str) -> str:
    """Return the name of a model of timm's, with the tag of its weights if it has one."""
    timm = library("timm", spec)
    name = spec.partition(":")[2]
    model, _, tag = name.partition(".")
    # timm would also load models of anyone's repository (hf-hub:), which may hold a pickle.
    if ":" in name or not timm.is_model(model):
        raise SettingError("network", spec, f"timm:NAME of a model{nearest(name, timm.list_models())}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise SettingError(
            "network", spec, f"timm:{model} alone, or with one of its tags ({', '.join(tags)})"
        )
    return name


def library_class_names(spec: str, network: nn.Module, file: str) -> list[str]:
    """Return the class names of torchvision's and timm's own weights (empty for others)."""
    kind = spec.partition(":")[0]
    if kind == "torchvision":
        weights, is_own = torchvision_weights(spec, file)
        return list(weights.meta.get("categories", ())) if is_own else []
    if kind == "timm" and file == DEFAULT:
        data = library("timm", spec).data
        if subset := data.infer_imagenet_subset(network):
            info = data.ImageNetInfo(subset)
            return [info.index_to_description(number) for number in range(info.num_classes())]
    return []


def nearest(name: str, names: Iterable[str]) -> str:
    """Return ``, such as A, B`` with the names closest to ``name`` (empty if none is close)."""
    found = difflib.get_close_matches(name.lower(), list(names), 4, 0.5)
    return f", such as {', '.join(found)}" if found else ""


def import_object(setting: str, spec: str, allowed: str) -> Any:
    """Return the object that ``package.module:name`` or ``file.py:name`` names."""
    where, _, name = spec.rpartition(":")
    if not (where and name.isidentifier()):
        raise SettingError(setting, spec, allowed)
    is_file = where.lower().endswith(".py")
    if is_file and not os.path.isfile(where):
        raise SettingError(setting, spec, f"a file that exists; there is no {where!r}")
    try:
        module = _import_file(Path(where).resolve()) if is_file else importlib.import_module(where)
    except Exception as error:  # anyone's code
        told = f"importing {where} raised {type(error).__name__}: {error}"
        raise SettingError(setting, spec, f"{allowed}; {told}") from error
    if not hasattr(module, name):
        defined = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SettingError(setting, spec, f"a function that {where} has{nearest(name, defined)}")
    return getattr(module, name)


def _import_file(path: Path) -> ModuleType:
    """Import a file once, under its own name if that is free, so that processes that read images find it again.

    Its folder is added to the end of ``sys.path``, for those processes and for the file's own imports.
    """
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    importlib.invalidate_caches()
    if _is_found_as(path.stem, path):
        return importlib.import_module(path.stem)
    name = f"{path.stem}_{hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    return import_file(name, path)


def _is_found_as(name: str, path: Path) -> bool:
    try:
        spec = importlib.util.find_spec(name) if name.isidentifier() else None
    except ValueError:  # __main__ and the like
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path
