"""Custom datasets: YAML files, images, loaders, and names in an imitation of OpenOOD."""

from __future__ import annotations

import functools
import os
from dataclasses import replace

import pytest
import torch
from openood_support import (
    AUTOLOAD,
    Run,
    Scaled,
    description,
    picture,
    write_description,
    write_images,
)
from torch.utils.data import DataLoader

from openood_adascale.errors import ImageError, SettingError
from openood_adascale.features.fingerprint import dataset_key
from openood_adascale.plugin.custom_dataset import normalization_of, parse_description, read_description

pytest.importorskip("PIL")


@pytest.fixture
def folder(tmp_path):
    """Directory of the YAML file; not the working directory."""
    write_images(tmp_path / "data")
    return tmp_path / "data"


def dataset_of(folder, **changed):
    return read_description(write_description(folder / "mine.yml", {**description(), **changed}))


def names(folder, files):
    return [os.path.relpath(path, folder / "images") for path in files.paths]


# Descriptions.


def test_description_is_read(folder):
    found = dataset_of(folder)
    assert (found.name, found.classes.total, found.preprocessing) == ("mine", 3, "cifar10")
    test = found.sets["id"]["test"].find()
    wanted = [f"test/{name}/{n}.png" for name in ("cat", "dog", "old horse") for n in (0, 1)]
    assert names(folder, test) == wanted
    assert test.labels == [0, 0, 1, 1, 2, 2]
    assert names(folder, found.sets["ood"]["near"]["birds"].find()) == ["birds/a 1.png"]
    assert found.sets["ood"]["val"].find().labels == [-1]
    found.check_images()


def test_training_and_validation_sets_are_optional(folder):
    fewer = dataset_of(
        folder, id={"test": "images/test"}, ood={**description()["ood"], "val": "images/birds"}
    )
    del (content := description())["ood"]["val"]
    assert list(fewer.sets["id"]) == ["test"]
    assert list(dataset_of(folder, ood=content["ood"]).sets["ood"]) == ["near", "far"]


def test_names_of_classes_give_the_networks_order(folder):
    found = dataset_of(folder, classes=["dog", "old horse", "cat"], csid={"x": "images/test"})
    assert found.sets["id"]["test"].find().labels == [2, 2, 0, 0, 1, 1]
    assert found.sets["csid"]["x"].find().labels == [2, 2, 0, 0, 1, 1]
    for name in ("0", "1", "10"):
        picture(folder / f"images/digits/{name}/1.png")
    numbered = dataset_of(folder, classes=[10, 1, 0], id={"test": "images/digits"})
    assert numbered.sets["id"]["test"].find().labels == [2, 1, 0]


def test_folders_that_are_no_classes_are_errors(folder):
    picture(folder / "images/shifted/old horse/1.png")
    (folder / "images/shifted/notes").mkdir()
    sets = {"csid": {"shifted": "images/shifted"}}
    named = dataset_of(folder, classes=["cat", "dog", "old horse"], **sets)
    assert named.sets["csid"]["shifted"].find().labels == [2]
    told = r"csid: shifted: labels: 2 class folders \(notes, old horse\) .*3, one for each"
    with pytest.raises(SettingError, match=told):
        dataset_of(folder, **sets).check_images()
    picture(folder / "images/val/cow/1.png")
    told = r"mine.yml: id: val: labels: class folder: 'cow' .* cat, dog, old horse"
    with pytest.raises(SettingError, match=told):
        dataset_of(folder, classes=["cat", "dog", "old horse"]).check_images()


def test_relative_paths_begin_at_the_file(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    (folder / "elsewhere").mkdir()
    content = description()
    content["id"] = {"test": str(folder / "images/test"), "val": "../images/val", "train": "~/images/train"}
    content["ood"] = {"near": {"a": "../images/birds"}, "far": {"b": "../images/textures"}}
    content["preprocessing"] = "own.py:transform"
    found = read_description(write_description(folder / "elsewhere" / "mine.yml", content))
    found.check_images()
    assert found.preprocessing == f"{folder}/elsewhere/own.py:transform"
    monkeypatch.chdir(folder / "elsewhere")
    read_description("mine.yml").check_images()
    read_description("~/elsewhere/mine.yml").check_images()


def test_preprocessing_as_a_section(folder):
    written = {"size": 8, "resize": 9, "mean": [0.1, 0.2, 0.3], "std": 0.5, "interpolation": "bicubic"}
    wanted = "size=8,resize=9,mean=0.1/0.2/0.3,std=0.5,interpolation=bicubic"
    assert dataset_of(folder, preprocessing=written).preprocessing == wanted


def changed(**new):
    content = description()
    for path, value in new.items():
        *sections, key = path.split("__")
        section = functools.reduce(dict.__getitem__, sections, content)
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return content


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        (None, "", "a section with name, classes"),
        (changed(name=...), "name", "None .* name, classes, preprocessing, id, ood are required"),
        (changed(name="my data"), "name", "'my data'"),
        (changed(name=5), "name", "5 is not allowed"),
        (changed(nme="x"), "nme", "'x' .* one of the keys name, classes"),
        (changed(csid=None), "csid", "or no line for it"),
        (changed(classes=1), "classes", "from 2 on"),
        (changed(classes=True), "classes", "from 2 on"),
        (changed(classes=["a", "a"]), "classes", "different names"),
        (changed(classes=["a", False]), "classes", "in quotes"),
        (changed(preprocessing=32), "preprocessing", "a section with size"),
        (changed(preprocessing={"sise": 32}), "preprocessing: sise", "size, resize"),
        (changed(id="images"), "id", "a section with train, val, test"),
        (changed(id__test=...), "id: test", "test are required"),
        (changed(id__tests="images/test"), "id: tests", "one of the keys train, val, test"),
        (changed(id__test=7), "id: test", "a folder, an image list"),
        (changed(id__test="images/tests"), "id: test: images", "there is no '/.*/images/tests'"),
        (changed(id__test={"image": "images/test"}), "id: test: image", "images, labels, root"),
        (changed(id__test={"images": "images/test", "labels": "no.csv"}), "id: test: labels", "there is no"),
        (changed(id__test={"images": ["images/test"]}), "id: test: images", "a path"),
        (changed(csid={}), "csid", "at least one set"),
        (changed(ood__near={}), "ood: near", "at least one set"),
        (changed(ood__near={"nearood": "images/birds"}), "ood: near: a set's name", "other than id, nearood"),
        (changed(ood__near={3: "images/birds"}), "ood: near: a set's name", "in quotes"),
        (changed(ood__near={"x": {"images": "images/birds", "labels": "folders"}}), "ood: near: x: labels", "images, root"),
        (changed(ood__far={"birds": "images/birds"}), "ood: far: a set's name", "that no near set has"),
        (changed(ood__middle={"x": "images/birds"}), "ood: middle", "val, near, far"),
    ],
)  # fmt: skip
def test_invalid_descriptions_are_refused(folder, content, place, message):
    path = write_description(folder / "mine.yml", content)
    with pytest.raises(SettingError, match=message) as error:
        read_description(path)
    assert str(error.value).startswith(": ".join(filter(None, [str(path), place])) + ": ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "valid YAML"),
        ("? [a]\n: b", "valid YAML"),
        ("name: a\nname: b\n", "valid YAML .the key 'name' for the second time.* line 2"),
        ("ood:\n  near:\n    x: a\n    x: b\n", "valid YAML .the key 'x' for the second time.* line 4"),
        ("name: !!python/object/apply:os.getcwd []\n", "valid YAML"),
        ("name: 2001-99-99\n", "valid YAML .ValueError: month must be"),
        pytest.param("[" * 3000, "valid YAML .RecursionError", id="deep"),
    ],
)
def test_invalid_yaml_is_refused(tmp_path, text, message):
    (tmp_path / "mine.yml").write_text(text)
    with pytest.raises(SettingError, match=rf"dataset: '.*mine.yml' is not allowed; expected {message}"):
        read_description(tmp_path / "mine.yml")


def test_unreadable_files_are_refused(tmp_path):
    (tmp_path / "mine.yml").write_bytes(b"\xff\xfe name")
    for path, why in (("none.yml", "No such file"), ("", "Is a directory"), ("mine.yml", "utf-8")):
        with pytest.raises(SettingError, match=f"a readable YAML file .*{why}"):
            read_description(tmp_path / path)


def test_merged_keys_may_be_overridden(folder):
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
    found = read_description(folder / "mine.yml")
    assert names(folder, found.sets["id"]["val"].find()) == ["val/dog/0.png"]


# Lists and labels.


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ("test/cat/0.png 2\ntest/dog/0.png 0\ntest/cat/0.png 2\n", None),
        ("test/dog/0.png 3\n", r"labels: 3 is not allowed; .* from 0 to 2.*dog/0.png"),
        ("test/cat/0.png 2\ntest/dog/0.png -1\n", r"labels: -1 is not allowed"),
        ("test/cat/0.png 2\ntest/dog/7.png 1\n", r"images: '/.*/test/dog/7.png' .* 1 of 2 do not"),
        (
            "test/dog/0.png 0\ntest/cat/0.png 2\ntest/dog/../cat/0.png 1\n",
            r"labels: 1 .*; '/.*/cat/0.png' has 2, too",
        ),
    ],
)
def test_list_gives_labels_or_an_error(folder, lines, error):
    (folder / "list.txt").write_text(lines)
    found = dataset_of(folder, id={"test": {"images": "list.txt", "root": "images"}})
    if error is None:  # an image for the second time counts twice
        assert found.sets["id"]["test"].find().labels == [2, 0, 2]
    else:
        with pytest.raises(SettingError, match="mine.yml: id: test: " + error):
            found.check_images()


def test_ood_lists_need_their_files_and_no_labels(folder):
    (folder / "list.csv").write_text("path,label\nimages/birds/a 1.png,77\nimages/birds/a 1.png,78\n")
    found = dataset_of(folder, ood={"near": {"one": "list.csv"}, "far": {"two": "images/textures"}})
    assert found.sets["ood"]["near"]["one"].find().labels == [-1, -1]
    (folder / "list.csv").write_text("path\nimages/birds/a 1.png\nimages/birds/a 2.png\n")
    with pytest.raises(
        SettingError, match=r"mine.yml: ood: near: one: images: '.*/birds/a 2.png' .* 1 of 2 do"
    ):
        found.check_images()


# Loaders.


@pytest.fixture
def dataset(tmp_path):
    write_images(tmp_path)
    content = {**description(), "csid": {"shifted": "images/test"}}
    return parse_description(content, "mine.yml", str(tmp_path))


def test_loaders_yield_openoods_batches(dataset):
    found = dataset.loaders(Scaled(1.0), Scaled(2.0), batch_size=4, shuffle=False, num_workers=0)
    assert {name: sorted(part) for name, part in found.items()} == {
        "id": ["test", "train", "val"],
        "csid": ["shifted"],
        "ood": ["far", "near", "val"],
    }
    test = found["id"]["test"]
    assert type(test) is DataLoader
    batches = list(test)
    assert [batch["label"].tolist() for batch in batches] == [[0, 0, 1, 1], [2, 2]]
    batch = batches[0]
    assert batch["data"].shape == (4, 3, 8, 8)
    assert torch.equal(batch["data_aux"], batch["data"] * 2)
    assert batch["image_name"][2].endswith("images/test/dog/0.png")
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert test.dataset.name == "mine_test"
    assert found["csid"]["shifted"].dataset.files.labels == [0, 0, 1, 1, 2, 2]
    for loader in (found["ood"]["val"], found["ood"]["near"]["birds"], found["ood"]["far"]["textures"]):
        assert next(iter(loader))["label"].tolist() == [-1]


def test_one_transform_for_both_is_called_once(dataset):
    calls = []

    def transform(image):
        calls.append(image.size)
        return torch.rand(3, 8, 8)

    sample = dataset.loaders(transform, transform)["id"]["test"].dataset[torch.tensor(3)]
    assert len(calls) == 1
    assert torch.equal(sample["data"], sample["data_aux"])
    assert (sample["index"], sample["label"]) == (3, 1)


def test_loaders_name_missing_splits_and_files(dataset, tmp_path):
    sets = {**dataset.sets, "id": {"test": dataset.sets["id"]["test"]}}
    sets["ood"] = {side: dataset.sets["ood"][side] for side in ("near", "far")}
    found = replace(dataset, sets=sets).loaders(Scaled(1), Scaled(1))
    assert found["id"].get("train") is None
    with pytest.raises(SettingError, match=r"mine.yml: id: train: None .* this postprocessor needs"):
        found["id"]["train"]
    with pytest.raises(SettingError, match=r"mine.yml: ood: val: None"):
        found["ood"]["val"]
    (tmp_path / "images/birds/a 1.png").unlink()
    with pytest.raises(SettingError, match=r"mine.yml: ood: near: birds: images: .* a folder with images"):
        dataset.loaders(Scaled(1), Scaled(1))


def refuses(image):
    raise RuntimeError("no")


def test_broken_images_and_transforms_are_named(dataset, tmp_path):
    for transforms in ((refuses, Scaled(1)), (Scaled(1), refuses)):
        with pytest.raises(ImageError, match=r"its transform failed .RuntimeError: no"):
            dataset.loaders(*transforms)["id"]["test"].dataset[0]
    path = tmp_path / "images/test/dog/0.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match="test/dog/0"):
        list(dataset.loaders(Scaled(1), Scaled(1), batch_size=6)["id"]["test"])


def test_cache_keys_of_custom_images(dataset, tmp_path):
    def key(by=1.0):
        return dataset_key(dataset.loaders(Scaled(by), Scaled(1.0))["id"]["test"], None)

    first = key()
    assert first == key() != key(by=2.0)
    picture(tmp_path / "images/test/dog/0.png", 1, size=(8, 9))
    assert key() != first


@pytest.mark.parametrize(
    ("spec", "normalization"),
    [
        ("size=8,mean=0.1/0.2/0.3,std=0.5", [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]]),
        ("torchvision:resnet18", [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]),
        (Scaled(1.0), [[0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]),
    ],
)
def test_normalization_is_that_of_the_preprocessing_else_half(dataset, spec, normalization, capsys):
    pytest.importorskip("torchvision")
    found = replace(dataset, preprocessing=spec)
    assert found.transform is found.transform
    assert normalization_of(found.transform, "mine") == [pytest.approx(n) for n in normalization]
    assert ("shows no mean and std" in capsys.readouterr().err) == isinstance(spec, Scaled)


@pytest.mark.parametrize("spec", ["size=8", "nowhere:function", refuses, "torchvision:resnet"])
def test_invalid_preprocessing_is_refused(dataset, spec):
    with pytest.raises(SettingError, match=r"^mine.yml: preprocessing: .* is not allowed"):
        _ = replace(dataset, preprocessing=spec).transform


# Names in OpenOOD.

VARIABLE = "OPENOOD_ADASCALE_DATASETS"
CHECK = """
import openood.postprocessors
from openood.evaluation_api import Evaluator, evaluator
found = Evaluator('msp', id_name='mine')
assert sorted(found.dataloader_dict) == ['csid', 'id', 'ood'], found.dataloader_dict
batch = next(iter(found.dataloader_dict['id']['test']))
assert batch['data'].shape == (2, 3, 8, 8) and batch['label'].tolist() == [0, 0]
assert openood.postprocessors.info.num_classes_dict['mine'] == 3
normalization = sys.modules['openood.preprocessors.transform'].normalization_dict
assert normalization['mine'] == [[0.4, 0.5, 0.6], [0.2, 0.2, 0.3]]
try: Evaluator('msp', id_name='other')
except ValueError as error: assert str(error) == 'not supported'
else: raise SystemExit('no error')
print('---')
assert Evaluator('msp').dataloader_dict == 'cifar10'
"""


def refused(code):
    """Code that expects an error, and has its text in `error`."""
    caught = "except ValueError as raised: error = f'{type(raised).__name__} {raised}'"
    return f"try: {code}\n{caught}\nelse: raise SystemExit('no error')"


@pytest.fixture
def run(run: Run) -> Run:
    return functools.partial(run, OPENOOD_ADASCALE_DISABLE="device")


@pytest.fixture
def yml(folder):
    return write_description(folder / "mine.yml", description())


def test_variable_makes_datasets_known(run: Run, yml) -> None:
    done = run(
        "assert 'openood_adascale.plugin.custom_dataset' not in sys.modules",
        AUTOLOAD,
        CHECK,
        refused("evaluator.get_default_preprocessor('mine', att=True)"),
        "assert 'att: True' in error",
        refused("found.eval_ood(fsood=True)"),
        "assert 'mine.yml: csid: None' in error",
        "try: Evaluator('msp').eval_ood(True)\nexcept NotImplementedError: pass",
        **{VARIABLE: f"{yml}{os.pathsep}"},
    )
    first, _, second = done.stdout.partition("---")
    assert ("downloaded" in first, second.split()[:2]) == (False, ["downloaded", "cifar10"])
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("changed", "told"),
    [({"clases": 3}, "broken.yml: clases: 3"), ({}, "expected another name; {yml} has it")],
)
def test_file_of_the_variable_that_cannot_be_used_is_an_error(run: Run, yml, changed, told) -> None:
    broken = write_description(yml.parent / "broken.yml", {**description(), **changed})
    run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator",
        *[refused("Evaluator('msp')"), "assert error.startswith('SettingError OPENOOD_ADASCALE_DATASETS: ')"]
        * 2,
        f"assert {told.format(yml=yml)!r} in error, error",
        **{VARIABLE: os.pathsep.join(map(str, (yml, broken)))},
    )


def test_registered_datasets_are_replaced_and_undone(run: Run, yml) -> None:
    (yml.parent / "images" / "test.txt").write_text("test/dog/0.png 3")
    taken = write_description(yml.parent / "taken.yml", {**description(), "name": "cifar10"})
    unknown = write_description(yml.parent / "unknown.yml", {**description(), "preprocessing": "cifar11"})
    done = run(
        "import openood_adascale, os, yaml",
        f"openood_adascale.register_dataset({str(taken)!r})",
        "from openood.evaluation_api import Evaluator, datasets",
        refused("Evaluator('msp', id_name='cifar10')"),
        refused(f"openood_adascale.register_dataset({str(taken)!r})"),
        "assert error.startswith('SettingError') and \"name: 'cifar10'\" in error and 'does not use' in error, error",
        "assert datasets.DATA_INFO['cifar10'] == {'num_classes': 10}",
        refused(f"openood_adascale.register_dataset({str(unknown)!r})"),
        'assert "unknown.yml: preprocessing: \'cifar11\'" in error and "presets (cifar10)" in error, error',
        "openood_adascale.unregister()",
        f"assert openood_adascale.register_dataset({str(yml)!r}) == 'mine'",
        CHECK,
        f"content = yaml.safe_load(open({str(yml)!r})); os.chdir({str(yml.parent)!r})",
        "openood_adascale.register_dataset({**content, 'classes': 4, 'id': {'test': 'images/test.txt'}})",
        "assert Evaluator('msp', id_name='mine').dataloader_dict['id']['test'].dataset.files.labels == [3]",
        "assert openood.postprocessors.info.num_classes_dict['mine'] == 4",
        "openood_adascale.unregister()",
        "assert 'mine' not in normalization and 'mine' not in openood.postprocessors.info.num_classes_dict",
        refused("Evaluator('msp', id_name='mine')"),
    )
    assert done.stderr == ""


def test_nothing_is_imported_without_a_dataset(run: Run) -> None:
    run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator, datasets",
        "Evaluator('msp')",
        "assert list(datasets.DATA_INFO) == ['cifar10']",
        "assert not {'yaml', 'torch', 'openood_adascale.plugin.custom_dataset'} & {*sys.modules}",
    )


def test_datasets_are_unknown_when_switched_off(run: Run, yml) -> None:
    run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator",
        refused("Evaluator('msp', id_name='mine')"),
        "import openood_adascale",
        refused(f"openood_adascale.register_dataset({str(yml)!r})"),
        "assert 'OPENOOD_ADASCALE_DISABLE' in error",
        OPENOOD_ADASCALE_DISABLE="register",
        **{VARIABLE: str(yml)},
    )


def test_another_version_of_openood_works_as_without_the_plugin(run: Run, fake) -> None:
    path = fake / "evaluation_api" / "datasets.py"
    path.write_text(path.read_text().replace("id_data_name", "id_data"))
    done = run(
        AUTOLOAD,
        "from openood.evaluation_api import Evaluator",
        "assert Evaluator('adascale').dataloader_dict == 'cifar10'",
    )
    assert "no parameter 'id_data_name'" in done.stderr
