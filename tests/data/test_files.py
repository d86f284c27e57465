"""Folders, lists and CSVs of images: which files, in which order, and of which class."""

import inspect
import os
import pickle
import traceback

import pytest
import torch
from helpers import picture
from torch.utils.data import DataLoader

from openood_adascale.data.files import FOLDERS, ImageFiles, check_listed, find_broken, find_images
from openood_adascale.errors import ImageError, SettingError

Image = pytest.importorskip("PIL.Image")


def names(files, root):
    return [os.path.relpath(path, root) for path in files.paths]


# Folders.


def test_folder_gives_all_images_in_natural_order(tmp_path):
    shown = [
        "9.png",
        "10.png",
        "a.JPG",
        "B/1.gif",
        "b/2.png",
        "b/10.png",
        "x.png",
        "X1.png",
        "x9.png",
        "ä ö.bmp",
    ]
    for name in (*shown[::-1], ".hidden.png", ".git/x.png", "__MACOSX/a.png"):
        picture(tmp_path / name)
    for name in ("notes.txt", "video.mpg", "page.pdf", "b/Thumbs.db"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "dots.png").mkdir()
    files = find_images(tmp_path)
    assert names(files, tmp_path) == shown
    assert (files.labels, len(files)) == ([-1] * 10, 10)
    image, label = files[0]
    assert (image.shape, image.dtype, label) == ((3, 8, 8), torch.float32, -1)


def test_names_that_are_not_utf8_are_kept(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    with open(path, "wb") as file:
        file.write(picture(tmp_path / "x.png").read_bytes())
    files = find_images(tmp_path)
    assert os.fsencode(files.paths[0]) == path
    assert len([files[0], files[1]]) == 2
    with open(path, "wb"):
        pass
    [(broken, why)] = find_broken(files, progress=False)
    assert (os.fsencode(broken), why) == (path, "is empty")


def test_links_are_followed_but_not_in_circles(tmp_path):
    root = tmp_path / "root"
    picture(root / "a/1.png")
    picture(tmp_path / "elsewhere/deep/2.png")
    for link, target in {
        "linked": tmp_path / "elsewhere",
        "one.png": root / "a/1.png",
        "dead.png": tmp_path / "nothing.png",
        "a/up": root,
        "here": ".",
        "itself.png": "itself.png",
        "x": "y",
        "y": "x",
        "../elsewhere/back": root,
    }.items():
        (root / link).symlink_to(target)
    files = find_images(root)
    assert names(files, root) == ["a/1.png", "dead.png", "itself.png", "linked/deep/2.png", "one.png"]
    broken = [os.path.basename(path) for path, _ in find_broken(files, progress=False)]
    assert broken == ["dead.png", "itself.png"]


def test_places_without_images_are_named(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    for where, match in [
        (tmp_path, rf"images: '{tmp_path}' .*a folder with images.*\.jpg.*\.png"),
        (tmp_path / "nowhere", r"images: .*exists"),
        ("", r"images: ''"),
    ]:
        with pytest.raises(SettingError, match=match):
            find_images(where)


def test_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
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


def test_class_folders_are_numbered_as_torchvision_does(tmp_path):
    for name in ("10/a.png", "9/b.png", "9/deep/c.png", "Zebra/d.png", "ant/e.png"):
        picture(tmp_path / name)
    (tmp_path / "none").mkdir()
    (tmp_path / ".cache").mkdir()
    files = find_images(tmp_path, FOLDERS)
    assert files.classes == ["10", "9", "Zebra", "ant", "none"]
    known = {os.path.basename(path): label for path, label in zip(files.paths, files.labels, strict=True)}
    assert known == {"a.png": 0, "b.png": 1, "c.png": 1, "d.png": 2, "e.png": 3}
    torchvision = pytest.importorskip("torchvision.datasets")
    if "allow_empty" in inspect.signature(torchvision.ImageFolder).parameters:
        theirs = torchvision.ImageFolder(tmp_path, allow_empty=True)
        assert [name for name in theirs.classes if name != ".cache"] == files.classes
    picture(tmp_path / "stray.png")
    with pytest.raises(SettingError, match=r"labels: 'folders'.*stray\.png"):
        find_images(tmp_path, FOLDERS)
    for where in (tmp_path / "stray.png", tmp_path / "9/deep"):  # a file, and a folder without folders
        with pytest.raises(SettingError, match="labels: 'folders'"):
            find_images(where, "folders")


@pytest.mark.parametrize(
    ("label", "found"),
    [
        *(
            (label, None)
            for label in ("9" * 20, "9" * 5000, "-" + "9" * 400, "{'label': 99999999999999999999}")
        ),
        *((label, -1) for label in ("{[]: 1}", "{" * 2000, "{'label': '1'}", "{'label': True}", "{1, 2}")),
    ],
)
def test_odd_text_after_a_path_is_named_if_it_is_a_number_and_else_no_label(tmp_path, label, found):
    picture(tmp_path / "a.png")
    (tmp_path / "list.txt").write_text(f"a.png 1\na.png {label}\n")
    if found is None:
        with pytest.raises(SettingError, match=r"labels: .*a whole number, the class .*list\.txt, line 2"):
            find_images(tmp_path / "list.txt")
    else:
        assert find_images(tmp_path / "list.txt").labels == [1, found]


def test_labels_come_from_a_csv(tmp_path):
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


def test_csv_lists_images(tmp_path):
    picture(tmp_path / "set/a, b.png")
    picture(tmp_path / "c.png")
    table = tmp_path / "images.csv"
    table.write_text('path,label\n"set/a, b.png",3\nc.png,\n')
    files = find_images(table)
    assert (names(files, tmp_path), files.labels) == (["set/a, b.png", "c.png"], [3, -1])
    table.write_text("path\nc.png\n")
    assert find_images(table).labels == [-1]
    with pytest.raises(SettingError, match=r"labels: 'folders'.*none"):
        find_images(table, "folders")
    table.write_text("path,label\n")
    with pytest.raises(SettingError, match="at least one image"):
        find_images(table)


def test_openood_list_gives_paths_and_labels(tmp_path):
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
    with pytest.raises(SettingError, match=r"root: .*is not a list"):
        find_images(tmp_path / "data", root=tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_list_in_another_encoding_is_read_by_its_byte_order_mark(tmp_path, encoding):
    picture(tmp_path / "née.png")
    for name, text in (("l.txt", "née.png 2\r\n"), ("l.csv", "path,label\r\nnée.png,2\r\n")):
        mark = "\ufeff" if encoding == "utf-16-be" else ""
        (tmp_path / name).write_bytes((mark + text).encode(encoding))
        files = find_images(tmp_path / name)
        assert (names(files, tmp_path), files.labels) == (["née.png"], [2])
        (tmp_path / name).write_bytes(text.encode("utf-16-le"))  # no mark
        with pytest.raises(SettingError, match="UTF-16"):
            find_images(tmp_path / name)


def test_listed_files_must_exist_and_have_one_label(tmp_path):
    check_listed(ImageFiles([str(picture(tmp_path / "a.png"))] * 2, [1, 1]))
    with pytest.raises(SettingError, match="1 of 1 do not"):
        check_listed(ImageFiles([str(tmp_path / "b.png")]))
    with pytest.raises(SettingError, match="has 1, too"):
        check_listed(ImageFiles([str(tmp_path / "a.png")] * 2, [1, 2]))


# As a dataset.


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_image_is_named_and_can_be_left_out(tmp_path, workers):
    for number in range(4):
        picture(tmp_path / f"{number}.png")
    wrong = tmp_path / 'it\'s: "2"\n.png'
    os.replace(tmp_path / "2.png", wrong)
    wrong.write_bytes(b"nothing")
    files = pickle.loads(pickle.dumps(find_images(tmp_path)))
    with pytest.raises(ImageError, match="no image that Pillow can read") as caught:
        list(DataLoader(files, num_workers=workers))
    assert caught.value.path == str(wrong)
    traceback.clear_frames(caught.tb)  # else workers leave after seconds only
    broken = find_broken(files, workers, False)
    assert broken == [(str(wrong), "is no image that Pillow can read")]
    kept = files.without(path for path, _ in broken)
    assert len(kept) == len(list(DataLoader(kept))) == 3
    assert find_broken(ImageFiles([]), workers, False) == []


def test_image_that_the_transform_or_the_batch_cannot_take_is_named(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png", size=(2, 2))
    files = find_images(tmp_path)
    with pytest.raises(ImageError, match=r"2\.png.*different sizes in a batch, 3 × 2 × 2 and 3 × 8 × 8"):
        list(DataLoader(files, batch_size=2))
    files = files.with_transform(lambda image: torch.zeros(3) / (image.size[0] > 5 or 1 / 0))
    with pytest.raises(ImageError, match=r"2\.png.*transform failed \(ZeroDivisionError"):
        files[1]
    with pytest.raises(SettingError, match="labels: 1 is not allowed; expected one for each of 2 images"):
        ImageFiles(files.paths, [1])
