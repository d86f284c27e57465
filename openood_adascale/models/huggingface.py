"""Image classifiers of Hugging Face transformers, with their image processors as transforms."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingError
from .specs import library

_SHOWN = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor")


class ProcessorTransform:
    """Transform that applies an image processor of transformers."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Any) -> Tensor:
        """Return the float tensor (3, H, W) of a PIL image in RGB."""
        return torch.as_tensor(self.processor(images=image, return_tensors="pt")["pixel_values"][0])

    def __repr__(self) -> str:
        told = self.processor.to_dict()
        shown = ", ".join(f"{name}={told[name]}" for name in _SHOWN if told.get(name) is not None)
        return f"{type(self.processor).__name__}({shown})"


def load_processor(spec: str) -> ProcessorTransform:
    """Return the image processor of ``hf:NAME`` or ``hf:FOLDER``."""
    return ProcessorTransform(_load("AutoImageProcessor", "transform", spec, "an image processor"))


def load_classifier(spec: str) -> tuple[nn.Module, ProcessorTransform | None, list[str]]:
    """Return the image classifier, the transform of its image processor, and the names of its classes.

    ``spec`` is ``hf:NAME`` on the Hugging Face hub, or ``hf:FOLDER`` of its files, which needs no internet.
    """
    network = _load("AutoModelForImageClassification", "network", spec, "an image classifier of transformers")
    transform: ProcessorTransform | None = None
    with suppress(SettingError):  # a folder without one: a transform must be given
        transform = load_processor(spec)
    names = getattr(network.config, "id2label", None) or {}
    classes = [names.get(number) for number in range(len(names))]
    unnamed = all(isinstance(name, str) and re.fullmatch(r"LABEL_\d+", name) for name in classes)
    named = not unnamed and all(isinstance(name, str) for name in classes)
    return network, transform, list(map(str, classes)) if named else []


def _load(kind: str, setting: str, spec: str, wanted: str) -> Any:
    place = os.path.expanduser(spec.removeprefix("hf:"))
    local = os.path.isdir(place)
    if not local and (place.startswith((".", "/")) or place.count("/") > 1 or not place):
        raise SettingError(
            setting, spec, "hf:NAME or hf:FOLDER of a model of transformers; there is no such folder"
        )
    loader = getattr(library("transformers", spec, setting), kind)
    try:
        return loader.from_pretrained(place, local_files_only=local, trust_remote_code=False)
    except Exception as error:  # transformers and its downloads raise anything
        told = " ".join(str(error).split())[:300]
        raise SettingError(setting, spec, f"{wanted} ({type(error).__name__}: {told})") from error
