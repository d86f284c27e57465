"""Lists of images and of labels in a data set of one's own."""

from __future__ import annotations

import os

import pytest
from own_data import description, write_images, write_yml

from openood_adascale.errors import SettingError
from openood_adascale.plugin.own_data import read

pytest.importorskip("PIL")


@pytest.fixture
def folder(tmp_path):
    """Of the yml; not the working directory."""
    write_images(tmp_path / "data")
    return tmp_path / "data"


def own(folder, **changed):
    return read(write_yml(folder / "mine.yml", {**description(), **changed}))


def names(folder, files):
    return [os.path.relpath(path, folder / "images") for path in files.paths]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("test/cat/0.png 2\ntest/dog/0.png 0\n", None),
        (
            "test/cat/0.png 2\ntest/dog/0.png 3\n",
            r"labels: 3 is not allowed; expected a class from 0 to 2 .*dog/0.png",
        ),
        ("test/cat/0.png 2\ntest/dog/0.png -1\n", r"labels: -1 is not allowed"),
        ("test/cat/0.png\n", r"labels: -1 is not allowed"),
        ("\n", r"images: .* a list with at least one image"),
        ("nowhere.png 1\n", r"images: .* a list of files that exist"),
        (
            "test/cat/0.png 2\ntest/dog/0.png 0\ntest/dog/7.png 1\n",
            r"images: '/.*/images/test/dog/7.png' is not allowed; expected files that exist; 1 of 3 do not",
        ),
        (
            "test/cat/0.png 2\ntest/dog/0.png 0\ntest/dog/../cat/0.png 1\n",
            r"labels: 1 is not allowed; expected one class for each image; '/.*/cat/0.png' has 2, too",
        ),
    ],
)
def test_lists(folder, lines, error):
    (folder / "list.txt").write_text(lines)
    found = own(folder, id={"test": {"images": "list.txt", "root": "images"}})
    if error is None:
        files = found.known["test"].find(found.classes)
        assert (names(folder, files), files.labels) == (["test/cat/0.png", "test/dog/0.png"], [2, 0])
    else:
        with pytest.raises(SettingError, match="mine.yml: id: test: " + error):
            found.look()


def test_labels_of_a_folder_in_a_csv(folder):
    (folder / "labels.csv").write_text("path,label\ncat/0.png,1\n")
    for name in ("cat", "dog", "old horse"):
        (folder / f"images/test/{name}/1.png").unlink()
    found = own(folder, id={"test": {"images": "images/test", "labels": "labels.csv"}})
    with pytest.raises(SettingError, match=r"mine.yml: id: test: labels: .* 2 of 3 have none"):
        found.look()
    with open(folder / "labels.csv", "a") as file:
        file.write("dog/0.png,0\nold horse/0.png,0\n")
    assert found.known["test"].find(found.classes).labels == [1, 0, 0]


def test_an_image_for_the_second_time_counts_twice_as_in_openoods_lists(folder):
    (folder / "list.txt").write_text("test/cat/0.png 2\ntest/dog/0.png 0\ntest/cat/0.png 2\n")
    entry = {"images": "list.txt", "root": "images"}
    found = own(folder, id={"test": entry}, ood={"near": {"a": entry}, "far": {"b": entry}})
    found.look()
    assert found.known["test"].find(found.classes).labels == [2, 0, 2]
    assert len(found.near["a"].find(None)) == 3


def test_a_csv_that_says_two_things_of_an_image(folder):
    (folder / "labels.csv").write_text("path,label\ncat/0.png,1\ncat/1.png,1\ncat/0.png,0\n")
    found = own(folder, id={"test": {"images": "images/test", "labels": "labels.csv"}})
    with pytest.raises(SettingError, match=r"mine.yml: id: test: labels: 0 .* '.*cat/0.png' has 1, too"):
        found.look()


@pytest.mark.parametrize("kind", ["near", "far", "val"])
def test_an_ood_image_of_a_list_that_is_not_there(folder, kind):
    (folder / "list.csv").write_text("path,label\nimages/birds/a 1.png,1\nimages/birds/a 2.png,1\n")
    ood = description()["ood"]
    ood[kind] = "list.csv" if kind == "val" else {"one": "list.csv"}
    place = "ood: val" if kind == "val" else f"ood: {kind}: one"
    with pytest.raises(SettingError, match=rf"mine.yml: {place}: images: '.*/birds/a 2.png' .* 1 of 2 do"):
        own(folder, ood=ood).look()


def test_labels_of_ood_images_do_not_count(folder):
    (folder / "list.csv").write_text("path,label\nimages/birds/a 1.png,77\nimages/birds/a 1.png,78\n")
    found = own(folder, ood={"near": {"one": "list.csv"}, "far": {"two": "images/textures"}})
    assert found.near["one"].find(None).labels == [-1, -1]
