"""Image classifiers of Hugging Face transformers, with their image processors as transforms."""

from __future__ import annotations

import os
import re
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingError
from .specs import library

PREFIX = "hf:"
_UNNAMED = re.compile(r"LABEL_\d+")


class ProcessorTransform:
    """Transform that applies an image processor of transformers.

    Args:
        processor: The image processor.
    """

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, image: Any) -> Tensor:
        """Return the float tensor (3, H, W) of a PIL image in RGB."""
        values = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return torch.as_tensor(values)

    def __repr__(self) -> str:
        told = self.processor.to_dict()
        names = ("size", "crop_size", "resample", "image_mean", "image_std", "rescale_factor")
        shown = ", ".join(f"{name}={told[name]}" for name in names if told.get(name) is not None)
        return f"{type(self.processor).__name__}({shown})"


def load_classifier(spec: str) -> tuple[nn.Module, ProcessorTransform | None, list[str]]:
    """Return an image classifier, the transform of its image processor, and the names of its classes.

    Args:
        spec: ``hf:NAME`` on the Hugging Face hub, or ``hf:PATH`` of a folder with its files, which needs no internet.

    Raises:
        SettingError: transformers is not installed, no such model, or one that does not classify images.
    """
    place = os.path.expanduser(spec.removeprefix(PREFIX))
    local = os.path.isdir(place)
    if not local and (place.startswith((".", "/")) or place.count("/") > 1 or not place):
        raise SettingError(
            "network", spec, "hf:NAME or hf:FOLDER of a model of transformers; there is no such folder"
        )
    transformers = library("transformers", spec)
    kinds = transformers.AutoModelForImageClassification, transformers.AutoImageProcessor
    options = {"local_files_only": local, "trust_remote_code": False}
    bars = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    if local:  # a bar for a file that is here is gone at once
        bars.disable_progress_bar()
    try:
        network = kinds[0].from_pretrained(place, **options)
    except Exception as error:  # transformers and its downloads raise anything
        told = " ".join(str(error).split())[:300]
        raise SettingError(
            "network", spec, f"an image classifier of transformers ({type(error).__name__}: {told})"
        ) from error
    finally:
        if shown:
            bars.enable_progress_bar()
    try:
        transform = ProcessorTransform(kinds[1].from_pretrained(place, **options))
    except Exception:  # a folder without one: a transform must be given
        transform = None
    return network, transform, _class_names(network)


def _class_names(network: Any) -> list[str]:
    names = getattr(network.config, "id2label", None) or {}
    found = [names.get(number) for number in range(len(names))]
    if not all(isinstance(name, str) for name in found) or all(
        _UNNAMED.fullmatch(str(name)) for name in found
    ):
        return []
    return list(map(str, found))
