"""Image files of every kind become RGB, or an error that says which file and why."""

import io
import os
import pickle
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openood_adascale.data.decoding import extensions, read_image
from openood_adascale.errors import ImageError

Image = pytest.importorskip("PIL.Image")
ImageFile = pytest.importorskip("PIL.ImageFile")

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
DEEP = GREY.astype(np.uint16) * 257


def saved(path, image, **options):
    image.save(path, **options)
    return path


def pixels(path):
    image = read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize(
    ("name", "image", "options"),
    [
        *((f"x.{kind}", Image.fromarray(GREY), {}) for kind in ("png", "bmp", "tif", "gif")),
        ("x.webp", Image.fromarray(GREY), {"lossless": True}),
        ("x.jpg", Image.fromarray(GREY), {"quality": 100}),
        *((f"x.{kind}", Image.fromarray(DEEP), {}) for kind in ("png", "tif", "pgm")),
        ("x.tif", Image.frombytes("I;16B", (16, 16), DEEP.astype(">u2").tobytes()), {}),
        ("x.tif", Image.fromarray((GREY / 255).astype(np.float32)), {}),
        ("x.tif", Image.fromarray(GREY.astype(np.int32)), {}),
    ],
)
def test_grey_images_of_any_depth_become_8_bits(tmp_path, name, image, options):
    found = pixels(saved(tmp_path / name, image, **options))
    np.testing.assert_allclose(found, np.repeat(GREY[..., None], 3, 2), atol=2 if name == "x.jpg" else 0)


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32),
        (GREY / 255 * 300).astype(np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), -1, np.int32),
        GREY.astype(np.int32) * 300,  # nothing says that 65,535 is white in a TIFF of 32 bits
    ],
)
def test_grey_values_of_an_unknown_range_are_an_error(tmp_path, values):
    with pytest.raises(ImageError, match=r"x\.tif.*grey values from .* expected 0 to"):
        pixels(saved(tmp_path / "x.tif", Image.fromarray(values)))


@pytest.mark.parametrize("mode", ["1", "LA", "RGBA", "P", "PA", "CMYK", "YCbCr", "L", "RGB"])
@pytest.mark.filterwarnings("error")
def test_modes_are_converted_as_pillow_does(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # OpenOOD's import sets it
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8)).convert("RGBA")
    image.putalpha(128)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    path = saved(tmp_path / "x.tif", image)
    with Image.open(path) as opened:
        try:
            opened.load()
        except OSError as error:
            pytest.skip(f"this Pillow does not read what it has written: {error}")
        want = np.asarray(opened.convert("RGBA" if mode in ("P", "PA") else mode).convert("RGB"))
    np.testing.assert_array_equal(pixels(path), want)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transparency", [1, bytes([0, 128])])
def test_transparency_of_a_palette_is_dropped(tmp_path, transparency):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    found = pixels(saved(tmp_path / "x.png", image, transparency=transparency))
    assert {*map(tuple, found.reshape(-1, 3).tolist())} == {(200, 100, 50)}


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_first_frame_is_read_as_it_is_stored(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {
        "save_all": True,
        "append_images": frames[1:],
        **({"lossless": True} if kind == "webp" else {}),
    }
    assert pixels(saved(tmp_path / f"x.{kind}", frames[0], **options))[3, 3].tolist() == [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6  # an orientation, which is not applied
    assert pixels(saved(tmp_path / "x.jpg", Image.new("RGB", (20, 10)), exif=exif)).shape == (10, 20, 3)


def encoded(kind, size=(64, 64)):
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def huge():
    """A PNG that says that it is of 60,000 × 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"0")), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BROKEN = {
    "empty": (b"", "is empty"),
    "text": (b"<html>404</html>", "no image that Pillow can read"),
    "truncated jpeg": (encoded("JPEG")[:3000], "broken.*truncated"),
    "truncated png": (encoded("PNG")[:3000], "broken.*truncated"),
    "header only": (encoded("PNG")[:10], "no image|broken"),
    "damaged png": (encoded("PNG")[:500] + b"junk" * 20 + encoded("PNG")[580:], "broken"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "no image"),
    "huge": (huge(), "larger than Pillow's limit.*3600000000"),
}


@pytest.mark.parametrize("filled", [False, True], ids=["", "after OpenOOD"])
@pytest.mark.parametrize("what", BROKEN)
def test_broken_files_are_named(tmp_path, what, filled, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled)  # as importing OpenOOD leaves it
    content, why = BROKEN[what]
    path = tmp_path / "née x.png"
    path.write_bytes(content)
    for more in ((), (content,)):
        with pytest.raises(ImageError, match=f"née x.png.*{why}") as caught:
            read_image(str(path), *more)
        assert caught.value.path == str(path)
        again = pickle.loads(pickle.dumps(caught.value))
        assert (again.path, again.why, str(again)) == (str(path), caught.value.why, str(caught.value))
    assert filled == ImageFile.LOAD_TRUNCATED_IMAGES


def test_paths_that_are_no_file_are_named(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in {"pipe.png": "is no file", ".": "is no file", "none.png": "No such file"}.items():
        with pytest.raises(ImageError, match=why):
            read_image(str(tmp_path / name))
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), st.data())
def test_damaged_files_are_read_or_named(kind, data):
    content = bytearray(encoded(kind, (9, 9)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ImageError):
        assert read_image("damaged", bytes(content[: data.draw(st.integers(0, len(content)))])).mode == "RGB"


def test_extensions_are_those_of_images():
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm"} <= extensions()
    assert not {".pdf", ".eps", ".ps", ".h5", ".mpg", ".txt", ".wmf"} & extensions()
