"""An image file → RGB, as torchvision's and OpenOOD's readers see it, or an error that says which file and why."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import ImageError, SettingError

# Data that is no picture, or (EPS, WMF) needs another program, which would be run on any file that claims to be one.
_NOT_READ = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_TRUNCATED = threading.Lock()


def pillow() -> Any:
    """PIL.Image with its formats known.

    Raises:
        SettingError: Pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise SettingError("images", "files", f"an installed Pillow (pip install pillow): {error}") from error
    Image.init()
    return Image


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Pillow's formats that are read."""
    return tuple(sorted(set(pillow().OPEN) - _NOT_READ))


@lru_cache(maxsize=1)
def extensions() -> frozenset[str]:
    """How names of image files end, in small letters."""
    readable = formats()
    return frozenset(end.lower() for end, kind in pillow().EXTENSION.items() if kind in readable)


def read_image(path: str) -> Any:
    """A PIL image in RGB, of any size; of an animation its first frame.

    Transparency is dropped, EXIF's orientation and colour profiles are not applied: torchvision's and OpenOOD's readers
    do neither, and what a network has been trained on was read so.

    Raises:
        ImageError: it is not there, no image, broken, truncated, larger than Pillow allows, or of unknown range.
    """
    module = pillow()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise ImageError(path, "is no file")
        with open(path, "rb") as file:
            if not file.read(1):
                raise ImageError(path, "is empty")
            file.seek(0)
            with _whole_images(), module.open(file, formats=formats()) as image:
                image.load()
                return _in_rgb(module, image)
    except ImageError:
        raise
    except Exception as error:  # of broken files, Pillow's decoders raise whatever their parts do
        raise ImageError(path, _reason(module, error)) from error


def _reason(module: Any, error: Exception) -> str:
    if isinstance(error, module.UnidentifiedImageError):
        return "is no image that Pillow can read"
    if isinstance(error, module.DecompressionBombError | module.DecompressionBombWarning):
        return f"is larger than Pillow's limit ({error})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"is broken ({error or type(error).__name__})"


@contextmanager
def _whole_images() -> Iterator[None]:
    """Truncated images are errors, whatever the process has chosen: importing OpenOOD has them filled with grey."""
    from PIL import ImageFile

    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        yield
        return
    with _TRUNCATED:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def _in_rgb(module: Any, image: Any) -> Any:
    mode = image.mode
    if mode == "RGB":
        return image.copy()  # apart from the file
    if mode.startswith("I"):
        return _scaled(module, np.asarray(image), 65535)
    if mode == "F":
        return _scaled(module, np.asarray(image), 1)
    if mode in ("La", "RGBa"):  # colours that are multiplied by their opacity
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    elif mode in ("P", "PA"):
        image = image.convert("RGBA")  # else Pillow warns of transparent palettes
    return image.convert("RGB")


def _scaled(module: Any, pixels: np.ndarray, most: int) -> Any:
    """Grey of more than 8 bits, of which Pillow itself would clip all above 255.

    Args:
        pixels: (H, W).
        most: what is white.
    """
    lowest, highest = pixels.min(), pixels.max()
    if not (lowest >= 0 and highest <= most):  # NaN, too
        raise ValueError(f"grey values from {lowest} to {highest}; expected 0 to {most}")
    return module.fromarray(np.rint(pixels * (255 / most)).astype(np.uint8)).convert("RGB")
