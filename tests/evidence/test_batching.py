"""How many images go through a network at a time."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch
from tiny import TinyNet, make_images, make_loader
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale import MSP, AdaSCALE
from openood_adascale.errors import SettingError
from openood_adascale.evidence import batching, passes
from openood_adascale.evidence.batching import CPU_BATCH, Sizes, in_parts, size_that_pays
from openood_adascale.evidence.passes import Asked, balanced, batch_size, shared_size
from openood_adascale.evidence.plan import Execution, Perturbation
from openood_adascale.evidence.reader import Reader


class Cramped(TinyNet):
    """Has room for so many images, and for half as many with gradient."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def forward(self, images):
        if len(images) > (self.room // 2 if images.requires_grad else self.room):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(images)


@pytest.fixture
def cramped():
    torch.manual_seed(0)
    return Cramped(10).eval()


def test_a_batch_that_does_not_fit_is_split(cramped, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)  # else a CPU's parts are smaller anyhow
    images = make_images(50, 1)
    cramped.room = 200
    expected = AdaSCALE(cramped).fit([images]).score(images)
    detector = AdaSCALE(cramped).fit([images])
    cramped.room = 10
    with pytest.warns(UserWarning, match="with gradient are too many"):
        detector.fit([images])
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cramped.calls.clear()
        scores = detector.score(images)
        assert max(cramped.calls) <= 10
        assert not told  # the size that fits is kept
    torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-5)


def test_it_is_said_and_kept(cramped, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    detector = MSP(cramped)
    with pytest.warns(UserWarning, match=r"batch: 25 images at a time are too many.*going on with 6") as told:
        first = detector.score(make_images(25, 1))
    assert len(told) == 1
    cramped.calls.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = detector.score(make_images(25, 1))
    assert cramped.calls == [6, 6, 6, 6, 1]
    assert torch.equal(first, second)


def test_gradients_have_a_size_of_their_own(cramped, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    detector = AdaSCALE(cramped, num_samples=5)
    with pytest.warns(UserWarning, match="too many"):
        detector.fit([make_images(16, 1)])
    assert detector.reader.sizes.fits == {True: 4}
    assert MSP(cramped).reader.sizes.fits == {}


def test_one_image_that_does_not_fit(cramped):
    cramped.room = 2
    with pytest.warns(UserWarning, match="with gradient are too many"):
        detector = AdaSCALE(cramped).fit([make_images(4, 1)])
    cramped.room = 0
    with pytest.raises(MemoryError, match=r"one image \(3 × 8 × 8\) does not fit the memory of cpu"):
        MSP(cramped).score(make_images(3, 1))
    detector.settled, detector.learnt_with = True, None
    with pytest.raises(MemoryError, match="one image"):
        detector.score(make_images(3, 1))


def test_a_batch_that_must_not_be_cut():
    def run(part):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match=r"a batch of 5 images .* smaller batches in the loader"):
        in_parts(make_images(5, 1), run, Sizes(), gradient=False, whole=True, batch="loader")


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_a_number(network, id_images, batch):
    expected = AdaSCALE(network).fit([id_images]).score(id_images)
    detector = AdaSCALE(network, batch=batch).fit([id_images])
    network.calls.clear()
    torch.testing.assert_close(detector.score(id_images), expected, rtol=1e-5, atol=1e-5)
    assert max(network.calls) == min(batch, 50)


def test_a_pass_takes_the_number_too(network, id_images):
    network.calls.clear()
    MSP(network, batch=25).predict_loader(make_loader(id_images, 10))
    assert network.calls[-2:] == [25, 25]


def test_the_number_that_pays(monkeypatch):
    seconds = {1: 1.0, 2: 0.99, 4: 0.5, 8: 0.4, 16: 0.2, 32: 0.1, 64: 0.099, 128: 0.01}

    def timed(images, run):
        if len(images) > most:
            raise torch.cuda.OutOfMemoryError
        return seconds[len(images)]

    monkeypatch.setattr(batching, "_seconds_per_image", timed)
    most = 128
    assert size_that_pays(make_images(1, 1), len) == 32  # 64 are no 5 % faster, and nobody looks further
    most = 16
    assert size_that_pays(make_images(1, 1), len) == 16
    assert size_that_pays(make_images(1, 1), len, largest=8) == 8


def test_auto(network, id_images, monkeypatch):
    asked = []

    def pays(image, run, largest=batching.LARGEST):
        asked.append(len(image))
        run(image)
        return 20

    monkeypatch.setattr(batching, "size_that_pays", pays)
    detector = AdaSCALE(network, batch="auto")
    detector.fit(make_loader(id_images, 10))
    assert max(network.calls[-6:]) == 20
    detector.score(id_images)
    assert asked == [1]
    assert detector.reader.sizes.pays == {True: 20}


@pytest.mark.parametrize("batch", [0, -1, 1.5, "many", None, True])
def test_what_it_cannot_be(network, batch):
    with pytest.raises(SettingError, match=r"batch: .* expected loader or auto, or a whole number from 1 on"):
        MSP(network, batch=batch)


@pytest.mark.parametrize(
    ("size", "count", "processes", "unit", "want"),
    [
        (200, 130, 1, 1, 200),  # nobody to share with
        (200, 10**6, 4, 32, 200),  # enough for all
        (64, 100, 2, 1, 50),
        (200, 130, 2, 32, 96),
        (50, 190, 2, 32, 50),  # never more than were asked for
        (40, 100, 2, 32, 32),
    ],
)
def test_batches_that_processes_share(size, count, processes, unit, want):
    assert shared_size(size, count, processes, unit) == want


def test_seconds_of_an_image(monkeypatch):
    """The least of three rounds after one that nobody counts."""
    clock = iter([0, 1, 10, 18, 20, 24, 30, 36])
    monkeypatch.setattr(batching.time, "perf_counter", lambda: next(clock))
    runs = []
    assert batching._seconds_per_image(make_images(8, 1), runs.append) == 4 / 8
    assert [len(images) for images in runs] == [8] * 4


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({1: 1, 2: 1, 4: 1, 8: 1, 16: 0.1, 32: 0.1}, 16),  # so few images are always tried
        ({1: 1, 2: 0.5, 4: 0.5, 8: 0.5, 16: 0.5}, 2),
        ({1: 1, 2: 1, 4: 1, 8: 1, 16: 1}, 1),
    ],
)
def test_small_numbers_that_pay(seconds, best, monkeypatch):
    monkeypatch.setattr(batching, "_seconds_per_image", lambda images, run: seconds[len(images)])
    assert size_that_pays(make_images(1, 1), len, largest=32) == best


def test_parts_come_in_order(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    images = torch.arange(100.0)[:, None]

    def sizes(batch, known=None, **more):
        sizes = Sizes()
        sizes.fits.update(known or {})
        given = {"gradient": False, "whole": False, **more}
        parts = in_parts(images, lambda part: part.clone(), sizes, batch=batch, **given)
        assert torch.equal(torch.cat(parts), images)
        return [len(part) for part in parts]

    assert sizes("loader") == [32, 32, 32, 4]
    assert sizes(40) == [40, 40, 20]
    assert sizes(1000) == [100]
    assert sizes("loader", whole=True) == [100]
    assert sizes(40, {False: 30}) == [30, 30, 30, 10]
    assert sizes(40, {True: 30}) == [40, 40, 20]
    assert sizes(20, {False: 30}) == [20] * 5


def test_batches_of_even_size():
    uneven = [list(range(64)), list(range(64, 100))]
    assert balanced(uneven, 2) == [list(range(50)), list(range(50, 100))]
    assert balanced(uneven, 1) is uneven
    assert balanced([], 3) == []
    many = [[number] for number in range(100)]
    assert balanced(many, 3) is many


@pytest.mark.parametrize(
    ("size", "count", "want"),
    [(10, 240, 10), (10, 239, 10), (10, 91, 8), (10, 25, 9), (100, 25, 9), (100, 4, 2)],
)
def test_what_three_share(size, count, want):
    assert shared_size(size, count, 3) == want


class TestBatchSize:
    """How many images at a time are asked of a network for a store."""

    @pytest.fixture(autouse=True)
    def _four_threads(self, monkeypatch):
        monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def size(self, network, loader, count, batch="loader", perturbations=()):
        return batch_size(Reader(network), loader, count, Asked(perturbations, Execution(batch=batch)))

    def test_the_loaders(self, network, id_images):
        assert self.size(network, make_loader(id_images, 16), 50) == 16
        assert self.size(network, DataLoader(TensorDataset(id_images), None), 50) == 1

    def test_a_number(self, network, id_images):
        assert self.size(network, make_loader(id_images, 16), 50, 7) == 7

    def test_shared(self, network, id_images, monkeypatch):
        monkeypatch.setattr(passes, "active_team", lambda: SimpleNamespace(size=3))
        loader = make_loader(id_images, 500)
        assert self.size(network, loader, 1000) == 4 * CPU_BATCH * 3  # what threads work off at a time
        assert self.size(network, loader, 1000, 500) == 334
        assert self.size(network, loader, 10**6) == 500

    @pytest.mark.parametrize("gradient", [False, True])
    def test_the_one_that_pays(self, network, id_images, monkeypatch, gradient):
        monkeypatch.setattr(batching, "size_that_pays", lambda image, run: run(image) and 24)
        loader = make_loader(id_images, 16)
        perturbations = [Perturbation("random", 0.05, 0.5)]
        perturbations += [Perturbation("trivial", 0.05, 0.5)] * gradient
        reader = Reader(network)
        asked = Asked(perturbations, Execution(batch="auto"))
        assert batch_size(reader, loader, 50, asked) == 24
        assert {*reader.sizes.pays} == {gradient}
        monkeypatch.setattr(batching, "size_that_pays", None)  # it is known
        assert batch_size(reader, loader, 50, asked) == 24
