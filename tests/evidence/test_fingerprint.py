"""Digests that tell networks and images apart, the same in every process."""

from __future__ import annotations

import os
import subprocess
import sys

import networks as tv
import numpy as np
import pytest
import quick_process
import torch
from tiny import TinyNet, make_images
from torch import nn
from torch.utils import data

from openood_adascale.evidence.fingerprint import Glance, images_digest, network_digest


def net():
    torch.manual_seed(0)
    return TinyNet().eval()


def test_networks_are_told_apart():
    first = network_digest(net())
    assert first == network_digest(net()) == network_digest(nn.DataParallel(net()))
    changed = [net() for _ in range(4)]
    changed[0].fc.bias.data[0] += 1e-6
    changed[1].features[2] = nn.GELU()
    changed[2].features[3].stride = (1, 1)
    changed[3].features[1].running_mean.add_(1)
    assert len({first, *map(network_digest, changed)}) == 5


def test_weights_of_every_layout():
    class Odd(nn.Module):
        def __init__(self, values):
            super().__init__()
            for name, tensor in {
                "coo": values.to_sparse(),
                "csr": values.to_sparse_csr(),
                "csc": values.to_sparse_csc(),
                "halved": values.bfloat16(),
                "conjugate": torch.complex(values, values).conj(),
                "quantised": torch.quantize_per_tensor(values, 0.1, 0, torch.qint8),
                "empty": values[:0],
            }.items():
                self.register_buffer(name, tensor)

    one = torch.arange(12.0).view(3, 4)
    assert network_digest(Odd(one)) == network_digest(Odd(one.clone()))
    assert network_digest(Odd(one)) != network_digest(Odd(one + 1))


@pytest.mark.parametrize("name", ["replaced", "in place", "layer", "buffer", "loaded", "moved"])
def test_a_glance_notices(name):
    network = net()
    glance = Glance(network)
    network(make_images(3, 0))
    assert glance.still_holds(network.train())  # a mode is put back, and no change
    assert glance.still_holds(network.eval())
    with torch.no_grad():
        if name == "replaced":
            network.fc = nn.Linear(64, 5)
        elif name == "in place":
            network.fc.bias.zero_()
        elif name == "layer":
            network.features[2] = nn.ReLU()
        elif name == "buffer":
            network.features[1].running_var.mul_(1)
        elif name == "loaded":
            network.load_state_dict(net().state_dict())
        else:
            network.double()
    assert not glance.still_holds(network)
    assert not Glance(net()).still_holds(net())
    assert Glance(network).still_holds(network)


def test_a_glance_keeps_nothing_alive():
    import weakref

    network = net()
    glance, watched = Glance(network), weakref.ref(network)
    del network
    assert watched() is None
    assert not glance.still_holds(net())


def tensors(seed=0):
    return data.TensorDataset(make_images(20, seed), torch.arange(20))


def load(dataset, **kwargs):
    return data.DataLoader(dataset, **{"batch_size": 8, **kwargs})


def test_same_images_have_one_digest():
    first = images_digest(load(tensors()))
    assert first is not None
    assert first == images_digest(load(tensors(), batch_size=3, shuffle=True, num_workers=2))
    assert first != images_digest(load(tensors(1)))
    assert first != images_digest(load(tensors(), drop_last=True))
    assert first != images_digest(load(data.Subset(tensors(), range(10))))
    assert first != images_digest(load(tensors(), collate_fn=lambda rows: rows[0]))
    assert images_digest(load(data.Subset(tensors(), [1, 2]))) != images_digest(
        load(data.Subset(tensors(), [2, 1]))
    )
    both = data.ConcatDataset([tensors(), tensors(1)])
    assert images_digest(load(both)) == images_digest(load(data.ConcatDataset([tensors(), tensors(1)])))


class Mine(data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.randn(3, 8, 8), 0


class MyLoader(data.DataLoader):
    pass


def test_what_cannot_be_told_apart_has_none():
    weighted = data.WeightedRandomSampler(torch.ones(20), 20)
    for loader in (
        [make_images(3, 0)], None, load(Mine()), MyLoader(tensors()), load(tensors(), sampler=weighted),
        load(tensors(), shuffle=True, drop_last=True), load(data.ConcatDataset([tensors(), Mine()])),
        load(tensors(), sampler=data.RandomSampler(tensors(), replacement=True)),
    ):  # fmt: skip
        assert images_digest(loader) is None


def folder(root, count=4):
    from PIL import Image

    (root / "a").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / "a" / f"{number}.png")
    return root


SCRIPT = """
import sys
from torch.utils.data import DataLoader
from torchvision import transforms as t
from torchvision.datasets import ImageFolder
from openood_adascale.evidence.fingerprint import images_digest, network_digest
transform = t.Compose([t.Resize(8), t.Lambda(lambda image: image.rotate(90)), t.ToTensor(), t.Normalize(0.5, 0.2)])
print(images_digest(DataLoader(ImageFolder(sys.argv[1], transform))))
"""


def test_folders_of_images(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    from torchvision.datasets import ImageFolder

    root = folder(tmp_path / "images")

    def digest(*steps):
        return images_digest(load(ImageFolder(root, transforms.Compose([*steps, transforms.ToTensor()]))))

    plain = digest()
    assert plain is not None
    assert plain == digest()
    different = [
        plain, digest(transforms.Resize(8)), digest(transforms.Resize(9)),
        digest(transforms.Lambda(lambda image: image.rotate(90))), digest(transforms.Lambda(lambda image: image.rotate(9))),
        digest(transforms.RandomHorizontalFlip(0.1)), digest(transforms.RandomHorizontalFlip(0.2)),
    ]  # fmt: skip
    assert None not in different
    assert len(set(different)) == len(different)
    os.utime(root / "a/2.png", ns=(1, 1))
    touched = digest()
    assert touched not in different
    (root / "a/2.png").unlink()
    assert digest() not in {*different, touched}
    # The same in two processes, whatever their hash seeds.
    one = quick_process.run(["-c", SCRIPT, root], check=True).stdout
    other = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(root)], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    ).stdout  # fmt: skip
    assert one == other
    assert "None" not in one


EDITED = """
OFFSET = {offset}
def helper(x): return x * {factor}
class Step:
    def __call__(self, x): return x + {step}
def transform(x, *, keyword={keyword}): return helper(Step()(x)) + OFFSET
"""


def test_edited_preprocessing_is_another(tmp_path):
    """A notebook's cell, or a script, that is run again with a change: names and places stay the same."""
    transforms = pytest.importorskip("torchvision.transforms")
    from torchvision.datasets import ImageFolder

    root = folder(tmp_path / "images")

    def digest(what, **changed):
        cell = {"__name__": "__main__"}
        exec(EDITED.format(**{"offset": 1, "factor": 2, "step": 3, "keyword": 4, **changed}), cell)
        step = cell["transform"] if what == "function" else cell["Step"]()
        return images_digest(load(ImageFolder(root, transforms.Compose([transforms.ToTensor(), step]))))

    assert digest("function") is not None
    assert digest("function") == digest("function")
    changes = [{"offset": 9}, {"factor": 9}, {"step": 9}, {"keyword": 9}]
    found = [digest("function"), *(digest("function", **change) for change in changes)]
    assert len(set(found)) == 5
    assert digest("class") == digest("class", offset=9)
    assert digest("class") != digest("class", step=9)


@pytest.mark.parametrize("values", [torch.eye(4).to_sparse(), torch.empty(4, 3, device="meta")])
def test_tensors_that_cannot_be_read_are_not_told(values):
    digest = images_digest(load(data.TensorDataset(values, torch.arange(4))))
    assert digest is None


def test_networks_that_cannot_be_read_whole():
    class Odd(TinyNet):
        def __init__(self):
            super().__init__()
            self.register_buffer("nowhere", torch.empty(3, device="meta"))

        def get_extra_state(self):
            import threading

            return threading.Lock()

    assert network_digest(Odd()) is not None


def test_compiled_networks_are_the_networks():
    network = net()
    assert network_digest(torch.compile(network, backend="eager")) == network_digest(network)


def test_preprocessing_with_a_state_that_does_not_show(tmp_path):
    transforms = pytest.importorskip("torchvision.transforms")
    from torchvision.datasets import ImageFolder

    class Open:
        def __init__(self):
            self.file = (tmp_path / "log").open("w")

        def __call__(self, image):
            return image

    dataset = ImageFolder(folder(tmp_path / "images"), transforms.Compose([Open(), transforms.ToTensor()]))
    assert images_digest(load(dataset)) is None


def test_a_networks_own_counter_does_not_count_as_a_layer():
    network = tv.Counting()
    before = network_digest(network)
    network(make_images(2, 0))
    assert network_digest(network) != before  # a buffer: who watches takes a new Glance after each pass


@pytest.mark.parametrize("kind", [lambda made: made, classmethod, staticmethod, property])
def test_what_was_put_into_a_librarys_class(kind, monkeypatch):
    def one(given=None):
        return 1

    def other(given=None):
        return 2

    digests = [network_digest(net())]
    for put in (one, other):
        with monkeypatch.context() as patch:
            patch.setattr(nn.Linear, "of_mine", kind(put), raising=False)
            digests.append(network_digest(net()))
    assert len({*digests}) == 3
    assert network_digest(net()) == digests[0]
