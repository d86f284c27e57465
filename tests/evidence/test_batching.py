"""How many images go through a network at a time."""

from __future__ import annotations

import warnings

import pytest
import torch
from conftest import TinyNet, make_images, make_loader

from openood_adascale import MSP, AdaSCALE
from openood_adascale.errors import SettingError
from openood_adascale.evidence import batching
from openood_adascale.evidence.batching import Sizes, in_parts, size_that_pays
from openood_adascale.evidence.passes import shared_size


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
