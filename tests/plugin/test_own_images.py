"""Images of one's own as OpenOOD's loaders give them."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pytest
import quick_process
import torch
from own_data import Scaled, description, picture, write_images
from torch.utils.data import DataLoader

from openood_adascale.errors import ImageError, SettingError
from openood_adascale.evaluation.folders import ImageFiles
from openood_adascale.evidence.fingerprint import dataset_digest, images_digest
from openood_adascale.plugin.own_data import parse
from openood_adascale.plugin.own_images import OwnImages, loaders
from openood_adascale.plugin.own_preprocessing import preprocessing_for

pytest.importorskip("PIL")


@pytest.fixture
def own(tmp_path):
    write_images(tmp_path)
    content = {**description(), "csid": {"shifted": "images/test"}}
    return parse(content, "mine.yml", str(tmp_path))


def test_the_loaders(own):
    one, other = Scaled(1.0), Scaled(2.0)
    found = loaders(own, one, other, batch_size=4, shuffle=False, num_workers=0)
    assert {name: sorted(part) for name, part in found.items()} == {
        "id": ["test", "train", "val"],
        "csid": ["shifted"],
        "ood": ["far", "near", "val"],
    }
    test = found["id"]["test"]
    assert type(test) is DataLoader
    batches = list(test)
    assert [len(batch["label"]) for batch in batches] == [4, 2]
    assert torch.cat([batch["label"] for batch in batches]).tolist() == [0, 0, 1, 1, 2, 2]
    batch = batches[0]
    assert batch["data"].shape == (4, 3, 8, 8)
    assert torch.equal(batch["data_aux"], batch["data"] * 2)
    assert batch["image_name"][2] == str(test.dataset.files.paths[2])
    assert batch["image_name"][2].endswith("images/test/dog/0.png")
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert test.dataset.name == "mine_test"
    assert found["csid"]["shifted"].dataset.files.labels == [0, 0, 1, 1, 2, 2]
    for loader in (found["ood"]["val"], found["ood"]["near"]["birds"], found["ood"]["far"]["textures"]):
        assert next(iter(loader))["label"].tolist() == [-1]
    shuffled = loaders(own, one, one, batch_size=6, shuffle=True)["id"]["test"]
    torch.manual_seed(1)
    assert any(next(iter(shuffled))["index"].tolist() != [0, 1, 2, 3, 4, 5] for _ in range(3))


def test_one_transform_for_both_is_called_once(own):
    calls = []

    def transform(image):
        calls.append(image.size)
        return torch.rand(3, 8, 8)

    sample = loaders(own, transform, transform)["id"]["test"].dataset[torch.tensor(3)]
    assert len(calls) == 1
    assert torch.equal(sample["data"], sample["data_aux"])
    assert (sample["index"], sample["label"]) == (3, 1)


def test_images_are_looked_for_anew(own, tmp_path):
    assert len(loaders(own, Scaled(1), Scaled(1))["ood"]["near"]["birds"].dataset) == 1
    picture(tmp_path / "images/birds/another.png")
    assert len(loaders(own, Scaled(1), Scaled(1))["ood"]["near"]["birds"].dataset) == 2
    (tmp_path / "images/birds/another.png").unlink()
    (tmp_path / "images/birds/a 1.png").unlink()
    with pytest.raises(SettingError, match=r"mine.yml: ood: near: birds: images: .* a folder with images"):
        loaders(own, Scaled(1), Scaled(1))


def test_a_split_that_lacks(own):
    fewer = replace(own, known={"test": own.known["test"]}, ood_val=None)
    found = loaders(fewer, Scaled(1), Scaled(1))
    assert found["id"].get("train") is None
    assert "val" not in found["ood"]
    with pytest.raises(SettingError, match=r"mine.yml: id: train: None .* this postprocessor needs"):
        found["id"]["train"]
    with pytest.raises(SettingError, match=r"mine.yml: ood: val: None"):
        found["ood"]["val"]


def test_a_broken_image_is_named(own, tmp_path):
    path = tmp_path / "images/test/dog/0.png"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match="test/dog/0"):
        list(loaders(own, Scaled(1), Scaled(1), batch_size=6)["id"]["test"])


def refuses(image):
    raise RuntimeError("no")


def test_a_transform_that_fails(own):
    for transforms in ((refuses, Scaled(1)), (Scaled(1), refuses)):
        with pytest.raises(ImageError, match=r"its transform failed .RuntimeError: no"):
            loaders(own, *transforms)["id"]["test"].dataset[0]


def test_the_store_can_tell_them(own, tmp_path):
    def digest(by=1.0, aux=1.0, labels=None):
        found = loaders(own, Scaled(by), Scaled(aux), batch_size=2)["id"]["test"]
        assert images_digest(found) is not None
        return dataset_digest(found)

    first = digest()
    assert first is not None
    assert first == digest() == digest(aux=3.0)
    assert first != digest(by=2.0)
    # The same images by the command line's way are the same images.
    files = own.known["test"].find(own.classes)
    same = DataLoader(ImageFiles(files.paths, files.labels, Scaled(1.0)), batch_size=5)
    assert dataset_digest(same) == first
    other = DataLoader(ImageFiles(files.paths, files.labels[::-1], Scaled(1.0)))
    assert dataset_digest(other) != first
    picture(tmp_path / "images/test/dog/0.png", 1, size=(8, 9))
    assert digest() != first


def test_spawned_workers(own):
    found = loaders(
        own, Scaled(1.0), Scaled(2.0), batch_size=3, num_workers=1,
        multiprocessing_context=multiprocessing.get_context("spawn"),
    )["id"]["test"]  # fmt: skip
    want = loaders(own, Scaled(1.0), Scaled(2.0), batch_size=3)["id"]["test"]
    for got, batch in zip(found, want, strict=True):
        assert torch.equal(got["data"], batch["data"])
        assert got["image_name"] == batch["image_name"]


def test_processes_that_read_images_need_no_openood():
    code = (
        "import sys, openood_adascale.plugin.own_images; print(sorted(m.split('.')[0] for m in sys.modules))"
    )
    done = quick_process.run(["-c", code], check=True)
    assert "'openood'" not in done.stdout


def test_it_is_a_dataset_of_any_files(tmp_path):
    files = ImageFiles([str(picture(tmp_path / "x y.png"))], transform=Scaled(1))
    assert OwnImages("x", files, Scaled(1)).root == str(tmp_path)


# Preprocessing.


@pytest.mark.parametrize(
    ("spec", "normalization"),
    [
        ("size=8,mean=0.1/0.2/0.3,std=0.5", [[0.1, 0.2, 0.3], [0.5, 0.5, 0.5]]),
        ("torchvision:resnet18", [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]),
        (Scaled(1.0), None),
    ],
)
def test_what_it_normalises_by(spec, normalization):
    pytest.importorskip("torchvision")
    found = preprocessing_for(spec, "mine.yml").normalization
    assert found == (None if normalization is None else [pytest.approx(numbers) for numbers in normalization])


def test_what_timms_normalises_by():
    pytest.importorskip("timm")
    found = preprocessing_for("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", "mine.yml").normalization
    assert found == [[0.5] * 3] * 2


@pytest.mark.parametrize("spec", ["size=8", "nowhere:function", refuses, "torchvision:resnet"])
def test_a_preprocessing_that_cannot_be_used(spec):
    pytest.importorskip("torchvision")
    with pytest.raises(SettingError, match=r"^mine.yml: preprocessing: .* is not allowed"):
        preprocessing_for(spec, "mine.yml")
