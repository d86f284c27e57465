"""Images of the demo, rendered from Matplotlib's fonts and cut from scikit-learn's sample photos."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_images
from torch import Tensor

SIDE = 32
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
CYRILLIC = "БДЖИЛФЦЧШЩЪЫЭЮЯ"
MATHS = "∂∇∏∑√∞∠∫≈≡≤≥≠±÷⊕⊗∈"
SYMBOLS = "☀☁☂☃☎☘☠☢☣☤☮☯☸☺♔♕♖♘♞♠♣♥♫♻⚓⚔⚖⚛⚜✂✈✉✌✎✽❀"
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol"),
)
SYMBOL_FONTS = FONTS[:3]

_SIZES = (16, 27)  # half-open range of a glyph's longer side, in pixels
_ROTATION = 12.0  # largest rotation in either direction, in degrees
_CONTRAST = 80.0  # smallest difference of luminance between glyph and background, out of 255
_PATCH = 64  # side of the square cut from a photo, in pixels
TEXTURE = 15.0
"""Smallest standard deviation of a photo patch, out of 255; flatter patches are empty sky or shadow."""
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_OVERSAMPLING = 2
_REFERENCE = 64

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class DemoData:
    """Images and labels of the demo.

    All images are uint8 arrays of shape (N, 32, 32, 3), all labels int64 arrays of shape (N,).
    """

    train: Images
    train_labels: NDArray[np.int64]
    val: Images
    val_labels: NDArray[np.int64]
    test: Images
    test_labels: NDArray[np.int64]
    near: dict[str, Images]
    """Near-OOD test images by dataset name."""
    far: dict[str, Images]
    """Far-OOD test images by dataset name."""
    ood_val: Images
    """OOD validation images; none of their characters occurs in ``near``."""
    classes: tuple[str, ...] = tuple(LETTERS)

    def normalize(self, images: Images) -> Tensor:
        """Return images as the network's input.

        Args:
            images: uint8 array of shape (N, 32, 32, 3).

        Returns:
            float32 tensor of shape (N, 3, 32, 32) in units of the training images' standard deviation.
        """
        pixels = self.train.reshape(-1, 3) / 255
        mean, std = (
            torch.from_numpy(value).float().view(3, 1, 1) for value in (pixels.mean(0), pixels.std(0))
        )
        tensor = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return ((tensor - mean) / std).contiguous()


def load_data(
    seed: int = 0, train: int = 6000, val: int = 1000, test: int = 1000, ood: int = 500
) -> DemoData:
    """Render the demo's images.

    Args:
        seed: Seed of all random choices.
        train: Number of training images.
        val: Number of ID validation images.
        test: Number of ID test images.
        ood: Number of images of each OOD dataset and of the OOD validation images.

    Example:
        >>> data = load_data(train=52, val=26, test=26, ood=6)
        >>> data.train.shape
        (52, 32, 32, 3)
    """
    rng = np.random.default_rng(seed)
    splits = [render_characters(LETTERS, count, rng) for count in (train, val, test)]
    scripts = {"cyrillic": (CYRILLIC, FONTS), "maths": (MATHS, FONTS), "symbols": (SYMBOLS, SYMBOL_FONTS)}
    near = {
        name: render_characters(split(characters)[0], ood, rng, fonts)[0]
        for name, (characters, fonts) in scripts.items()
    }
    ood_val = []
    for part, (characters, fonts) in zip(np.array_split(np.arange(ood), 3), scripts.values(), strict=True):
        ood_val.append(render_characters(split(characters)[1], len(part), rng, fonts)[0])
    photos = load_sample_images()
    far = {
        f"photo_{Path(name).stem}": _cut_patches(photo, ood, rng)
        for name, photo in zip(photos.filenames, photos.images, strict=True)
    }
    return DemoData(*splits[0], *splits[1], *splits[2], near, far, np.concatenate(ood_val))


def split(characters: str) -> tuple[str, str]:
    """Return the characters of the OOD test images, and every third one, kept for the OOD validation images."""
    validation = characters[2::3]
    return "".join(one for one in characters if one not in validation), validation


def render_characters(
    characters: str, count: int, rng: np.random.Generator, fonts: Sequence[str] = FONTS
) -> tuple[Images, NDArray[np.int64]]:
    """Render images of single characters, each equally often; font, size, place, rotation and colours are random.

    Args:
        characters: Characters to draw.
        count: Number of images.
        rng: Source of randomness.
        fonts: Names of Matplotlib's TrueType fonts that contain the characters.

    Returns:
        uint8 images of shape (count, 32, 32, 3), and the index of each image's character.
    """
    labels = rng.permutation(np.arange(count) % len(characters))
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    for row, label in enumerate(labels):
        images[row] = _render(characters[label], fonts[int(rng.integers(len(fonts)))], rng)
    return images, labels


def _render(character: str, font: str, rng: np.random.Generator) -> Images:
    canvas = SIDE * _OVERSAMPLING
    left, top, right, bottom = _font(font, _REFERENCE).getbbox(character)
    longer = rng.integers(*_SIZES) * _OVERSAMPLING
    scaled = _font(font, max(1, round(_REFERENCE * longer / max(right - left, bottom - top))))
    left, top, right, bottom = scaled.getbbox(character)
    width, height = right - left, bottom - top
    x, y = rng.uniform(0, max(1, canvas - width)), rng.uniform(0, max(1, canvas - height))
    mask = Image.new("L", (canvas, canvas))
    ImageDraw.Draw(mask).text((x - left, y - top), character, fill=255, font=scaled)
    mask = mask.rotate(
        rng.uniform(-_ROTATION, _ROTATION), Image.Resampling.BILINEAR, center=(x + width / 2, y + height / 2)
    ).resize((SIDE, SIDE), Image.Resampling.BOX)
    opacity = np.asarray(mask, np.float32)[..., None] / 255
    foreground, background = _colours(rng)
    return (background * (1 - opacity) + foreground * opacity).round().astype(np.uint8)


def _colours(rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw two colours that differ in luminance."""
    while True:
        pair = rng.integers(0, 256, (2, 3))
        if abs((pair[0] - pair[1]) @ _LUMINANCE) >= _CONTRAST:
            return pair


@functools.cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")), size)


def _cut_patches(photo: Images, count: int, rng: np.random.Generator) -> Images:
    """Cut random square patches with some texture from a photo."""
    patches: list[Images] = []
    while len(patches) < count:
        top, left = (int(rng.integers(0, length - _PATCH + 1)) for length in photo.shape[:2])
        square = Image.fromarray(photo[top : top + _PATCH, left : left + _PATCH])
        patch = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BOX))
        if patch.std((0, 1)).mean() >= TEXTURE:
            patches.append(patch)
    return np.stack(patches)
