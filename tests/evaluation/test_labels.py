"""Accuracy, class folders, scores and sets at their edges: right, or an error that names them."""

import math

import numpy as np
import pytest
import torch
from helpers import COLOURS, picture
from networks import make_images, make_loader
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from openood_adascale import LTS, MSP, SCALE, AdaSCALE, Benchmark, evaluate
from openood_adascale.data.files import find_images
from openood_adascale.errors import NotFiniteError, SettingError
from openood_adascale.evaluation.accuracy import accuracy
from openood_adascale.metrics import ood_metrics

datasets = pytest.importorskip("torchvision.datasets")


class Mean(nn.Module):
    """Right on every red, green and blue image."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]]))  # blue, green, red

    def forward(self, images):
        return self.fc(images.mean((2, 3)))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


def loader(dataset):
    return DataLoader(dataset, batch_size=4)


def sets(test, **more):
    return Benchmark(test, far={"far": make_loader(make_images(9, 2))}, **more)


def acc(network, test, **more):
    known = more.pop("known_accuracy", None)
    found = evaluate(MSP(network), sets(test, **more), known_accuracy=known, progress=False)
    return found.table["ACC"].iloc[0]


@pytest.fixture
def colours(tmp_path):
    """Class folders that lack the middle class."""
    for name in ("blue", "red"):
        for number in range(3):
            picture(tmp_path / name / f"{number}.png", colour=COLOURS[name])
    return tmp_path


@pytest.mark.parametrize("kind", ["ImageFolder", "ImageFiles", "Subset"])
def test_missing_class_folder_does_not_shift_the_others(colours, kind):
    files = find_images(colours, "folders").with_transform(as_tensor)
    made = datasets.ImageFolder(colours, as_tensor)
    test = loader({"ImageFolder": made, "ImageFiles": files, "Subset": Subset(made, [5, 0, 3])}[kind])
    result = evaluate(MSP(Mean()), sets(test, classes=["blue", "green", "red"]), progress=False)
    assert result.table["ACC"].iloc[0] == 100
    assert set(result.images["id"].labels) == {0, 2}
    with pytest.raises(SettingError, match=r"id: 2 class folders \(blue, red\).*3 classes.*known_accuracy"):
        acc(Mean(), test)
    with pytest.raises(SettingError, match=r"'red' .*blue, green, crimson"):
        acc(Mean(), test, classes=["blue", "green", "crimson"])
    assert acc(Mean(), test, known_accuracy=77) == 77


def test_target_transform_is_trusted(colours):
    made = datasets.ImageFolder(colours, as_tensor, target_transform=lambda label: 2 * label)
    assert acc(Mean(), loader(made)) == 100


def test_single_folder_of_unlabelled_images_has_no_accuracy(colours):
    made = datasets.ImageFolder(colours, as_tensor)
    made.classes = ["images"]
    with pytest.warns(UserWarning, match="ACC is left out: the images are in one folder, 'images'"):
        assert math.isnan(acc(Mean(), loader(made)))


@pytest.mark.parametrize("kind", ["detector", "bfloat16", "postprocessor"])
@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.arange(12) % 5 + 1, "5 .*0 to 4"),
        (torch.full((12,), 255), "255"),
        (torch.eye(12)[:, :5], "one-hot"),
        (torch.arange(12) / 2, "fractions"),
        (None, "none of the 12 images has a label.*known_accuracy=math.nan"),
    ],
)
def test_labels_that_are_no_classes_are_named(network, kind, labels, told):
    test = loader(TensorDataset(make_images(12, 1), *([] if labels is None else [labels])))
    half = MSP(network, precision="bfloat16")
    method = {"detector": MSP(network), "bfloat16": half, "postprocessor": Fixed()}[kind]
    with pytest.raises(ValueError, match=f"id: .*{told}"):
        evaluate(method, sets(test), None if isinstance(method, MSP) else network, progress=False)
    assert math.isnan(acc(network, test, known_accuracy=math.nan))


def test_accuracy_is_that_of_the_labelled_images_and_says_so(network):
    images = make_images(12, 1)
    with torch.no_grad():
        labels = network(images).argmax(1)
    labels[:3] = -1
    with pytest.warns(UserWarning, match="ACC is that of 9 of 12 images"):
        assert acc(network, loader(TensorDataset(images, labels))) == 100
    with pytest.warns(UserWarning, match="9 of 12"):
        assert accuracy(network, loader(TensorDataset(images, labels))) == 100


def test_binary_network_takes_bools_and_two_logits():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    images = make_images(12, 1)
    labels = network(images).argmax(1)
    assert acc(network, loader(TensorDataset(images, labels.bool()))) == 100
    network[-1] = nn.Linear(8, 1)
    with pytest.raises(ValueError, match="a single logit"):
        acc(network, loader(TensorDataset(images, labels)))
    with pytest.raises(ValueError, match="a single logit"):
        evaluate(Fixed(), sets(loader(TensorDataset(images, labels))), network, progress=False)


class Fixed:
    """A postprocessor whose scores are given."""

    def __init__(self, make=lambda count: np.arange(count)):
        self.make = make

    def setup(self, *_):
        pass

    def inference(self, net, data_loader, progress=True):
        count = len(data_loader.dataset)
        return np.zeros(count, int), self.make(count), np.zeros(count, int)


KINDS = {
    "uint8": lambda values: np.array(values, np.uint8),
    "bool": lambda values: np.array(values, bool),
    "float16": lambda values: np.array(values, np.float16),
    "list": list,
    "list of tensors": lambda values: [torch.tensor(value) for value in values],
    "tensor": torch.tensor,
    "bfloat16": lambda values: torch.tensor(values, dtype=torch.bfloat16),
    "gradient": lambda values: torch.tensor(values, dtype=torch.float32, requires_grad=True),
    "large": lambda values: [10**30 * int(value) for value in values],
    "int8": lambda values: np.array(values, np.int8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_take_scores_of_every_kind(kind):
    known, unknown = [1, 1, 0, 1, 1], [0, 0, 1, 0]
    want = ood_metrics(np.array(known, float), np.array(unknown, float))
    assert ood_metrics(KINDS[kind](known), KINDS[kind](unknown)) == want
    network = Mean()
    test = loader(TensorDataset(make_images(5, 1), torch.zeros(5).long()))
    far = loader(TensorDataset(make_images(4, 1)))
    method = Fixed(lambda count: KINDS[kind](known if count == 5 else unknown))
    found = evaluate(method, Benchmark(test, far={"far": far}), network, progress=False)
    assert found.table.loc["far", "AUROC"] == want["AUROC"]
    assert found.scores["id"].dtype == np.float64


@pytest.mark.parametrize("scores", [[], [np.nan], np.zeros((2, 2)), ["a"], [1j], None, 3, [None]])
def test_scores_that_are_none_are_named(scores):
    with pytest.raises(ValueError, match="ood_scores: "):
        ood_metrics([1.0, 2.0], scores)
    method = Fixed(lambda count: scores if count == 9 else np.zeros(count))
    test = sets(loader(TensorDataset(make_images(20, 1), torch.zeros(20).long())))
    with pytest.raises(ValueError, match="far: "):
        evaluate(method, test, Mean(), progress=False)


@pytest.mark.parametrize("place", ["id", "far 2", "val", "ood_val"])
@pytest.mark.parametrize("what", ["empty", "NaN"])
def test_set_with_bad_images_is_named(network, place, what):
    images = make_images(8, 1)
    nan = images.masked_fill(torch.arange(8).view(-1, 1, 1, 1) == 5, math.nan)
    bad = {"empty": images[:0], "NaN": nan}[what]
    names = ("id", "far 1", "far 2", "val", "ood_val")
    test, far, other, val, ood_val = (make_loader(bad if name == place else images) for name in names)
    benchmark = Benchmark(test, far={"far 1": far, "far 2": other}, val=val, ood_val=ood_val)
    kind = NotFiniteError if what == "NaN" else ValueError
    with pytest.raises(kind, match=f"^{place}: .*({'yields no images' if what == 'empty' else 'number 5'})"):
        evaluate(AdaSCALE(network), benchmark, progress=False)


@pytest.mark.parametrize(("make", "given"), [(SCALE, 0.85), (LTS, 0.95), (AdaSCALE, (0.8, 0.85))])
def test_percentile_as_a_fraction_is_doubted_once(network, make, given):
    with pytest.warns(UserWarning, match="percentiles are in percent") as said:
        make(network, percentile=given)
    assert len(said) == 1
    test, val, ood_val = (make_loader(make_images(9, seed)) for seed in (1, 3, 4))
    data = sets(test, val=val, ood_val=ood_val)
    with pytest.warns(UserWarning, match="percentiles are in percent") as said:
        evaluate(make(network), data, sweep={"percentile_list": [given] * 3}, progress=False)
    assert len(said) == 1
