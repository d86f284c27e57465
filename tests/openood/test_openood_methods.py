"""OpenOOD's own postprocessors as methods of `evaluate`: the results of its own Evaluator, for any network."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from openood_support import BATCH, TRANSFORM, OpenOODsWay, Plain, places, seen_images
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale import SCALE, AdaSCALE, Benchmark, evaluate, feature_cache, register_dataset
from openood_adascale.errors import SettingError
from openood_adascale.plugin import import_hook
from openood_adascale.plugin.openood_methods import OpenOODMethods
from openood_adascale.plugin.system import CUDA

METHODS = OpenOODMethods(progress=False)
NAMES = [*METHODS.names("all"), "odin"]
NO_RESULTS = {"she", "vim", "nnguide"}
"""OpenOOD's Evaluator has none here: an untrained network classifies too few images right, or has too few dimensions."""
ON_BOTH = {"msp", "react", "residual", "odin"}
"""Also run on a network with the methods of OpenOOD's networks."""

pytestmark = pytest.mark.usefixtures("_undone")


def method(name, network):
    return METHODS.method(name, network)


@pytest.fixture
def reference(checkout, small_evaluator):
    """OpenOOD's Evaluator over the same images, without a cache."""

    def make(name, fsood=False, search=True):
        found = places(checkout)
        dataset = register_dataset(
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
        net = OpenOODsWay().eval()
        evaluator = small_evaluator(name, net=net, id_name=dataset, batch_size=BATCH, **more)
        return evaluator.eval_ood(fsood, progress=False).astype(float), evaluator

    return make


def search_off(checkout, name):
    root = checkout.parent / "unsearched"  # the checkout stays as it is
    (root / "postprocessors").mkdir(parents=True, exist_ok=True)
    text = (checkout / f"configs/postprocessors/{name}.yml").read_text()
    (root / f"postprocessors/{name}.yml").write_text(text.replace("APS_mode: True", "APS_mode: False"))
    return str(root)


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    return tmp_path_factory.mktemp("common") / "cache"


@pytest.mark.parametrize("name", sorted({*NAMES} - NO_RESULTS))
def test_results_are_openoods(name, digits, reference, common):
    torch.manual_seed(0)
    want, evaluator = reference(name)
    assert want["AUROC"].between(1, 100).all()
    for network in (OpenOODsWay().eval(), Plain().eval())[0 if name in ON_BOTH else 1 :]:
        torch.manual_seed(0)
        one = method(name, network)
        with feature_cache(common):
            found = evaluate(one, digits, progress=False)
        pd.testing.assert_frame_equal(found.table, want, atol=0.02, rtol=0)
        scores = np.ravel(evaluator.scores["ood"]["near"]["tin"][1])
        np.testing.assert_allclose(found.scores["tin"], scores, rtol=2e-3, atol=1e-4 * np.abs(scores).max())
        searched = bool(evaluator.postprocessor.hyperparam_search_done)
        assert one.hyperparam_search_done == searched
        if searched:
            chosen = [list(np.atleast_1d(p.get_hyperparam())) for p in (one, evaluator.postprocessor)]
            assert chosen[0] == chosen[1]


def test_results_without_search_on_the_full_spectrum(digits, reference, common):
    want, _ = reference("react", fsood=True, search=False)
    one = method("react", Plain().eval())
    with feature_cache(common):
        found = evaluate(one, digits, search=False, full_spectrum=True, progress=False)
        pd.testing.assert_frame_equal(found.table, want, atol=0.02, rtol=0)
        searched = evaluate(one, digits, progress=False)  # the same object again
    pd.testing.assert_frame_equal(searched.table, reference("react")[0], atol=0.02, rtol=0)


@pytest.mark.parametrize("kind", [Plain, OpenOODsWay])
@pytest.mark.parametrize("cached", [True, False])
def test_image_goes_through_the_network_once(kind, cached, digits, tmp_path, capfd):
    network, methods = kind().eval(), OpenOODMethods(progress=False)
    several = {name: methods.method(name, network) for name in ("knn", "msp", "react", "vra")}
    loaders = [
        digits.train,
        digits.val,
        digits.ood_val,
        digits.test,
        *digits.near.values(),
        *digits.far.values(),
    ]
    images = sum(len(loader.dataset) for loader in loaders)
    with feature_cache(tmp_path / "cache" if cached else False):
        if cached:
            evaluate(methods.method("dice", network), digits, progress=False)  # reads all images
            images = 0
        seen_images[network] = 0
        found = evaluate({"scale": SCALE(network), **several}, digits, progress=False)
        assert list(found) == ["scale", *several]
        assert images <= seen_images[network] < images + 50 * len(found)  # a few, to look at the network
        if cached:
            evaluate(AdaSCALE(network), digits, progress=False)
    assert "runs on the images" not in capfd.readouterr().err


def test_network_is_left_as_it_was(digits, capfd, monkeypatch):
    monkeypatch.setattr(import_hook, "_said", set())
    network = Plain()
    network.train()
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = copy.deepcopy(network.state_dict())
    evaluate(method("odin", network), digits, search=False, progress=False)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(torch.equal(p.grad, torch.full_like(p, 3.0)) for p in network.parameters())
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "openood:odin: runs on the images: it is not in the list" in printed.err


def test_cuda_calls_go_to_the_device_of_the_network(digits):
    network = Plain().eval()
    want = evaluate(method("temp_scaling", network), digits, search=False, progress=False)
    with CUDA.going_to(torch.device("meta")):
        assert torch.ones(1).cuda().device.type == "meta"
        found = evaluate(method("temp_scaling", network), digits, search=False, progress=False)
    pd.testing.assert_frame_equal(found.table, want.table)


@pytest.mark.parametrize("kind", ["tensors", "lists"])
def test_results_are_the_same_for_other_loaders(digits, kind):
    """Tensors are cached; whatever has no index runs on the images, with the same results."""
    network = Plain().eval()

    def others(loader):
        images, labels = zip(*(loader.dataset[index] for index in range(len(loader.dataset))), strict=True)
        tensors = DataLoader(TensorDataset(torch.stack(images), torch.tensor(labels)), batch_size=BATCH)
        return tensors if kind == "tensors" else list(tensors)

    benchmark = Benchmark(
        test=others(digits.test),
        near={name: others(loader) for name, loader in digits.near.items()},
        val=others(digits.val),
        train=others(digits.train),
    )
    for name in ("mds", "react"):
        want = evaluate(method(name, network), digits, search=False, progress=False).table
        found = evaluate(method(name, network), benchmark, search=False, progress=False).table
        pd.testing.assert_frame_equal(found, want.loc[found.index], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("knn", "train", "--train: None .* train images, which this method needs"),
        ("react", "val", "--val: None .* val images"),
        ("mds", "labels", "--train: labels: None .* class of each train image"),
        ("temp_scaling", "labels", "--val: labels: None"),
        ("mds_ensemble", "labels", "--train: labels: None"),
    ],
)
def test_missing_images_and_labels_are_named(name, missing, message, digits):
    if missing == "labels":
        for loader in (digits.train, digits.val):
            loader.dataset.labels = [-1] * len(loader.dataset)
    else:
        setattr(digits, missing, None)
    with pytest.raises(SettingError, match=message):
        evaluate(method(name, Plain().eval()), digits, search=False, progress=False)


def test_unknown_names_and_missing_files_are_refused(tmp_path, monkeypatch):
    for name in ("nonsense", "adascale", "dropout2"):
        expected = rf"--methods: 'openood:{name}' .*openood:all .msp, mls.*, knn.*vra$"
        with pytest.raises(SettingError, match=expected):
            method(name, Plain())
    with pytest.raises(SettingError, match=r"--methods: 'openood:patchcore' .* there is no .*patchcore\.yml"):
        method("patchcore", Plain())
    with monkeypatch.context() as patch:
        patch.setenv("OPENOOD_ADASCALE_DISABLE", "register")
        with pytest.raises(SettingError, match=r"OPENOOD_ADASCALE_DISABLE: 'register' .*openood:knn"):
            method("knn", Plain())
