"""What loaders yield, and tensors made without a device."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from named_images import Named
from torch.utils.data import DataLoader

from openood_adascale import AdaSCALE
from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.energy import Energy
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.detectors.scale import SCALE
from openood_adascale.errors import NotFinite
from openood_adascale.evidence.batch import unpack

SETTINGS = {"percentile": (60, 90), "k1": 5, "k2": 20}
METHODS = [AdaSCALE, BFAct, OptFS]


# Loaders.


def test_empty_batches_are_passed_over(network, id_images):
    batches = [id_images[:20], id_images[:0], id_images[20:], (id_images[:0], torch.zeros(0))]
    detector = AdaSCALE(network).fit(batches)
    torch.testing.assert_close(detector.state, AdaSCALE(network).fit([id_images]).state)
    assert len(detector.predict_loader(batches)[1]) == 50


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        (torch.tensor([0.5, 1.0]), [-1, -1]),
        (torch.tensor([float("nan"), 1.0]), [-1, -1]),
        (torch.tensor([3.0, 1.0]), [3, 1]),
        (torch.tensor([True, False]), [-1, -1]),
        (np.array([1e300, 1.0]), [-1, -1]),
        (np.array([2**64 - 1, 1], dtype=np.uint64), [-1, -1]),
        ([2, 1], [2, 1]),
        (torch.tensor([[2], [1]]), [2, 1]),
        (torch.zeros(2, 5), [-1, -1]),
        (["0", "1"], [-1, -1]),
        (None, [-1, -1]),
    ],
)
def test_labels_are_whole_numbers_or_unknown(labels, want):
    assert unpack((torch.zeros(2, 3), labels))[1].tolist() == want


def test_batches_that_are_none(network):
    for batch in ([], None, 3):
        with pytest.raises(TypeError, match="loader: "):
            AdaSCALE(network).fit([batch])


@pytest.mark.parametrize(
    "method",
    [MSP, Energy, SCALE, LTS, *METHODS, partial(AdaSCALE, num_samples=20, pixels="random", seed=987)],
    ids=lambda method: getattr(method, "__name__", "drawn"),
)
def test_default_device_and_dtype_are_not_used(network, id_images, ood_images, method):
    """As torch.set_default_device("cuda") with a network on the CPU."""
    loaders = [id_images], [ood_images]
    want = method(network).fit(loaders[0]).score(ood_images)
    searched = method(network)
    sweep = {"pixels_list": ["trivial", "random"]} if method is AdaSCALE else searched.default_sweep
    if sweep:
        searched.fit(loaders[0]).search(*loaders, sweep)
    dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"):
            detector = method(network).fit(loaders[0])
            got = detector.score(ood_images)
            again = method(network)
            if sweep:
                again.fit(loaders[0]).search(*loaders, sweep)
    finally:
        torch.set_default_dtype(dtype)
    torch.testing.assert_close(got, want)
    if sweep:
        torch.testing.assert_close(again.score(ood_images), searched.score(ood_images))


def test_images_that_are_not_finite_are_named_by_file(network, id_images):
    id_images[23] = float("inf")
    batches = [
        {
            "data": part,
            "label": torch.zeros(len(part)),
            "image_name": [f"{start + i}.png" for i in range(len(part))],
        }
        for start, part in ((0, id_images[:20]), (20, id_images[20:]))
    ]
    with pytest.raises(NotFinite, match=r"images: NaN or infinity for 1 image\(s\), 23\.png$") as caught:
        AdaSCALE(network).fit(batches)
    assert caught.value.rows == [23]
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.names) == (str(caught.value), ["23.png"])
    with pytest.raises(NotFinite, match=r"number 23 \(counted from 0\)"):
        AdaSCALE(network).fit([(batch["data"], batch["label"]) for batch in batches])


@pytest.mark.parametrize("shuffle", [False, True])
def test_images_of_a_loader_are_named_by_file_too(network, id_images, shuffle):
    id_images[23] = float("nan")
    with pytest.raises(NotFinite, match=r"for 1 image\(s\), 23\.png$") as caught:
        MSP(network).predict_loader(DataLoader(Named(id_images), batch_size=20, shuffle=shuffle))
    assert caught.value.names == ["23.png"]


def test_a_detector_tells_what_it_is(network):
    detector = SCALE(network, percentile=80)
    assert repr(detector) == "SCALE(TinyNet, percentile=80.0)"
    assert repr(detector.fit([])) == "SCALE(TinyNet, percentile=80.0), fitted"
    assert repr(AdaSCALE(network, k1=2)).startswith(
        "AdaSCALE(TinyNet, variant='A', percentile=(80.0, 85.0), k1=2.0"
    )
