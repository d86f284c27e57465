"""Digests of the images that a loader gives, by the kind of its data set and the order of its images."""

from __future__ import annotations

import os
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_images
from torch.utils import data

from openood_adascale.evaluation.folders import ImageFiles
from openood_adascale.evidence.fingerprint import dataset_digest, images_digest
from openood_adascale.plugin.own_images import OwnImages

COUNT = 4


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "some images"
    folder.mkdir()
    found = [folder / f"{number}.png" for number in range(COUNT)]
    for number, path in enumerate(found):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    return [str(path) for path in found]


class ImglistDataset(data.Dataset):
    """What is read of OpenOOD's."""

    def __init__(self, data_dir, imglist, count=None):
        self.data_dir, self.imglist, self.count = data_dir, imglist, count or len(imglist)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8), 0


ImglistDataset.__module__ = "openood.datasets.imglist_dataset"


def listed(paths, **more):
    folder = os.path.dirname(paths[0])
    return ImglistDataset(folder, [f"{os.path.basename(path)} 3 of much\n" for path in paths], **more)


def half(image):
    return torch.full((3, 8, 8), 0.5)


KINDS = {
    "files": lambda paths: ImageFiles(paths, [1] * len(paths)),
    "own": lambda paths: OwnImages("mine", ImageFiles(paths, [1] * len(paths)), half),
    "list": listed,
    "folder": lambda paths: _folder(paths),
    "part": lambda paths: data.Subset(ImageFiles(paths), range(len(paths))),
    "two": lambda paths: data.ConcatDataset([ImageFiles(paths[:2]), ImageFiles(paths[2:])]),
}


def _folder(paths):
    datasets = pytest.importorskip("torchvision.datasets")
    folder = os.path.dirname(paths[0])
    return datasets.DatasetFolder(os.path.dirname(folder), half, extensions=(".png",))


def digest(dataset, **loader):
    return images_digest(data.DataLoader(dataset, **{"batch_size": 2, **loader}))


@pytest.mark.parametrize("kind", KINDS)
def test_files_count_by_size_and_time(kind, paths):
    make = KINDS[kind]
    first = digest(make(paths))
    assert first is not None
    assert first == digest(make(paths))
    assert dataset_digest(data.DataLoader(make(paths), 3)) == dataset_digest(
        data.DataLoader(make(paths), shuffle=True)
    )
    for path in (paths[0], paths[-1]):
        os.utime(path, ns=(5, 5))
        later = digest(make(paths))
        assert later not in (None, first)
        first = later
    with open(paths[1], "ab") as file:
        file.write(b"more")
    assert digest(make(paths)) not in (None, first)
    os.unlink(paths[2])
    assert digest(make(paths)) is None or kind == "folder"


def test_labels_and_transforms_of_files(paths):
    found = [
        digest(ImageFiles(paths)),
        digest(ImageFiles(paths, [1, 2, 3, 4])),
        digest(ImageFiles(paths, transform=half)),
        digest(ImageFiles(paths, transform=partial(half))),
        digest(ImageFiles(paths[::-1])),
        digest(OwnImages("mine", ImageFiles(paths, transform=partial(half)), half)),
    ]
    assert None not in found
    assert len({*found}) == 5
    assert found[3] == found[5]  # the same files, read in another way


def test_a_partial_is_the_same_whoever_has_looked_at_it(paths):
    """It makes its attributes when it is first asked for them, which pickle then sees."""
    dataset = ImageFiles(paths, transform=partial(half))
    assert digest(dataset) == digest(dataset)


def test_lists_of_openoods(paths):
    first = digest(listed(paths))
    assert digest(listed(paths[::-1])) != first
    # A list may be cut short: what lies behind is of no account.
    short = listed([*paths[:2], paths[0] + "is not there"], count=2)
    assert digest(short) is not None
    assert digest(listed([*paths[:2], paths[0] + "is not there"])) is None


def test_where_paths_begin(paths, monkeypatch, tmp_path):
    """Relative paths mean other files elsewhere."""
    places = [tmp_path, tmp_path / "some images"]
    (places[1] / "some images").mkdir()
    os.link(paths[0], places[1] / "some images/0.png")  # of the same size and times, however it is reached
    for name, make in {
        "list": lambda folder: ImglistDataset(folder, ["0.png 1"]),
        "files": lambda folder: ImageFiles([os.path.join(folder, "0.png")]),
        "some of them": lambda folder: ImageFiles([paths[1], os.path.join(folder, "0.png")]),
    }.items():
        monkeypatch.chdir(places[0])
        absolute, relative = digest(make(str(places[1]))), digest(make("some images"))
        assert None not in (absolute, relative)
        monkeypatch.chdir(places[1])
        assert digest(make(str(places[1]))) == absolute, name
        assert digest(make("")) not in (None, relative)
        assert digest(make("some images")) not in (None, relative), name


def tensors():
    return data.TensorDataset(make_images(20, 1), torch.arange(20))


class Turned(data.Sampler):
    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __iter__(self):
        return iter(range(self.count - 1, -1, -1))


def load(**loader):
    return data.DataLoader(tensors(), **{"batch_size": 8, **loader})


def test_orders():
    first = images_digest(load())
    same = [load(batch_size=3), load(shuffle=True), load(sampler=data.RandomSampler(tensors())),
            load(sampler=data.SequentialSampler(tensors())), load(batch_size=4, drop_last=True)]  # fmt: skip
    assert {images_digest(loader) for loader in same} == {first}
    dropped = [images_digest(load(drop_last=True)), images_digest(load(batch_size=6, drop_last=True))]
    assert len({first, None, *dropped}) == 4
    untold = [
        load(sampler=Turned(20)),
        load(sampler=data.RandomSampler(tensors(), num_samples=20, replacement=True)),
        load(sampler=data.RandomSampler(tensors(), num_samples=12)),
        load(sampler=data.SequentialSampler(range(12))),
        load(sampler=data.RandomSampler(range(30), num_samples=20)),
        load(shuffle=True, drop_last=True),
        load(batch_size=None),
        data.DataLoader(tensors(), batch_sampler=type("Own", (data.BatchSampler,), {})(range(20), 8, False)),
    ]
    assert {images_digest(loader) for loader in untold} == {None}


def collate(samples):
    return data.default_collate(samples)


def begin(worker):
    pass


def test_digests_of_data_sets():
    first = dataset_digest(load())
    assert first is not None
    assert first == dataset_digest(load(shuffle=True)) == dataset_digest(load(drop_last=True))
    assert first != images_digest(load())
    for loader in (load(collate_fn=collate), load(worker_init_fn=begin), load(sampler=Turned(20)), [1]):
        assert dataset_digest(loader) is None
    assert images_digest(load(collate_fn=collate)) not in (None, images_digest(load()))
