"""Folders, lists and CSVs of images: which files, in which order, and of which class."""

import inspect
import os
import subprocess

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from openood_adascale.errors import SettingError
from openood_adascale.evaluation.folders import find_broken, find_images
from openood_adascale.evaluation.listing import _place
from openood_adascale.evidence.fingerprint import images_digest

Image = pytest.importorskip("PIL.Image")


def picture(path, shade=100, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, shade // 2)).save(path)
    return path


def names(files, root):
    return [os.path.relpath(path, root) for path in files.paths]


# Folders.


def test_all_images_in_order(tmp_path):
    for name in (
        "b/2.png",
        "b/10.png",
        "a.JPG",
        "ä ö.bmp",
        "B/1.gif",
        ".hidden.png",
        ".git/x.png",
        "__MACOSX/a.png",
    ):
        picture(tmp_path / name)
    for name in ("notes.txt", "video.mpg", "page.pdf", "b/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dots.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    files = find_images(tmp_path)
    assert names(files, tmp_path) == ["a.JPG", "B/1.gif", "b/2.png", "b/10.png", "ä ö.bmp"]
    assert files.labels == [-1] * 5
    assert len(files) == 5
    assert files.root == str(tmp_path)
    image, label = files[0]
    assert image.shape == (3, 8, 8)
    assert image.dtype == torch.float32
    assert label == -1


@given(st.lists(st.text(min_size=1, max_size=8).filter(lambda text: "/" not in text), max_size=8))
def test_any_names_have_one_order(found):
    places = [(name,) for name in found]
    backwards = places[::-1]
    assert sorted(places, key=_place) == sorted(backwards, key=_place)


def test_numbers_are_numbers():
    given_names = ["x10.png", "x9.png", "x.png", "X1.png", "10.png", "9.png"]
    assert [name for (name,) in sorted([(name,) for name in given_names], key=_place)] == [
        "9.png", "10.png", "x.png", "X1.png", "x9.png", "x10.png",
    ]  # fmt: skip


def test_names_that_are_no_text(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        file.write(picture(tmp_path / "x.png").read_bytes())
    files = find_images(tmp_path)
    assert os.fsencode(files.paths[0]) == path
    assert len([files[0], files[1]]) == 2
    assert images_digest(DataLoader(files)) is not None
    with open(path, "wb"):
        pass
    [(broken, why)] = find_broken(files, progress=False)
    assert os.fsencode(broken) == path
    assert why == "is empty"


def test_links_are_followed_and_circles_cut(tmp_path):
    root = tmp_path / "root"
    picture(root / "a/1.png")
    picture(tmp_path / "elsewhere/deep/2.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "one.png").symlink_to(root / "a/1.png")
    (root / "dead.png").symlink_to(tmp_path / "nothing.png")
    (root / "a/up").symlink_to(root)
    (root / "here").symlink_to(".")
    (root / "itself.png").symlink_to("itself.png")
    (root / "x").symlink_to("y")
    (root / "y").symlink_to("x")
    (tmp_path / "elsewhere/back").symlink_to(root)
    files = find_images(root)
    assert names(files, root) == ["a/1.png", "dead.png", "itself.png", "linked/deep/2.png", "one.png"]
    assert [os.path.basename(path) for path, _ in find_broken(files, progress=False)] == [
        "dead.png",
        "itself.png",
    ]


def test_folders_deeper_than_pythons_stack(tmp_path):
    deep = "d/" * 1200
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Image.new("L", (4, 4)).save("x.png")
        os.chdir(tmp_path)
        assert find_images(".").paths == [f"./{deep}x.png"]
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # which pytest cannot


def test_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(SettingError, match=r"images: .*a folder with images.*\.jpg.*\.png") as caught:
        find_images(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(SettingError, match=r"images: .*exists"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(SettingError, match=r"images: ''"):
        find_images("")


def test_a_folder_that_must_not_be_read(tmp_path, monkeypatch):
    picture(tmp_path / "a/1.png")
    picture(tmp_path / "b/1.png")
    scandir = os.scandir

    def refusing(path):
        if os.path.basename(path) == "b":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(SettingError, match=r"images: '.*/b'.*Permission denied"):
        find_images(tmp_path)


# Labels.


def test_classes_are_folders_as_torchvision_has_them(tmp_path):
    for name in ("10/a.png", "9/b.png", "9/deep/c.png", "Zebra/d.png", "ant/e.png"):
        picture(tmp_path / name)
    (tmp_path / "none").mkdir()
    (tmp_path / ".cache").mkdir()
    files = find_images(tmp_path, "folders")
    assert files.classes == ["10", "9", "Zebra", "ant", "none"]
    known = {os.path.basename(path): label for path, label in zip(files.paths, files.labels, strict=True)}
    assert known == {"a.png": 0, "b.png": 1, "c.png": 1, "d.png": 2, "e.png": 3}
    torchvision = pytest.importorskip("torchvision.datasets")
    if "allow_empty" not in inspect.signature(torchvision.ImageFolder).parameters:
        pytest.skip("this torchvision refuses classes without an image")
    theirs = torchvision.ImageFolder(tmp_path, allow_empty=True)
    assert [name for name in theirs.classes if name != ".cache"] == files.classes
    picture(tmp_path / "stray.png")
    with pytest.raises(SettingError, match=r"labels: 'folders'.*stray\.png"):
        find_images(tmp_path, "folders")


def test_folders_are_no_labels_of_a_flat_folder_or_a_file(tmp_path):
    path = picture(tmp_path / "a.png")
    assert find_images(path).paths == [str(path)]
    for where in (path, tmp_path):
        with pytest.raises(SettingError, match="labels: 'folders'"):
            find_images(where, "folders")


def test_labels_of_a_csv(tmp_path):
    for name in ("set/a b.png", "set/x/c.png"):
        picture(tmp_path / name)
    table = tmp_path / "labels.csv"
    for text in (
        "path,label\nset/a b.png,3\nset/x/c.png,1\n",
        "\ufeffLabel, Path, other\r\n3.0,a b.png,x\r\n1,x/c.png,y\r\n",
        f'path,label\n"{tmp_path}/set/a b.png",3\n./set/../set/x/c.png,1\nmore.png,9\n',
    ):
        table.write_text(text, encoding="utf-8")
        assert find_images(tmp_path / "set", table).labels == [3, 1]
    assert find_images(tmp_path / "set/x/c.png", table).labels == [1]
    for text, match in {
        "path,label\nset/a b.png,3\n": r"1 of 2 have none, such as '.*c\.png'",
        "file,label\nset/a b.png,3\n": "columns path and label; it has file, label",
        "path\nset/a b.png\n": "columns path and label",
        "": "columns path and label",
        "path,label\nset/a b.png,cat\n": r"labels: 'cat'.*line 2",
        "path,label\nset/a b.png,1.5\n": "labels: '1.5'",
        "path,label\nset/a b.png,nan\n": "labels: 'nan'",
        "path,label\nset/a b.png,inf\n": "labels: 'inf'",
    }.items():
        table.write_text(text)
        with pytest.raises(SettingError, match=match):
            find_images(tmp_path / "set", table)
    with pytest.raises(SettingError, match=r"labels: '.*no\.csv'.*folders, or a CSV that exists"):
        find_images(tmp_path / "set", tmp_path / "no.csv")


def test_a_csv_of_images(tmp_path):
    picture(tmp_path / "set/a, b.png")
    picture(tmp_path / "c.png")
    table = tmp_path / "images.csv"
    table.write_text('path,label\n"set/a, b.png",3\nc.png,\n')
    files = find_images(table)
    assert names(files, tmp_path) == ["set/a, b.png", "c.png"]
    assert files.labels == [3, -1]
    table.write_text("path\nc.png\n")
    assert find_images(table).labels == [-1]
    with pytest.raises(SettingError, match=r"labels: 'folders'.*none"):
        find_images(table, "folders")
    table.write_text("path,label\n")
    with pytest.raises(SettingError, match="at least one image"):
        find_images(table)


def test_openoods_lists(tmp_path):
    picture(tmp_path / "data/a.png")
    picture(tmp_path / "data/b c.png")
    (tmp_path / "lists").mkdir()
    listing = tmp_path / "lists/val.txt"
    listing.write_text("a.png 7\n\nb c.png -1\na.png {'label': 4, 'more': [1]}\na.png\n")
    files = find_images(listing, root=tmp_path / "data")
    assert names(files, tmp_path / "data") == ["a.png", "b c.png", "a.png", "a.png"]
    assert files.labels == [7, -1, 4, -1]
    with pytest.raises(SettingError, match=r"none of them is in '.*lists', such as '.*a\.png'"):
        find_images(listing)
    with pytest.raises(SettingError, match=r"root: .*is no list"):
        find_images(tmp_path / "data", root=tmp_path)


def test_labels_that_no_number_can_be(tmp_path):
    picture(tmp_path / "a.png")
    for label in ("9" * 20, "9" * 5000, "-" + "9" * 400, "{'label': 99999999999999999999}"):
        (tmp_path / "list.txt").write_text(f"a.png 1\na.png {label}\n")
        with pytest.raises(SettingError, match=r"labels: .*a whole number, the class .*list\.txt, line 2"):
            find_images(tmp_path / "list.txt")
    for more in ("{[]: 1}", "{" * 2000, "{'label': '1'}", "{'label': True}", "{1, 2}"):
        (tmp_path / "list.txt").write_text(f"a.png 1\na.png {more}\n")
        assert find_images(tmp_path / "list.txt").labels == [1, -1]
