"""Tests of the fingerprints of networks and datasets."""

from __future__ import annotations

import functools
import importlib
import linecache
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import TinyNet, make_images
from PIL import Image
from torch import nn
from torch.utils import data
from torchvision import datasets, transforms
from torchvision.datasets.folder import default_loader

from openood_adascale.data.files import ImageFiles
from openood_adascale.features.fingerprint import (
    NotFingerprintableError,
    dataset_key,
    network_key,
    weights_fingerprint,
)


@pytest.fixture
def paths(tmp_path):
    folder = tmp_path / "some images" / "a"
    folder.mkdir(parents=True)
    found = [folder / f"{number}.png" for number in range(4)]
    for number, path in enumerate(found):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    return [str(path) for path in found]


class ImglistDataset(data.Dataset):
    """The attributes of OpenOOD's dataset that are read."""

    def __init__(self, data_dir, imglist, count=None):
        self.data_dir, self.imglist, self.count = data_dir, imglist, count or len(imglist)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8), 0


ImglistDataset.__module__ = "openood.datasets.imglist_dataset"


class HuggingFaceLike(data.Dataset):
    def __init__(self, fingerprint, form=None):
        self._fingerprint, self.format = fingerprint, form

    def __len__(self):
        return 4


class Keyed(data.Dataset):
    def __init__(self, key):
        self.cache_key = key

    def __len__(self):
        return 4


def folder_of(paths):
    return os.path.dirname(os.path.dirname(paths[0]))


def listed(paths, **more):
    folder = os.path.dirname(paths[0])
    return ImglistDataset(folder, [f"{os.path.basename(path)} 3 of much\n" for path in paths], **more)


def key(dataset, tag=None, **loader):
    return dataset_key(data.DataLoader(dataset, **{"batch_size": 2, **loader}), tag)


KINDS = {
    "folder": lambda paths: datasets.ImageFolder(folder_of(paths), transforms.ToTensor()),
    "folder of any files": lambda paths: datasets.DatasetFolder(folder_of(paths), default_loader, (".png",)),
    "files": ImageFiles,
    "list": listed,
    "part": lambda paths: data.Subset(datasets.ImageFolder(folder_of(paths)), [0, 2]),
    "two": lambda paths: data.ConcatDataset([listed(paths[:2]), listed(paths[2:])]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_changed_file_changes_the_key(paths, kind):
    make = KINDS[kind]
    first = key(make(paths))
    assert first == key(make(paths)) == key(make(paths), batch_size=3) == key(make(paths), shuffle=True)
    os.utime(paths[0], ns=(5, 5))
    second = key(make(paths))
    with open(paths[2], "ab") as file:
        file.write(b"more")
    assert len({first, second, key(make(paths))}) == 3


def test_transform_values_change_the_key(paths):
    """Also those whose repr holds an address or hides their behaviour."""
    resize, pad = transforms.functional.resize, transforms.functional.pad
    made = [
        lambda: transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.2] * 3)]),
        lambda: transforms.Compose([transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.3] * 3)]),
        lambda: functools.partial(resize, size=8), lambda: functools.partial(resize, size=9),
        lambda: functools.partial(pad, padding=8), lambda: transforms.Resize(8).forward,
        lambda: transforms.Resize(9).forward,
    ]  # fmt: skip
    found, again = ([key(datasets.ImageFolder(folder_of(paths), one())) for one in made] for _ in range(2))
    assert found == again
    assert len(set(found)) == len(found)


def test_relative_path_key_depends_on_working_directory(paths, tmp_path, monkeypatch):
    (tmp_path / "elsewhere" / "a").mkdir(parents=True)
    os.link(paths[0], tmp_path / "elsewhere" / "a" / "0.png")
    found = []
    for place in (tmp_path / "some images", tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        found.append(key(ImglistDataset("a", ["0.png 1"])))
        found.append(key(ImglistDataset(os.path.dirname(paths[0]), ["0.png 1"])))
    assert found[0] != found[2]
    assert found[1] == found[3]


def test_working_directory_need_not_be_utf8(paths, tmp_path, monkeypatch):
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    try:
        (folder / "a").mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 only")
    os.link(paths[0], folder / "a" / "0.png")
    monkeypatch.chdir(folder)
    assert key(ImglistDataset("a", ["0.png 1"])) == key(ImglistDataset("a", ["0.png 1"]))


def test_shortened_image_list_changes_the_key(paths):
    first = key(listed(paths))
    assert key(listed(paths[::-1])) != first
    missing = [*paths[:2], paths[0] + " is not there"]
    assert key(listed(missing, count=2)) != first
    with pytest.raises(FileNotFoundError):
        key(listed([*paths[:2], str(paths[0]) + "x"]))


def test_different_datasets_have_different_keys():
    images, labels = make_images(20, 1), torch.arange(20)
    whole, convert = data.TensorDataset(images, labels), torch.utils.data._utils.collate.default_convert
    found = [
        key(whole), key(data.TensorDataset(images)), key(data.TensorDataset(images, labels.flip(0))),
        key(data.TensorDataset(images.double(), labels)), key(data.TensorDataset(images.flip(0), labels)),
        key(data.Subset(whole, range(5))), key(data.Subset(whole, [0, 1, 2, 3, 5])),
        key(data.ConcatDataset([whole, whole])), key(Keyed("a")), key(Keyed("b")),
        key(HuggingFaceLike("a")), key(HuggingFaceLike("b")), key(HuggingFaceLike("a", {"type": "torch"})),
        key(whole, collate_fn=convert), key(data.TensorDataset(images.flip(0), labels), collate_fn=convert),
        key(whole, collate_fn=convert, worker_init_fn=convert), key(whole, worker_init_fn=convert),
    ]  # fmt: skip
    assert len(set(found)) == len(found)
    assert key(data.TensorDataset(images.clone(), labels.clone())) == found[0]


class InMemory(data.Dataset):
    """The attributes of torchvision's datasets that keep their images in memory."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)


class OnDisk(InMemory):
    def __init__(self, paths):
        self.paths = paths


InMemory.__module__ = OnDisk.__module__ = "torchvision.datasets.own"


def test_images_in_memory_are_part_of_the_key():
    images = make_images(4, 1).numpy()
    assert key(InMemory(images)) == key(InMemory(images.copy())) != key(InMemory(images[::-1].copy()))
    with pytest.raises(NotFingerprintableError, match="OnDisk is not a known dataset"):
        key(OnDisk(images))


def test_memory_layout_keeps_the_key():
    images = make_images(20, 1)
    for other in (images.contiguous(memory_format=torch.channels_last), images.repeat(2, 1, 1, 1)[20:]):
        assert key(data.TensorDataset(other)) == key(data.TensorDataset(images))


def test_tag_is_used_for_unknown_datasets_only():
    class Own(data.Dataset):
        def __len__(self):
            return 3

    with pytest.raises(
        NotFingerprintableError, match=r"Own is not a known dataset and has no attribute cache_key"
    ):
        key(Own())
    assert key(Own(), "a")
    known = data.TensorDataset(make_images(4, 1))
    assert key(known, "a") == key(known)

    class Stream(data.IterableDataset):
        def __iter__(self):
            return iter(make_images(4, 1))

    class Counted(Stream):
        def __len__(self):
            return 4

    for loader, told in (
        ([make_images(4, 1)], "a list does not index a dataset"),
        (data.DataLoader(Stream()), "a Stream cannot be indexed"),
        (data.DataLoader(Counted()), "a Counted cannot be indexed"),
    ):
        with pytest.raises(NotFingerprintableError, match=told) as error:
            dataset_key(loader, "a")
        assert not error.value.tag_helps


def test_object_that_pickle_cannot_write_is_named():
    whole, lock = data.TensorDataset(make_images(4, 1)), threading.Lock()
    with pytest.raises(NotFingerprintableError, match=r"_thread\.lock: cannot pickle"):
        key(whole, worker_init_fn=lock)
    assert key(whole, "a", worker_init_fn=lock) != key(whole, "b", worker_init_fn=lock)


BASE = "class Base:\n    def __call__(self, image):\n        return image + {}\n"
OWN = "from {base} import Base\nclass Own(Base):\n    def __repr__(self):\n        return 'Own()'\n    by = {by}\n"


def test_source_of_an_own_transform_and_its_bases_is_part_of_the_key(paths, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for number, (add, by) in enumerate([(1, 1), (1, 1), (2, 1), (1, 2)]):
        monkeypatch.delitem(sys.modules, "own_base", raising=False)
        monkeypatch.delitem(sys.modules, "own_transform", raising=False)
        for name, text in (
            ("own_base", BASE.format(add)),
            ("own_transform", OWN.format(base="own_base", by=by)),
        ):
            (tmp_path / f"{name}.py").write_text(text + f"# {number}\n")
        importlib.invalidate_caches()
        linecache.clearcache()
        own = importlib.import_module("own_transform").Own()
        found.append(key(datasets.ImageFolder(folder_of(paths), own)))
    assert found[0] == found[1]
    assert len({*found}) == 3


def test_keys_are_the_same_in_another_process(paths):
    code = (
        "import sys, torch; from networks import TinyNet; from torch.utils import data\n"
        "from torchvision import datasets, transforms\n"
        "from openood_adascale.features.fingerprint import dataset_key, network_key\n"
        "transform = transforms.Compose([transforms.Resize(8), transforms.ToTensor()])\n"
        "print(dataset_key(data.DataLoader(datasets.ImageFolder(sys.argv[1], transform), 2), None))\n"
        "torch.manual_seed(0); print(network_key(TinyNet(), None))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", code, folder_of(paths)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "5"},
    )  # fmt: skip
    transform = transforms.Compose([transforms.Resize(8), transforms.ToTensor()])
    torch.manual_seed(0)
    want = [key(datasets.ImageFolder(folder_of(paths), transform)), network_key(TinyNet(), None)]
    assert done.stdout.split() == want


def test_counter_of_several_modules_is_no_weight():
    network, counter = TinyNet(), torch.tensor(0)
    for module in (network, network.fc):
        module.register_buffer("seen", counter)
    first = weights_fingerprint(network)
    counter += 1
    assert weights_fingerprint(network) == first


def test_network_key_is_of_weights_repr_and_source():
    torch.manual_seed(0)
    network = TinyNet()
    first = network_key(network, None)
    assert first == network_key(nn.DataParallel(network.train()), None) == network_key(network.eval(), None)
    network.best_accuracy = 0.9
    assert network_key(network, None) == first
    network.features[7].p = 0.3  # shown by its repr
    second = network_key(network, None)
    network.features[0].weight.data[0, 0, 0, 0] += 1
    assert len({first, second, network_key(network, None)}) == 3

    namespace = {"TinyNet": TinyNet, "__name__": "own"}
    exec("class Hidden(TinyNet):\n    pass", namespace)
    with pytest.raises(NotFingerprintableError, match="has no source"):
        network_key(namespace["Hidden"](), None)
    network_key(namespace["Hidden"](), "tag")
