"""``inference`` of OpenOOD's image-based postprocessors on Ray's workers: the scores of one process, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from openood_adascale.parallel import current_pool, ray_workers
from openood_adascale.plugin.pooled import ONE_SCORE_PER_IMAGE

LISTED = {
    "odin": "ODINPostprocessor",
    "iodin": "IODINPostprocessor",
    "gram": "GRAMPostprocessor",
    "rankfeat": "RankFeatPostprocessor",
    "adascale_a": "AdaScalePostprocessor",
}
"""Those that are compared below."""


@pytest.fixture
def loaders(evaluator_kwargs):
    """Some training, validation and test images of the six digits."""
    from openood.evaluation_api.datasets import get_id_ood_dataloader
    from openood.evaluation_api.preprocessor import get_default_preprocessor

    preprocessor = get_default_preprocessor("cifar10")
    made = get_id_ood_dataloader("cifar10", evaluator_kwargs["data_root"], preprocessor)["id"]
    every = {"train": 10, "val": 6, "test": 4}
    return {
        split: DataLoader(Subset(made[split].dataset, range(0, len(made[split].dataset), step)), 4)
        for split, step in every.items()
    }


def set_up(name, loaders, config_root):
    """Return a postprocessor that is set up, and the network that OpenOOD's ``Evaluator`` would use."""
    from openood.evaluation_api.postprocessor import get_postprocessor
    from openood.networks.adascale_net import AdaScaleANet
    from openood.networks.resnet18_32x32 import ResNet18_32x32

    torch.manual_seed(0)
    net = ResNet18_32x32(num_classes=6).eval()
    net = AdaScaleANet(net) if name == "adascale_a" else net
    postprocessor = get_postprocessor(config_root, name, "cifar10")
    if name == "gram":
        postprocessor.powers = [1, 2]
    postprocessor.setup(net, loaders, {})
    if name == "adascale_a":
        postprocessor.set_hyperparam([[60, 85], 5, 1, 10, 0.05])
    return postprocessor, net


def test_list_names_what_is_compared_here():
    assert set(LISTED.values()) == ONE_SCORE_PER_IMAGE


@pytest.fixture
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
def test_listed_postprocessors_score_on_workers_as_in_one_process(loaders, evaluator_kwargs, monkeypatch):
    pytest.importorskip("ray", reason="needs the extra ray: pip install -e '.[ray]'")
    made = {name: set_up(name, loaders, evaluator_kwargs["config_root"]) for name in LISTED}
    wanted = {}
    for name, (postprocessor, net) in made.items():
        wanted[name] = postprocessor.inference(net, loaders["test"], progress=False)
        other_batches = DataLoader(loaders["test"].dataset, 7)
        scores = postprocessor.inference(net, other_batches, progress=False)[1]
        np.testing.assert_allclose(scores, wanted[name][1], rtol=2e-3, atol=1e-5, err_msg=name)
    with ray_workers(2):
        pool, calls = current_pool(), []
        original = pool.map
        monkeypatch.setattr(pool, "map", lambda *args: calls.append(args) or original(*args))
        for name, (postprocessor, net) in made.items():
            found = postprocessor.inference(net, loaders["test"], progress=False)
            for got, want in zip(found, wanted[name], strict=True):
                np.testing.assert_array_equal(got, want, err_msg=name)
    assert len(calls) == len(LISTED)
