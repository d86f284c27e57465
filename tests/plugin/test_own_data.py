"""What a yml says of a data set of one's own, checked."""

from __future__ import annotations

import os

import pytest
from own_data import description, picture, write_images, write_yml

from openood_adascale.errors import SettingError
from openood_adascale.plugin.own_data import parse, read

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


def test_a_yml(folder):
    found = own(folder)
    assert (found.name, found.classes.count, found.preprocessing) == ("mine", 3, "cifar10")
    assert found.network == "ResNet18_32x32"
    assert sorted(found.known) == ["test", "train", "val"]
    test = found.known["test"].find(found.classes)
    assert names(folder, test) == [
        f"test/{name}/{n}.png" for name in ("cat", "dog", "old horse") for n in (0, 1)
    ]
    assert test.labels == [0, 0, 1, 1, 2, 2]
    assert names(folder, found.near["birds"].find(None)) == ["birds/a 1.png"]
    assert found.ood_val is not None
    assert found.ood_val.find(None).labels == [-1]
    assert found.shifted == {}
    found.look()


def test_what_can_be_left_out(folder):
    content = description()
    del content["network"], content["id"]["train"], content["id"]["val"], content["ood"]["val"]
    found = read(write_yml(folder / "mine.yml", content))
    assert (found.network, sorted(found.known), found.ood_val) == (None, ["test"], None)
    found.look()


def test_names_of_classes_are_the_networks_order(folder):
    found = own(folder, classes=["dog", "old horse", "cat"], csid={"x": "images/test"})
    assert found.known["test"].find(found.classes).labels == [2, 2, 0, 0, 1, 1]
    assert found.shifted["x"].find(found.classes).labels == [2, 2, 0, 0, 1, 1]


def test_with_their_names_classes_can_lack(folder):
    picture(folder / "images/shifted/old horse/1.png")
    (folder / "images/shifted/notes").mkdir()
    sets = {"csid": {"shifted": "images/shifted"}}
    assert own(folder, classes=["cat", "dog", "old horse"], **sets).shifted["shifted"].find(
        own(folder, classes=["cat", "dog", "old horse"], **sets).classes
    ).labels == [2]
    with pytest.raises(
        SettingError, match=r"mine.yml: csid: shifted: the classes' folders: 'notes, old horse' .* 3 folders"
    ):
        own(folder, **sets).look()


def test_a_folder_that_is_no_class(folder):
    picture(folder / "images/val/cow/1.png")
    with pytest.raises(
        SettingError, match=r"mine.yml: id: val: a class's folder: 'cow' .* cat, dog, old horse"
    ):
        own(folder, classes=["cat", "dog", "old horse"]).look()
    with pytest.raises(
        SettingError, match=r"mine.yml: id: val: the classes' folders: .* 3 folders, one for each class"
    ):
        own(folder).look()


def test_numbers_as_names_of_classes(folder):
    for name in ("0", "1", "10"):
        picture(folder / f"images/digits/{name}/1.png")
    known = {"test": "images/digits"}
    found = own(folder, classes=[10, 1, 0], id=known)
    assert found.known["test"].find(found.classes).labels == [2, 1, 0]


def test_where_paths_begin(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "elsewhere").mkdir()
    content = description()
    content["id"] = {"test": str(folder / "images/test"), "val": "../images/val", "train": "~/images/train"}
    content["ood"] = {"near": {"a": "../images/birds"}, "far": {"b": "../images/textures"}}
    content["preprocessing"], content["network"] = "own.py:transform", "../nets.py:build"
    found = read(write_yml(folder / "elsewhere" / "mine.yml", content))
    found.look()
    assert found.preprocessing == f"{folder}/elsewhere/own.py:transform"
    assert found.network == f"{folder}/nets.py:build"
    monkeypatch.chdir(folder / "elsewhere")
    read("mine.yml").look()
    read("~/elsewhere/mine.yml").look()


def test_a_preprocessing_as_a_section(folder):
    written = {"size": 8, "resize": 9, "mean": [0.1, 0.2, 0.3], "std": 0.5, "interpolation": "bicubic"}
    assert own(folder, preprocessing=written).preprocessing == (
        "size=8,resize=9,mean=0.1/0.2/0.3,std=0.5,interpolation=bicubic"
    )


def changed(**new):
    content = description()
    for path, value in new.items():
        *sections, key = path.split("__")
        section = content
        for name in sections:
            section = section[name]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return content


@pytest.mark.parametrize(
    ("content", "place", "told"),
    [
        (None, "", "a section with name, classes"),
        (["name"], "", "a section with"),
        (changed(name=...), "name", "None .* name, classes, preprocessing, id, ood are needed"),
        (changed(name=""), "name", "a text of letters"),
        (changed(name="my data"), "name", "'my data'"),
        (changed(name=5), "name", "5 is not allowed"),
        (changed(name="-mine"), "name", "the first a letter or digit"),
        (changed(nme="x"), "nme", "'x' .* one of the keys name, classes"),
        (changed(network=None), "network", "or no such line"),
        (changed(network=["x"]), "network", "a text"),
        (changed(classes=...), "classes", "are needed"),
        (changed(classes=1), "classes", "from 2 on"),
        (changed(classes=True), "classes", "from 2 on"),
        (changed(classes="3"), "classes", "from 2 on"),
        (changed(classes=["a"]), "classes", "from 2 on"),
        (changed(classes=["a", "a"]), "classes", "different names"),
        (changed(classes=["a", False]), "classes", "in quotes"),
        (changed(preprocessing=...), "preprocessing", "are needed"),
        (changed(preprocessing=32), "preprocessing", "a section with size"),
        (changed(preprocessing={"sise": 32}), "preprocessing: sise", "size, resize"),
        (changed(id="images"), "id", "a section with train, val, test"),
        (changed(id__test=...), "id: test", "test are needed"),
        (changed(id__tests="images/test"), "id: tests", "one of the keys train, val, test"),
        (changed(id__test=7), "id: test", "a folder, an image list"),
        (changed(id__test=""), "id: test", "a folder, an image list"),
        (changed(id__test="images/tests"), "id: test: images", "there is no '/.*/images/tests'"),
        (changed(id__test={"image": "images/test"}), "id: test: image", "images, labels, root"),
        (changed(id__test={"labels": "folders"}), "id: test: images", "are needed"),
        (changed(id__test={"images": "images/test", "labels": "no.csv"}), "id: test: labels", "there is no"),
        (changed(id__test={"images": ["images/test"]}), "id: test: images", "a path"),
        (changed(csid={}), "csid", "at least one set"),
        (changed(csid={"x": "nowhere"}), "csid: x: images", "there is no"),
        (changed(ood__near=...), "ood: near", "near, far are needed"),
        (changed(ood__far=...), "ood: far", "near, far are needed"),
        (changed(ood__near={}), "ood: near", "at least one set"),
        (changed(ood__near="images/birds"), "ood: near", "at least one set by its name"),
        (changed(ood__near={"nearood": "images/birds"}), "ood: near: a set's name", "other than id, nearood"),
        (changed(ood__near={3: "images/birds"}), "ood: near: a set's name", "in quotes"),
        (changed(ood__near={"x": {"images": "images/birds", "labels": "folders"}}), "ood: near: x: labels", "images, root"),
        (changed(ood__far={"birds": "images/birds"}), "ood: far: a set's name", "that no near set has"),
        (changed(ood__middle={"x": "images/birds"}), "ood: middle", "val, near, far"),
    ],
)  # fmt: skip
def test_what_is_refused(folder, content, place, told):
    path = write_yml(folder / "mine.yml", content)
    with pytest.raises(SettingError, match=told) as error:
        read(path)
    assert str(error.value).startswith(": ".join(filter(None, [str(path), place])) + ": ")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "valid YAML"),
        ("? [a]\n: b", "valid YAML"),
        ("name: a\nname: b\n", "valid YAML .the key 'name' for the second time.* line 2"),
        ("ood:\n  near:\n    x: a\n    x: b\n", "valid YAML .the key 'x' for the second time.* line 4"),
        ("name: !!python/object/apply:os.getcwd []\n", "valid YAML"),
        ("name: 2001-99-99\n", "valid YAML .ValueError: month must be"),
        ("name: !!bool x\n", "valid YAML .KeyError"),
        ("[" * 3000, "valid YAML .RecursionError"),
    ],
)
def test_what_is_no_yml(tmp_path, text, told):
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(SettingError, match=rf"data set: '.*mine.yml' is not allowed; expected {told}"):
        read(tmp_path / "mine.yml")
    with pytest.raises(SettingError, match=r"a yml that can be read .No such file"):
        read(tmp_path / "none.yml")
    with pytest.raises(SettingError, match=r"a yml that can be read .Is a directory"):
        read(tmp_path)
    (tmp_path / "mine.yml").write_bytes(b"\xff\xfe name")
    with pytest.raises(SettingError, match="a yml that can be read"):
        read(tmp_path / "mine.yml")


def test_yamls_merging_names_a_key_twice_on_purpose(folder):
    (folder / "mine.yml").write_text(
        """
name: mine
classes: 3
preprocessing: {size: 8, mean: 0.5, std: 0.5}
id:
  test: &list {images: list.txt, root: images/train}
  val: {<<: *list, root: images/val}
ood: {near: {a: images/birds}, far: {b: images/textures}}
"""
    )
    (folder / "list.txt").write_text("dog/0.png 1")
    found = read(folder / "mine.yml")
    assert names(folder, found.known["test"].find(found.classes)) == ["train/dog/0.png"]
    assert names(folder, found.known["val"].find(found.classes)) == ["val/dog/0.png"]


def test_in_python(folder):
    content = {**description(), "preprocessing": abs, "classes": ("cat", "dog", "old horse")}
    content["id"] = {"test": folder / "images" / "test"}
    found = parse(content, "data set", str(folder))
    assert found.preprocessing is abs
    found.look()
