"""On a GPU: the scores of the CPU, moved networks, saved detectors, and a memory that really is too small."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from networks import TinyNet, make_images, make_loader
from torch import nn

from openood_adascale import MSP, AdaSCALE, Benchmark, evaluate, feature_cache, load_detector
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import NotFittedError

GPUS = torch.cuda.device_count()
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not GPUS, reason="needs a GPU with CUDA, and there is none"),
]
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def _exact():
    """TensorFloat-32, the default of convolutions, has ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def benchmark():
    loaders = [
        make_loader(make_images(count, seed), 8) for seed, count in enumerate((70, 33, 25, 90, 40, 80))
    ]
    test, near, far, val, ood_val, train = loaders
    return Benchmark(test, {"n": near}, {"f": far}, val, ood_val, train)


@pytest.mark.parametrize("name", METHODS)
def test_scores_equal_those_of_the_cpu(network, name):
    method = METHODS[name]
    scores = {}
    for device in ("cpu", DEVICE):
        net = copy.deepcopy(network).to(device)
        detector = method.detector(net, **method.defaults)
        detector.fit(make_loader(make_images(90, 4)), progress=False)
        found = detector.score(make_images(40, 7, shift=0.3).to(device))
        assert found.device.type == device
        net.to({"cpu": DEVICE, DEVICE: "cpu"}[device])  # a moved network stays fitted
        moved = detector.score(make_images(40, 7, shift=0.3)).cpu()
        torch.testing.assert_close(moved, found.cpu(), rtol=1e-3, atol=1e-3)
        net.to(device)
        assert {p.device.type for p in net.parameters()} == {device}
        scores[device] = found.cpu()
    torch.testing.assert_close(scores[DEVICE], scores["cpu"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_saved_detector_loads_on_the_other_device(network, tmp_path, name):
    method = METHODS[name]
    detector = method.detector(network, **method.defaults)
    detector.fit(make_loader(make_images(90, 4)), progress=False).save(tmp_path / "d")
    images = make_images(40, 7)
    found = load_detector(tmp_path / "d", copy.deepcopy(network).to(DEVICE)).score(images)
    torch.testing.assert_close(found.cpu(), detector.score(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_changed_weights_on_a_gpu_need_another_fit(network, kind):
    detector = AdaSCALE(network).fit([make_images(40, 4)])
    net = network.to(DEVICE)
    tensor = net.features[1].running_mean if kind == "buffer" else net.fc.weight
    with torch.no_grad():
        tensor.add_(0.1)
    with pytest.raises(NotFittedError):
        detector.score(make_images(4, 7))


def test_features_are_cached_per_device(network, tmp_path):
    loader, found = make_loader(make_images(40, 4)), []
    for device in ("cpu", DEVICE, DEVICE):
        net = copy.deepcopy(network).to(device)
        with feature_cache(tmp_path):
            found.append(MSP(net).predict_loader(loader, progress=False)[1])
        assert bool(net.calls) == (len(found) < 3)
    np.testing.assert_array_equal(found[1], found[2])
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3)


def test_evaluation_equals_that_of_the_cpu(network):
    tables = {}
    for device in ("cpu", DEVICE):
        net = copy.deepcopy(network).to(device)
        methods = {
            name: METHODS[name].detector(net, **METHODS[name].defaults) for name in ("adascale", "optfs")
        }
        results = evaluate(methods, benchmark(), progress=False)
        tables[device] = np.stack([result.table.to_numpy() for result in results.values()])
    np.testing.assert_allclose(tables[DEVICE], tables["cpu"], atol=3.0)  # an image of 25 is 4 points


def test_random_state_of_the_gpu_stays(network):
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    evaluate(AdaSCALE(network.to(DEVICE)), benchmark(), progress=False)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "auto"])
def test_half_precision_is_close(network, precision):
    net = network.to(DEVICE)
    images = make_images(40, 7).to(DEVICE)
    expected, found = (
        AdaSCALE(net, precision=p).fit([images], progress=False).score(images) for p in ("float32", precision)
    )
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.3)


class Watching(nn.Module):
    """Notes how the images lie in memory."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def forward(self, images):
        self.net.lain.append(images.is_contiguous(memory_format=torch.channels_last))
        return self.net(images)


@pytest.mark.parametrize(
    ("precision", "pixels", "want"),
    [("bfloat16", "random", True), ("bfloat16", "trivial", False), ("float32", "random", True)],
)
def test_memory_format_is_the_faster_one(precision, pixels, want):
    network = Watching().eval().to(DEVICE)
    network.net.lain = []
    AdaSCALE(network, precision=precision, pixels=pixels).fit([make_images(20, 1)], progress=False)
    assert network.net.lain[-1] == want


class Roomy(nn.Module):
    """Needs 64 MiB an image for a moment, and twice as much with gradient."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(16, 5)

    def forward(self, images):
        wide = images.mean((1, 2, 3))[:, None] + torch.zeros(1, 2**24, device=images.device)
        return self.fc(torch.relu(wide.unflatten(1, (16, -1)).mean(2) + images.flatten(1)[:, :16]))


def test_batch_that_does_not_fit_is_halved():
    torch.manual_seed(0)
    net = Roomy().eval().to(DEVICE)
    images = make_images(64, 3)
    expected = torch.cat([MSP(net).score(images[i : i + 4].to(DEVICE)) for i in range(0, 64, 4)])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5 * 2**30 / total))  # 64 images want 4 GiB
    try:
        detector = MSP(net)
        with pytest.warns(UserWarning, match="do not fit the memory"):
            found = detector.score(images.to(DEVICE))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = detector.score(images.to(DEVICE))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, again)
