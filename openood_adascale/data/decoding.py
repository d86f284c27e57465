"""Decoding of image files to RGB, as torchvision's and OpenOOD's readers do."""

from __future__ import annotations

import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import ImageError, SettingError

# Formats that are not pictures, or (EPS, WMF) run another program.
_NOT_READ = frozenset({"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"})
_BITS_PER_SAMPLE = 258  # a TIFF tag
_TRUNCATED = threading.Lock()


def pillow() -> Any:
    """Return ``PIL.Image`` with its formats registered."""
    try:
        from PIL import Image
    except ImportError as error:
        raise SettingError("images", "files", f"an installed Pillow (pip install pillow): {error}") from error
    Image.init()
    return Image


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Return Pillow's formats that are read."""
    return tuple(sorted(set(pillow().OPEN) - _NOT_READ))


@lru_cache(maxsize=1)
def extensions() -> frozenset[str]:
    """Return the extensions of image files in lower case."""
    return frozenset(end.lower() for end, kind in pillow().EXTENSION.items() if kind in formats())


def read_image(path: str, content: bytes | None = None) -> Any:
    """Return a PIL image in RGB, of any size; the first frame of an animation.

    Transparency is dropped, and EXIF orientation and colour profiles are not applied, as torchvision's and OpenOOD's
    readers do: networks have been trained on such images. Grey images of 16 bits are scaled to 8.

    Args:
        path: The file, or the name of the image in errors.
        content: Its bytes (default: read from the file).

    Raises:
        ImageError: No such file, no image, damaged, truncated, larger than Pillow allows, or of an unknown range.
    """
    module = pillow()
    try:
        if content is None and not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would block
            raise ImageError(path, "is no file")
        if not (os.path.getsize(path) if content is None else content):
            raise ImageError(path, "is empty")
        source = path if content is None else io.BytesIO(content)
        with _no_truncated_images(), module.open(source, formats=formats()) as image:
            image.load()
            return _in_rgb(module, image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise anything for damaged files
        raise ImageError(path, _reason(module, error)) from error


def _reason(module: Any, error: Exception) -> str:
    if isinstance(error, module.UnidentifiedImageError):
        return "is no image that Pillow can read"
    if isinstance(error, module.DecompressionBombError | module.DecompressionBombWarning):
        return f"is larger than Pillow's limit ({error})"
    return getattr(error, "strerror", None) or f"is broken ({error or type(error).__name__})"


@contextmanager
def _no_truncated_images() -> Iterator[None]:
    """Make truncated images errors; importing OpenOOD makes Pillow fill them with grey."""
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
    if mode.startswith("I") or mode == "F":
        return _scaled(module, np.asarray(image), 1 if mode == "F" else _white(image))
    if mode in ("La", "RGBa"):  # premultiplied alpha
        image = image.convert("RGBA" if mode == "RGBa" else "LA")
    elif mode in ("P", "PA"):
        image = image.convert("RGBA")  # else Pillow warns of transparent palettes
    return image.convert("RGB")


def _white(image: Any) -> int:
    """Return the grey value of white in an image of Pillow's integer modes."""
    if image.mode == "I" and image.format not in ("PNG", "PPM"):
        return 255  # 32 bits, of which nothing says how many are used
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, 16)
    return int(2 ** min(bits[0] if isinstance(bits, tuple) else bits, 16) - 1)


def _scaled(module: Any, pixels: np.ndarray, white: int) -> Any:
    """Return an RGB image of (H, W) grey values, of which Pillow itself would clip all above 255."""
    lowest, highest = pixels.min(), pixels.max()
    if not (lowest >= 0 and highest <= white):  # or NaN
        raise ValueError(f"grey values from {lowest} to {highest}; expected 0 to {white}")
    return module.fromarray(np.rint(pixels * (255 / white)).astype(np.uint8)).convert("RGB")
