"""On a GPU: the numbers of the CPU, a memory that really is too small, and processes with a GPU each."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from processes import run
from tiny import TinyNet, make_images, make_loader
from torch import nn

from openood_adascale import MSP, AdaSCALE, Benchmark, evaluate
from openood_adascale.detectors.registry import METHODS

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
def test_scores_are_those_of_the_cpu(network, name):
    method = METHODS[name]
    scores = {}
    for device in ("cpu", DEVICE):
        net = copy.deepcopy(network).to(device)
        detector = method.detector(net, **method.defaults)
        detector.fit(make_loader(make_images(90, 4)), progress=False)
        found = detector.score(make_images(40, 7, shift=0.3).to(device))
        assert found.device.type == device
        assert {p.device.type for p in net.parameters()} == {device}
        scores[device] = found.cpu()
    torch.testing.assert_close(scores[DEVICE], scores["cpu"], rtol=1e-3, atol=1e-3)


def test_an_evaluation_with_a_search(network):
    tables = {}
    for device in ("cpu", DEVICE):
        net = copy.deepcopy(network).to(device)
        methods = {
            name: METHODS[name].detector(net, **METHODS[name].defaults) for name in ("adascale", "optfs")
        }
        results = evaluate(methods, benchmark(), progress=False)
        tables[device] = np.stack([result.table.to_numpy() for result in results.values()])
    np.testing.assert_allclose(tables[DEVICE], tables["cpu"], atol=3.0)  # an image of 25 is 4 points


def test_the_random_state_stays(network):
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    evaluate(AdaSCALE(network.to(DEVICE)), benchmark(), progress=False)
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "auto"])
def test_half_precision(network, precision):
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
def test_how_images_lie_in_memory(precision, pixels, want):
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


def test_a_batch_that_does_not_fit_is_split():
    torch.manual_seed(0)
    net = Roomy().eval().to(DEVICE)
    images = make_images(64, 3)
    expected = torch.cat([MSP(net).score(images[i : i + 4].to(DEVICE)) for i in range(0, 64, 4)])
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1.5 * 2**30 / total))  # 64 images want 4 GiB
    try:
        detector = MSP(net)
        with pytest.warns(UserWarning, match="are too many"):
            found = detector.score(images.to(DEVICE))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            again = detector.score(images.to(DEVICE))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found, again)


def test_the_batch_that_pays_is_found(network):
    net = network.to(DEVICE)
    images = make_images(64, 3).to(DEVICE)
    expected, found = (
        AdaSCALE(net, batch=b).fit([images], progress=False).score(images) for b in ("loader", "auto")
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


SCRIPT = """
import os, torch, torch.distributed as dist
from tiny import TinyNet, make_images, make_loader
from openood_adascale import AdaSCALE, Benchmark, evaluate
from openood_adascale.distributed.start import launched
rank = 0
if launched():
    rank = int(os.environ["RANK"])
    torch.cuda.set_device(rank)
    dist.init_process_group("nccl")
torch.manual_seed(0)
net = TinyNet().eval().to("cuda")
loaders = [make_loader(make_images(count, seed), 8) for seed, count in enumerate((70, 33, 25, 90, 40))]
data = Benchmark(loaders[0], {"n": loaders[1]}, {"f": loaders[2]}, loaders[3], loaders[4])
result = evaluate(AdaSCALE(net), data, progress=False, store=False)
if rank == 0:
    print([scores.tolist() for scores in result.scores.values()])
"""


@pytest.mark.skipif(GPUS < 2, reason="needs two GPUs")
def test_two_gpus(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    alone, together = (run(count, [script]).splitlines()[-1] for count in (1, 2))
    assert alone == together
