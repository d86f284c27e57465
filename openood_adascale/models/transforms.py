"""Transforms of images for a network: those of its weights or library, or your own."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..features.network import restored_random_state
from .huggingface import load_processor
from .specs import import_object, library, timm_name, torchvision_weights

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
        file: File of its weights: torchvision's, known by their names, have transforms of their own.
    """
    transform, description = _found(network_spec, network, own, chosen, file)
    return transform, f"{description} → {_tried(transform, network_spec if chosen is None else chosen)}"


def _found(
    network_spec: str, network: Any, own: Any, chosen: str | Transform | None, file: str
) -> tuple[Transform, str]:
    if chosen is not None and not isinstance(chosen, str):
        if not callable(chosen):
            raise SettingError("transform", chosen, ALLOWED)
        return chosen, described(chosen)
    changes = _changes(chosen) if chosen is not None and "=" in chosen and ":" not in chosen else {}
    spec = network_spec if chosen is None or changes else chosen
    kind, _, name = spec.partition(":")
    if kind == "torchvision" and name:
        return _torchvision_transform(spec, changes, file if spec == network_spec else "")
    if kind == "timm" and name:
        return _timm_transform(spec, network if spec == network_spec else None, changes)
    if changes:
        return _composed(str(chosen), changes)
    if chosen is None:
        if own is None:
            allowed = f"one, since {network_spec} has none: {ALLOWED}; or let it return network, transform"
            raise SettingError("transform", None, allowed)
        return own, described(own)
    transform = load_processor(spec) if kind == "hf" else import_object("transform", chosen, ALLOWED)
    if not callable(transform):
        raise SettingError("transform", chosen, "a function that takes a PIL image and returns a tensor")
    return transform, described(transform)


def _changes(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = (word.strip() for word in part.partition("="))
        if key not in KEYS or key in found or not value:
            raise SettingError("transform", text, f"each of {', '.join(KEYS)} at most once, as in {SYNTAX}")
        found[key] = _value(text, key, value)
    return found


def _value(text: str, key: str, value: str) -> Any:
    if key == "interpolation":
        if value not in INTERPOLATIONS:
            raise SettingError("transform", text, f"interpolation={' or '.join(INTERPOLATIONS)}")
        return value
    if key in ("size", "resize"):
        if not (value.isdecimal() and int(value) > 0):
            raise SettingError("transform", text, f"{key}: a whole number from 1 on")
        return int(value)
    try:
        numbers = [float(number) for number in value.split("/")]
    except ValueError:
        raise SettingError("transform", text, f"{key}: numbers separated by /") from None
    numbers *= 3 if len(numbers) == 1 else 1
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)) or (key == "std" and min(numbers) <= 0):
        above = " above 0" if key == "std" else ""
        raise SettingError("transform", text, f"{key}: one number{above}, or three separated by /")
    return numbers


def _torchvision_transform(spec: str, changes: Mapping[str, Any], file: str) -> tuple[Transform, str]:
    weights, _ = torchvision_weights(spec, file)
    plain = weights.transforms()
    size = changes.get("size", plain.crop_size[0])
    # Without another resize, the crop shows as much of the image as before.
    resize = changes.get("resize", round(size * plain.resize_size[0] / plain.crop_size[0]))
    _check_resize(size, resize)
    mode = type(plain.interpolation)(changes.get("interpolation", plain.interpolation.value))
    mean, std = changes.get("mean", plain.mean), changes.get("std", plain.std)
    transform = weights.transforms(
        crop_size=size, resize_size=resize, mean=tuple(mean), std=tuple(std), interpolation=mode
    )
    whose = f"torchvision's for {weights}{', changed' if changes else ''}"
    return transform, f"{_written(size, resize, mean, std, mode.value)} ({whose})"


def _timm_transform(spec: str, network: Any, changes: Mapping[str, Any]) -> tuple[Transform, str]:
    timm = library("timm", spec)
    if network is not None:
        config = timm.data.resolve_model_data_config(network)
    else:
        pretrained = timm.get_pretrained_cfg(timm_name(spec), allow_unregistered=False)
        config = timm.data.resolve_data_config(pretrained_cfg=pretrained.to_dict())
    if "size" in changes:
        config["input_size"] = (3, changes["size"], changes["size"])
    size = min(config["input_size"][1:])
    if "resize" in changes:
        _check_resize(size, changes["resize"])
        # timm computes floor(size / crop_pct): the half keeps rounding from losing a pixel.
        config["crop_pct"] = size / (changes["resize"] + 0.5)
    config.update({key: changes[key] for key in ("interpolation", "mean", "std") if key in changes})
    sizes = "x".join(map(str, dict.fromkeys(config["input_size"][1:])))
    resize = math.floor(size / config["crop_pct"])
    words = _written(sizes, resize, config["mean"], config["std"], config["interpolation"])
    mode = "" if config["crop_mode"] == "center" else f", crop mode {config['crop_mode']}"
    whose = f"timm's for {spec.partition(':')[2]}{', changed' if changes else ''}{mode}"
    return timm.data.create_transform(**config, is_training=False), f"{words} ({whose})"


def _check_resize(size: int, resize: int) -> None:
    if resize < size:
        raise SettingError(
            "transform", f"resize={resize}", f"a resize of at least size={size}, which is cut from it"
        )


def _composed(text: str, chosen: Mapping[str, Any]) -> tuple[Transform, str]:
    missing = [key for key in ("size", "mean", "std") if key not in chosen]
    if missing:
        allowed = f"{' and '.join(missing)}, too, since the network has no transform of its own"
        raise SettingError("transform", text, allowed)
    library("torchvision", text, "transform")
    from torchvision import transforms

    size, mean, std = chosen["size"], chosen["mean"], chosen["std"]
    resize = chosen.get("resize", round(size * 256 / 224))
    _check_resize(size, resize)
    interpolation = chosen.get("interpolation", "bilinear")
    mode = transforms.InterpolationMode(interpolation)
    steps = [transforms.Resize(resize, mode), transforms.CenterCrop(size), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(mean, std)])
    return transform, _written(size, resize, mean, std, interpolation)


def _written(size: Any, resize: int, mean: Any, std: Any, interpolation: str) -> str:
    """Return the text that :data:`SYNTAX` describes."""
    means, stds = ("/".join(f"{float(number):.4g}" for number in numbers) for numbers in (mean, std))
    return f"size={size},resize={resize},mean={means},std={stds},interpolation={interpolation}"


def described(transform: Any) -> str:
    """Return a transform in one line, which is the same in another process."""
    if isinstance(transform, types.FunctionType | type):
        return f"{transform.__module__}.{transform.__qualname__}"
    text = re.sub(r" at 0x\w+", "", re.sub(r"\s+", " ", repr(transform)))
    return text.replace("( ", "(").replace(" )", ")")


def _tried(transform: Transform, spec: Any) -> str:
    """Return the shape of transformed images as text."""
    from PIL import Image

    wanted = "a function of a PIL image that returns a float tensor (3, H, W)"
    with restored_random_state():
        try:
            found: Any = transform(Image.new("RGB", TRIED, (90, 120, 150)))
        except Exception as error:  # anyone's code
            told = f"{wanted}; it raised {type(error).__name__}: {error}"
            raise SettingError("transform", spec, told) from error
    if not isinstance(found, Tensor) or not torch.is_floating_point(found) or found.dim() != 3:
        what = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise SettingError("transform", spec, f"{wanted}; it returned {what}")
    return " × ".join(map(str, found.shape))
