"""Transforms of images for a network: those of its weights or library, or your own."""

from __future__ import annotations

import math
import os
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..features.modes import restored_random_state
from .huggingface import PREFIX, ProcessorTransform
from .specs import import_object, library, timm_name, torchvision_builder

Transform = Callable[[Any], Tensor]
"""Function from a PIL image in RGB to a float tensor (3, H, W)."""
KEYS = ("size", "resize", "mean", "std", "interpolation")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "lanczos")
SYNTAX = "size=224,resize=256,mean=0.485/0.456/0.406,std=0.229/0.224/0.225,interpolation=bilinear"
ALLOWED = f"torchvision:NAME, timm:NAME, hf:NAME, package.module:function, file.py:function or {SYNTAX}"
TRIED = (300, 200)
"""Width and height of the image that a transform is tried on."""


def transform_for(
    network_spec: str, network: Any, own: Any, chosen: str | Transform | None, file: str = ""
) -> tuple[Transform, str]:
    """Return a network's transform, and its description in one line.

    Args:
        network_spec: Spec of the network.
        network: The network.
        own: Transform that its function returned, if any.
        chosen: A spec, changes to the network's own transform, or a callable (default: the network's own).
        file: File of its weights. torchvision's weights, known by the names that they are downloaded under, have
            transforms of their own; other files get the one of its best weights.

    Raises:
        SettingError: No transform, or one that cannot be used.
    """
    transform, description = _found(network_spec, network, own, chosen, file)
    return transform, f"{description} → {_tried(transform, network_spec if chosen is None else chosen)}"


def _found(
    network_spec: str, network: Any, own: Any, chosen: str | Transform | None, file: str
) -> tuple[Transform, str]:
    if chosen is not None and not isinstance(chosen, str):
        if not callable(chosen):
            raise SettingError("transform", chosen, ALLOWED)
        return chosen, _described(chosen)
    overrides = _overrides(chosen) if chosen is not None and "=" in chosen and ":" not in chosen else {}
    spec = chosen if chosen is not None and not overrides else network_spec
    kind, _, name = spec.partition(":")
    if kind == "torchvision" and name:
        return _torchvision_transform(spec, overrides, file if spec == network_spec else "")
    if kind == "timm" and name:
        return _timm_transform(spec, network if spec == network_spec else None, overrides)
    if kind == "hf" and chosen is not None and not overrides:
        return _processor(spec)
    if chosen is None:
        if own is None:
            raise SettingError(
                "transform",
                None,
                f"one, since {network_spec} has none: {ALLOWED}; or let it return network, transform",
            )
        return own, _described(own)
    if overrides:
        return _composed(str(chosen), overrides)
    transform = import_object("transform", chosen, ALLOWED)
    if not callable(transform):
        raise SettingError("transform", chosen, "a function that takes a PIL image and returns a tensor")
    return transform, _described(transform)


def _overrides(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in KEYS or key in found or not value:
            raise SettingError("transform", text, f"each of {', '.join(KEYS)} at most once, as in {SYNTAX}")
        found[key] = _value(text, key, value)
    if found.get("resize", math.inf) < found.get("size", 0):
        raise SettingError("transform", text, "a resize of at least size, which is cut from it")
    return found


def _value(text: str, key: str, value: str) -> Any:
    if key == "interpolation":
        if value not in INTERPOLATIONS:
            raise SettingError("transform", text, f"interpolation={' or '.join(INTERPOLATIONS)}")
        return value
    try:
        if key in ("size", "resize"):
            whole = int(value)
            if whole < 1:
                raise ValueError
            return whole
        numbers = [float(number) for number in value.split("/")]
    except ValueError:
        wanted = "a whole number from 1 on" if key in ("size", "resize") else "numbers separated by /"
        raise SettingError("transform", text, f"{key}: {wanted}") from None
    numbers *= 3 if len(numbers) == 1 else 1
    finite = all(map(math.isfinite, numbers))
    if len(numbers) != 3 or not finite or (key == "std" and min(numbers) <= 0):
        above = " above 0" if key == "std" else ""
        raise SettingError("transform", text, f"{key}: one number{above}, or three separated by /")
    return numbers


def _torchvision_transform(spec: str, overrides: Mapping[str, Any], file: str) -> tuple[Transform, str]:
    torchvision = library("torchvision", spec)
    known_weights = torchvision.models.get_model_weights(torchvision_builder(spec))
    same = [one for one in known_weights if os.path.basename(one.url) == os.path.basename(file)]
    weights = same[0] if same else known_weights.DEFAULT
    preset = weights.transforms
    plain = preset()
    known = {
        "crop_size": overrides.get("size", plain.crop_size[0]),
        "resize_size": overrides.get("resize", plain.resize_size[0]),
        "mean": tuple(overrides.get("mean", plain.mean)),
        "std": tuple(overrides.get("std", plain.std)),
        "interpolation": plain.interpolation,
    }
    if "size" in overrides and "resize" not in overrides:
        # The crop shows as much of the image as before.
        known["resize_size"] = round(known["crop_size"] * plain.resize_size[0] / plain.crop_size[0])
    if known["resize_size"] < known["crop_size"]:
        raise SettingError("transform", overrides, f"a resize from size={known['crop_size']} on")
    if "interpolation" in overrides:
        known["interpolation"] = torchvision.transforms.InterpolationMode(overrides["interpolation"])
    words = _written(
        known["crop_size"], known["resize_size"], known["mean"], known["std"], known["interpolation"].value
    )
    whose = f"torchvision's for {weights}{', changed' if overrides else ''}"
    return preset(**known), f"{words} ({whose})"


def _timm_transform(spec: str, network: Any, overrides: Mapping[str, Any]) -> tuple[Transform, str]:
    timm = library("timm", spec)
    if network is not None:
        config = timm.data.resolve_model_data_config(network)
    else:
        pretrained = timm.get_pretrained_cfg(timm_name(spec), allow_unregistered=False)
        config = timm.data.resolve_data_config(pretrained_cfg=pretrained.to_dict())
    if "size" in overrides:
        config["input_size"] = (3, overrides["size"], overrides["size"])
    size = min(config["input_size"][1:])
    if "resize" in overrides:
        if overrides["resize"] < size:
            raise SettingError("transform", dict(overrides), f"a resize from size={size} on")
        # timm computes floor(size / crop_pct): the half keeps rounding from losing a pixel.
        config["crop_pct"] = size / (overrides["resize"] + 0.5)
    config.update({key: overrides[key] for key in ("interpolation", "mean", "std") if key in overrides})
    resize = math.floor(size / config["crop_pct"])
    words = _written(
        "x".join(map(str, dict.fromkeys(config["input_size"][1:]))),
        resize, config["mean"], config["std"], config["interpolation"],
    )  # fmt: skip
    mode = "" if config["crop_mode"] == "center" else f", crop mode {config['crop_mode']}"
    whose = f"timm's for {spec.partition(':')[2]}{', changed' if overrides else ''}{mode}"
    return timm.data.create_transform(**config, is_training=False), f"{words} ({whose})"


def _processor(spec: str) -> tuple[Transform, str]:
    processors = library("transformers", spec, "transform").AutoImageProcessor
    place = os.path.expanduser(spec.removeprefix(PREFIX))
    try:
        found = ProcessorTransform(processors.from_pretrained(place, local_files_only=os.path.isdir(place)))
    except Exception as error:  # transformers and its downloads raise anything
        told = " ".join(str(error).split())[:300]
        raise SettingError(
            "transform", spec, f"an image processor ({type(error).__name__}: {told})"
        ) from error
    return found, _described(found)


def _composed(text: str, chosen: Mapping[str, Any]) -> tuple[Transform, str]:
    missing = [key for key in ("size", "mean", "std") if key not in chosen]
    if missing:
        raise SettingError(
            "transform", text, f"{' and '.join(missing)}, too, since the network has no transform of its own"
        )
    library("torchvision", text)
    from torchvision import transforms

    resize = chosen.get("resize", round(chosen["size"] * 256 / 224))
    interpolation = chosen.get("interpolation", "bilinear")
    steps = [
        transforms.Resize(resize, transforms.InterpolationMode(interpolation)),
        transforms.CenterCrop(chosen["size"]),
        transforms.ToTensor(),
        transforms.Normalize(chosen["mean"], chosen["std"]),
    ]
    return transforms.Compose(steps), _written(
        chosen["size"], resize, chosen["mean"], chosen["std"], interpolation
    )


def _written(size: Any, resize: int, mean: Any, std: Any, interpolation: str) -> str:
    """Return the text that :data:`SYNTAX` describes."""
    means, stds = ("/".join(f"{float(number):.4g}" for number in numbers) for numbers in (mean, std))
    return f"size={size},resize={resize},mean={means},std={stds},interpolation={interpolation}"


def _described(transform: Any) -> str:
    if isinstance(transform, types.FunctionType | type):
        return f"{transform.__module__}.{transform.__qualname__}"
    return (
        re.sub(r" at 0x\w+", "", re.sub(r"\s+", " ", repr(transform))).replace("( ", "(").replace(" )", ")")
    )


def _tried(transform: Transform, spec: Any) -> str:
    """Return the shape of transformed images as text."""
    from PIL import Image

    wanted = "a function of a PIL image that returns a float tensor (3, H, W)"
    with restored_random_state():
        try:
            found: Any = transform(Image.new("RGB", TRIED, (90, 120, 150)))
        except Exception as error:  # anyone's code
            raise SettingError(
                "transform", spec, f"{wanted}; it raised {type(error).__name__}: {error}"
            ) from error
    if not isinstance(found, Tensor) or not torch.is_floating_point(found) or found.dim() != 3:
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise SettingError("transform", spec, f"{wanted}; it returned {what}")
    return " × ".join(map(str, found.shape))
