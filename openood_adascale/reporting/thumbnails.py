"""Small copies of image files, as they stand inside a page."""

from __future__ import annotations

import io
from dataclasses import dataclass

from ..errors import ImageError, SettingError
from ..evaluation.images import read_image

SIDE = 144
"""The longer side of a large image's copy, in pixels; shown at two thirds of it, for sharp screens."""
_SMALL = 64
"""Up to this side an image stands in the page as it is."""


@dataclass(frozen=True)
class Thumbnail:
    """An image file of its own."""

    content: bytes
    kind: str
    """``image/jpeg`` or ``image/png``."""
    width: int
    height: int
    """In pixels."""


class Thumbnails:
    """Makes the copies, each once, and remembers what could not be read."""

    def __init__(self) -> None:
        self._made: dict[str, Thumbnail | None] = {}
        self.broken: dict[str, str] = {}
        """By path, what is the matter with those that were asked for in vain."""

    def of(self, path: str) -> Thumbnail | None:
        """The small copy of an image file; None where there is none to read."""
        if path not in self._made:
            try:
                self._made[path] = _small(path)
            except ImageError as error:
                self._made[path], self.broken[path] = None, error.why
            except (SettingError, ValueError, OSError) as error:  # no Pillow, or a path that no file can have
                self._made[path], self.broken[path] = None, str(error)
        return self._made[path]


def _small(path: str) -> Thumbnail:
    image = read_image(path)
    buffer = io.BytesIO()
    if max(image.size) <= _SMALL:
        image.info.clear()
        image.save(buffer, "png", optimize=True)
        return Thumbnail(buffer.getvalue(), "image/png", *image.size)
    scale = min(1.0, SIDE / max(image.size))
    small = image.resize(tuple(max(1, round(side * scale)) for side in image.size), reducing_gap=3.0)
    small.info.clear()  # nothing of the file but its pixels: no place, no profile, no comment
    small.save(buffer, "jpeg", quality=82)
    return Thumbnail(buffer.getvalue(), "image/jpeg", *small.size)
