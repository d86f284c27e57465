"""OpenOOD's feature-based postprocessors on cached features: the results of their runs on the images."""

from __future__ import annotations

import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from openood_support import SmallNet, cifar10_batch, write_small_benchmark

from openood_adascale import feature_cache
from openood_adascale.plugin import import_hook
from openood_adascale.plugin.evaluator import FROM_FEATURES
from openood_adascale.plugin.feature_net import FeatureNet

SEARCHES = {
    "ash": {"percentile_list": [65, 90]}, "scale": {"percentile_list": [65, 85]}, "react": {"percentile_list": [85, 99]},
    "knn": {"K_list": [5, 20]}, "nnguide": {"K_list": [5, 10], "alpha_list": [0.5]}, "vim": {"dim_list": [16, 64]},
    "dice": {"p_list": [50, 90]}, "vra": {"percentile_high_list": [90, 99], "percentile_low_list": [1, 10]},
}  # fmt: skip
"""Sweeps for few images and a feature of 128 dimensions; the others keep OpenOOD's."""


class Net(SmallNet):
    """A network with the methods of OpenOOD's networks."""

    def get_fc(self):
        return self.fc.weight.cpu().detach().numpy(), self.fc.bias.cpu().detach().numpy()


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch):
    monkeypatch.setattr(import_hook, "_said", set())


@pytest.fixture(scope="module")
def few_images(checkout, tmp_path_factory):
    """Few images of ten classes, OpenOOD's YAML files for them, and the weights of a network that knows the classes."""
    root = tmp_path_factory.mktemp("features")
    write_small_benchmark(checkout / "data", root / "data")
    for path in (checkout / "data/benchmark_imglist/cifar10").glob("*.txt"):
        if not path.name.startswith("train"):  # all images to test on
            shutil.copyfile(path, root / "data/benchmark_imglist/cifar10" / path.name)
    (root / "configs/postprocessors").mkdir(parents=True)
    for path in (checkout / "configs/postprocessors").glob("*.yml"):
        config = yaml.safe_load(path.read_text())
        if path.stem in SEARCHES:
            config["postprocessor"].update(APS_mode=True, postprocessor_sweep=SEARCHES[path.stem])
        if path.stem == "residual":
            config["postprocessor"]["postprocessor_args"]["dim"] = 32
        (root / "configs/postprocessors" / path.name).write_text(yaml.safe_dump(config, sort_keys=False))
    images, labels = cifar10_batch(root / "data", "train")
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(150):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert len(set(net(images).argmax(1)[net(images).argmax(1) == labels].tolist())) == 10
    return root, net.state_dict()


@pytest.fixture
def evaluated(few_images):
    """evaluated("knn", **kwargs) -> table, number of images through the network, evaluator."""
    root, weights = few_images

    def run(name=None, net=None, **kwargs):
        from openood.evaluation_api import Evaluator

        if net is None:
            net = Net().eval()
            net.load_state_dict(weights)
        net.images = 0
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002  (OpenOOD draws from it)
        options = {
            "id_name": "cifar10",
            "data_root": str(root / "data"),
            "config_root": str(root / "configs"),
        }
        evaluator = Evaluator(net, postprocessor_name=name, **{"num_workers": 0, **options, **kwargs})
        table = evaluator.eval_ood(progress=False).astype(float)
        return table, net.images, evaluator

    return run


@pytest.fixture(scope="module")
def common(tmp_path_factory):
    """A cache directory that the tests share."""
    return tmp_path_factory.mktemp("common") / "cache"


def as_in_the_csv(table):
    return table.map("{:.2f}".format)


@pytest.mark.parametrize("name", FROM_FEATURES)
def test_results_are_those_on_the_images(evaluated, common, name, capfd):
    want, images, on_images = evaluated(name)
    drawn = torch.rand(2)
    assert np.isfinite(want.to_numpy()).all()
    with feature_cache(common):
        evaluated(name)
        got, again, evaluator = evaluated(name)
    pd.testing.assert_frame_equal(as_in_the_csv(got), as_in_the_csv(want))
    assert torch.equal(torch.rand(2), drawn)  # the same random draws
    assert images > 100
    assert again <= 16  # two images, to look at the network
    assert "runs on the images" not in capfd.readouterr().err
    searched = [one.postprocessor.hyperparam_search_done for one in (evaluator, on_images)]
    assert searched == [name in SEARCHES or bool(evaluator.postprocessor.APS_mode)] * 2
    # The attributes that a user sees are the real ones, and nothing of this package is in the pickle.
    assert type(evaluator.net).__name__ in ("Net", "ReactNet", "ASHNet", "ScaleNet")
    assert next(iter(evaluator.dataloader_dict["id"]["test"]))["data"].ndim == 4
    assert b"openood_adascale" not in pickle.dumps(evaluator.postprocessor)


def test_shuffled_loaders_give_the_same_results(evaluated, common):
    want = evaluated("cfood", shuffle=True)[0]
    with feature_cache(common):
        got = evaluated("cfood", shuffle=True)[0]
    pd.testing.assert_frame_equal(as_in_the_csv(got), as_in_the_csv(want))


def test_pickled_postprocessor_runs_on_features(evaluated, common):
    with feature_cache(common):
        want, _, evaluator = evaluated("knn")
        restored = pickle.loads(pickle.dumps(evaluator.postprocessor))
        got, images, _ = evaluated("knn", postprocessor=restored)
    pd.testing.assert_frame_equal(got, want)
    assert images <= 16


def test_evaluator_without_a_cache_is_left_alone(evaluated):
    net = Net().eval()
    evaluator = evaluated("msp", net)[2]
    assert evaluator.net is net
    assert net.images == evaluated("msp", net)[1] > 100


@pytest.mark.parametrize("name", ["odin", "adascale_a"])
def test_others_run_on_the_images_and_share_the_accuracy(evaluated, common, name, capfd):
    want, _, _ = evaluated(name)
    with feature_cache(common):
        evaluated("msp")
        got, _, _ = evaluated(name)
    pd.testing.assert_frame_equal(got, want)
    told = [line for line in capfd.readouterr().err.splitlines() if "runs on the images" in line]
    assert told == [
        f"openood-adascale: {name}: runs on the images: it is not in the list of postprocessors that need features only"
    ]


def test_subclasses_run_on_the_images(evaluated, common, capfd):
    from openood.postprocessors import BasePostprocessor

    class Own(BasePostprocessor):
        APS_mode = False

        def postprocess(self, net, data):
            assert data.ndim == 4
            return super().postprocess(net, data)

    with feature_cache(common):
        evaluated(postprocessor=Own(None))
    assert "openood-adascale: Own: runs on the images: " in capfd.readouterr().err


class OtherFeature(Net):
    def forward(self, images, return_feature=False):
        logits, feature = super().forward(images, True)
        return (logits, feature + 1) if return_feature else logits


class ListOfFeatures(Net):
    def forward(self, images, return_feature=False):
        logits, feature = super().forward(images, True)
        return (logits, [feature]) if return_feature else logits


class NoFeature(Net):
    def forward(self, images):
        return super().forward(images)


@pytest.mark.parametrize("kind", [OtherFeature, ListOfFeatures, NoFeature])
def test_networks_with_other_features_run_on_the_images(evaluated, tmp_path, kind, capfd):
    want = evaluated("msp", kind().eval())[0]
    with feature_cache(tmp_path / "cache"):
        got, images, _ = evaluated("msp", kind().eval())
    pd.testing.assert_frame_equal(got, want)
    assert images > 100
    assert "msp: runs on the images: " in capfd.readouterr().err


def test_random_images_run_on_the_images(evaluated, tmp_path, capfd):
    from torchvision import transforms

    crop = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.ToTensor()])
    with feature_cache(tmp_path / "cache"), pytest.warns(UserWarning, match="its images are random"):
        _, images, _ = evaluated("msp", preprocessor=crop)
    assert images > 100
    assert "runs on the images: its images are not cached" in capfd.readouterr().err


def test_changes_after_construction_are_evaluated(evaluated, common):
    with feature_cache(common):
        evaluator = evaluated("msp")[2]
        evaluator.metrics["ood"] = evaluator.scores["id_preds"] = evaluator.metrics["id_acc"] = None
        evaluator.scores["id"]["test"] = None
        for split in ("near", "far"):
            evaluator.scores["ood"][split] = dict.fromkeys(evaluator.scores["ood"][split])
        del evaluator.dataloader_dict["ood"]["near"]["tin"]
        with torch.no_grad():
            evaluator.net.fc.weight *= -1
        got = evaluator.eval_ood(progress=False)
        changed = Net().eval()
        changed.load_state_dict(evaluator.net.state_dict())
        want = evaluated("msp", changed)[0]
    np.testing.assert_allclose(got.loc["cifar100"].astype(float), want.loc["cifar100"])
    assert "tin" not in got.index


def test_unregister_restores_the_evaluator_and_the_postprocessors():
    from openood.evaluation_api import Evaluator
    from openood.postprocessors import KNNPostprocessor

    from openood_adascale import register, unregister

    def replaced():
        methods = (Evaluator.__init__, Evaluator.eval_ood, KNNPostprocessor.setup, KNNPostprocessor.inference)
        return [hasattr(method, "__wrapped__") for method in methods]

    assert all(replaced())
    unregister()
    assert not any(replaced())
    assert "inference" not in vars(KNNPostprocessor)
    register()
    assert all(replaced())


def test_feature_net_has_openoods_methods():
    real = Net()
    from openood_adascale.features.head import LinearHead

    net = FeatureNet(LinearHead(real.fc.weight.detach(), real.fc.bias.detach()))
    features = torch.randn(3, 128)
    logits, feature = net(features, return_feature=True)
    torch.testing.assert_close(logits, real.fc(features))
    feature.zero_()
    assert features.abs().min() > 0  # some methods write to the feature
    assert (net.feature_size, net.fc, net.get_fc_layer()) == (128, net.fc, net.fc)
    for ours, theirs in zip(net.get_fc(), real.get_fc(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
