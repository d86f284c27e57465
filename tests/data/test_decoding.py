"""Image files of every kind become RGB, or an error that says which file and why."""

import io
import os
import pickle
import resource
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


def pixels(path):
    image = read_image(str(path))
    assert image.mode == "RGB"
    return np.asarray(image)


def saved(path, image, **options):
    image.save(path, **options)
    return path


GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("kind", ["png", "bmp", "tif", "webp", "gif", "jpg"])
def test_grey(tmp_path, kind):
    options = {"lossless": True} if kind == "webp" else {"quality": 100} if kind == "jpg" else {}
    found = pixels(saved(tmp_path / f"x.{kind}", Image.fromarray(GREY), **options))
    np.testing.assert_allclose(found, np.repeat(GREY[..., None], 3, 2), atol=2 if kind == "jpg" else 0)


@pytest.mark.parametrize("kind", ["png", "tif", "pgm"])
def test_sixteen_bits_are_scaled(tmp_path, kind):
    deep = GREY.astype(np.uint16) * 257
    found = pixels(saved(tmp_path / f"x.{kind}", Image.fromarray(deep)))
    np.testing.assert_array_equal(found, np.repeat(GREY[..., None], 3, 2))


def test_sixteen_bits_of_the_other_order(tmp_path):
    deep = Image.frombytes("I;16B", (16, 16), (GREY.astype(">u2") * 257).tobytes())
    np.testing.assert_array_equal(pixels(saved(tmp_path / "x.tif", deep))[..., 1], GREY)


def test_floats(tmp_path):
    found = pixels(saved(tmp_path / "x.tif", Image.fromarray((GREY / 255).astype(np.float32))))
    np.testing.assert_array_equal(found[..., 0], GREY)
    for values in (
        GREY.astype(np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.full((4, 4), -1, np.int32),
    ):
        with pytest.raises(ImageError, match=r"x\.tif.*grey values from .* expected 0 to"):
            pixels(saved(tmp_path / "x.tif", Image.fromarray(values)))


@pytest.mark.parametrize("kind", ["int32", "float32"])
def test_32_bit_tiff_is_read_as_values_or_refused(tmp_path, kind):
    """Nothing says that 65,535 is white in a TIFF of 32 bits, as what NumPy's default integers become."""
    values = (GREY / 255 if kind == "float32" else GREY).astype(kind)
    np.testing.assert_array_equal(pixels(saved(tmp_path / "x.tif", Image.fromarray(values)))[..., 0], GREY)
    with pytest.raises(ImageError, match="expected 0 to"):
        pixels(saved(tmp_path / "x.tif", Image.fromarray((values * 300).astype(kind))))


def test_one_bit(tmp_path):
    black_and_white = Image.fromarray(GREY).point(lambda value: 255 * (value > 99), "1")
    found = pixels(saved(tmp_path / "x.png", black_and_white))
    np.testing.assert_array_equal(found[..., 2], np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P", "PA", "CMYK", "YCbCr", "L", "RGB"])
@pytest.mark.filterwarnings("error")
def test_modes_are_converted_as_others_do(tmp_path, mode, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)  # OpenOOD's import sets it
    rng = np.random.default_rng(0)
    whole = Image.fromarray(rng.integers(0, 256, (12, 10, 3), dtype=np.uint8))
    image = whole.convert("RGBA")
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
def test_a_palette_with_transparency(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    for transparency in (1, bytes([0, 128])):
        found = pixels(saved(tmp_path / "x.png", image, transparency=transparency))
        assert {*map(tuple, found.reshape(-1, 3).tolist())} == {(200, 100, 50)}


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_of_animations_the_first_frame(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    options = {"lossless": True} if kind == "webp" else {}
    path = saved(tmp_path / f"x.{kind}", frames[0], save_all=True, append_images=frames[1:], **options)
    assert pixels(path)[3, 3].tolist() == [255, 0, 0]


def test_orientation_is_left_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pixels(saved(tmp_path / "x.jpg", Image.new("RGB", (20, 10)), exif=exif)).shape == (10, 20, 3)


def encoded(kind, size=(64, 64)):
    file = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()


def huge():
    """A PNG that says that it is of 60,000 × 60,000 pixels."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"0")), chunk(b"IEND", b"")]
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
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled)  # as importing OpenOOD leaves it
    content, why = BROKEN[what]
    path = tmp_path / "née x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=why) as caught:
        read_image(str(path))
    assert caught.value.path == str(path)
    assert "née x.png" in str(caught.value)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.why, str(again)) == (str(path), caught.value.why, str(caught.value))
    assert filled == ImageFile.LOAD_TRUNCATED_IMAGES


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name, why in {"pipe.png": "is no file", ".": "is no file", "none.png": "No such file"}.items():
        with pytest.raises(ImageError, match=why):
            read_image(str(tmp_path / name))
    with pytest.raises(ImageError, match="null"):
        read_image("a\0b.png")


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), st.data())
def test_whatever_is_damaged_is_read_or_named(tmp_path_factory, kind, data):
    content = bytearray(encoded(kind, (9, 9)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    with suppress(ImageError):
        assert read_image(str(path)).mode == "RGB"


def test_memory_does_not_grow(tmp_path):
    path = saved(tmp_path / "x.png", Image.new("RGB", (2000, 1000)))
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        read_image(str(path))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(40):
        read_image(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30_000  # kB; all of them are 240 MB
    assert len(os.listdir("/proc/self/fd")) == opened


def test_which_names_are_images():
    assert {
        ".jpg",
        ".jpeg",
        ".png",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".webp",
        ".ppm",
        ".jfif",
    } <= extensions()
    assert not {".pdf", ".eps", ".ps", ".h5", ".mpg", ".txt", ".wmf"} & extensions()
