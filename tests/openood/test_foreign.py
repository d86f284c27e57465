"""OpenOOD's own postprocessors as methods of `evaluate`: the figures of its own Evaluator, for any network."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pandas as pd
import pytest
import torch
from six_digits import BATCH, TRANSFORM, OpenOODsWay, Plain, places
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale import AdaSCALE, Benchmark, evaluate, register_dataset, using_store
from openood_adascale.plugin.foreign import OpenOODs, foreign
from openood_adascale.plugin.registration import cuda_is

NAMES = [*OpenOODs().names("all"), "odin"]
NO_FIGURES = {"she", "vim", "nnguide"}
"""Here OpenOOD's Evaluator has none: an untrained network gives them too few right images, or dimensions."""
ON_BOTH = {"msp", "knn", "react", "residual", "odin"}
"""Tried on a network of OpenOOD's kind, too; of another one more is asked of this package."""


pytestmark = pytest.mark.usefixtures("_undone")


@pytest.fixture
def reference(checkout, small_evaluator):
    """OpenOOD's Evaluator over the same images, as it is without a store."""

    def make(name, fsood=False, search=True):
        found = places(checkout)
        own = register_dataset(
            {
                "name": "six-digits",
                "classes": 6,
                "preprocessing": TRANSFORM,
                "id": {split: found[split] for split in ("train", "val", "test")},
                "csid": found["csid"],
                "ood": {"val": found["ood_val"], "near": found["near"], "far": found["far"]},
            }
        )
        more = {} if search else {"config_root": search_off(checkout, name)}
        evaluator = small_evaluator(name, net=OpenOODsWay().eval(), id_name=own, batch_size=BATCH, **more)
        return evaluator.eval_ood(fsood, progress=False), evaluator

    return make


def search_off(checkout, name):
    root = checkout.parent / "unsearched"  # the checkout stays as it is
    (root / "postprocessors").mkdir(parents=True, exist_ok=True)
    text = (checkout / f"configs/postprocessors/{name}.yml").read_text()
    (root / f"postprocessors/{name}.yml").write_text(text.replace("APS_mode: True", "APS_mode: False"))
    return str(root)


@pytest.mark.parametrize("name", sorted({*NAMES} - NO_FIGURES))
def test_the_figures_are_openoods(name, digits, reference):
    torch.manual_seed(0)  # some draw
    want, evaluator = reference(name)
    assert want["AUROC"].between(1, 100).all()
    both = (OpenOODsWay().eval(), Plain().eval())
    for network in both if name in ON_BOTH else both[1:]:
        torch.manual_seed(0)
        method = foreign(name, network, progress=False)
        found = evaluate(method, digits, progress=False)
        pd.testing.assert_frame_equal(found.table, want, atol=0.02, rtol=0)
        scores = evaluator.scores["ood"]["near"]["tin"][1]
        np.testing.assert_allclose(
            found.scores["tin"], np.ravel(scores), rtol=2e-3, atol=1e-4 * np.abs(scores).max()
        )
        assert len(found.images["tin"].paths) == len(scores)
        searched = evaluator.postprocessor.hyperparam_search_done
        assert (found.search is not None) == bool(searched)
        if searched:
            assert method.get_hyperparam() == list(np.atleast_1d(evaluator.postprocessor.get_hyperparam()))
            assert len(found.search) == np.prod([len(values) for values in method.args_dict.values()])


@pytest.mark.parametrize("name", ["knn", "react"])
def test_without_a_search_and_full_spectrum(name, digits, reference):
    want, _ = reference(name, fsood=True, search=False)
    method = foreign(name, Plain().eval(), progress=False)
    found = evaluate(method, digits, search=False, full_spectrum=True, progress=False)
    assert found.search is None
    pd.testing.assert_frame_equal(found.table, want, atol=0.02, rtol=0)
    searched = evaluate(method, digits, progress=False)  # the same object, once more
    pd.testing.assert_frame_equal(searched.table, reference(name)[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", [Plain, OpenOODsWay])
def test_an_image_goes_through_the_network_once(kind, digits, tmp_path, capfd):
    network = kind().eval()
    seen = logging.getLogger("networks").images
    names = ["msp", "knn", "react", "vra"]
    methods = {"ours": AdaSCALE(network), **{name: foreign(name, network, False) for name in names}}
    with using_store(tmp_path / "store"):
        evaluate(methods["ours"], digits, progress=False)
        evaluate(foreign("dice", network, False), digits, progress=False)  # of the training images
        seen[network] = 0
        found = evaluate(methods, digits, network, progress=False)
    assert list(found) == ["ours", *names]
    # The network is tried on a few, and a few are scored both ways.
    assert seen[network] < 120 * len(names)
    assert len(digits.train.dataset) > 600
    assert "as always" not in capfd.readouterr().err
    seen[network] = 0
    with using_store(tmp_path / "store"):
        evaluate(foreign("odin", network, False), digits, search=False, progress=False)
    assert "odin: run on the images, as always: it perturbs the images" in capfd.readouterr().err
    assert seen[network] > len(digits.test.dataset)


def test_the_network_comes_back_as_it_was(digits):
    network = Plain()
    network.conv.weight.grad = torch.ones_like(network.conv.weight)
    before = copy.deepcopy(network.state_dict())
    for name in ("odin", "react"):
        evaluate(foreign(name, network, False), digits, search=False, progress=False)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert torch.equal(network.conv.weight.grad, torch.ones_like(network.conv.weight))
    assert network.head.weight.grad is None
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    from openood.evaluation_api.datasets import DATA_INFO

    assert not any("folders" in name for name in DATA_INFO)


@pytest.mark.parametrize("name", ["temp_scaling", "odin"])
def test_openoods_cuda_is_where_the_network_is(digits, name):
    """Also where the process has a GPU that the network is not on."""
    network = Plain().eval()
    want = evaluate(foreign(name, network, False), digits, search=False, progress=False)
    with cuda_is(torch.device("meta")):
        assert torch.ones(1).cuda().device.type == "meta"
        found = evaluate(foreign(name, network, False), digits, search=False, progress=False)
    pd.testing.assert_frame_equal(found.table, want.table)


def test_loaders_of_tensors(digits):
    """What nobody tells the files of is run on the images, with the same figures."""
    network = Plain().eval()

    def tensors(loader):
        pairs = [loader.dataset[index] for index in range(len(loader.dataset))]
        images, labels = zip(*pairs, strict=True)
        return DataLoader(TensorDataset(torch.stack(images), torch.tensor(labels)), batch_size=BATCH)

    of_tensors = Benchmark(
        test=tensors(digits.test),
        near={name: tensors(loader) for name, loader in digits.near.items()},
        val=tensors(digits.val),
        train=tensors(digits.train),
    )
    for name in ("mds", "react"):
        want = evaluate(foreign(name, network, False), digits, search=False, progress=False).table
        found = evaluate(foreign(name, network, False), of_tensors, search=False, progress=False).table
        pd.testing.assert_frame_equal(found, want.loc[found.index], atol=0.02, rtol=0)
