"""LTS, BFAct, OptFS and the presets in the real OpenOOD: by name, in a search, in pickles, in main.py's order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from networks import ReturnFeature
from openood_postprocessing import through_file

from openood_adascale.plugin.import_hook import configs_root
from openood_adascale.published.presets import presets

SWEEPS = {
    "lts": {"percentile_list": [80, 95]},
    "bfact": {"percentile_list": [80, 95], "order_list": [1, 2]},
    "optfs": {"bins_list": [20, 100], "score_list": ["vanilla", "energy"]},
}
LEARNING = ["bfact", "optfs"]
TRIED = 7  # images to find the head and its input


class CountedNet(ReturnFeature):
    def forward(self, images, return_feature=False):
        self.calls.append(len(images))
        return super().forward(images, return_feature)


def make_net(seed: int = 0) -> CountedNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CountedNet().eval()


@pytest.fixture
def make(evaluator_kwargs):
    """make("optfs", net, **kwargs) -> Evaluator."""

    def call(name=None, net=None, **kwargs):
        from openood.evaluation_api import Evaluator

        return Evaluator(net or make_net(), postprocessor_name=name, **{**evaluator_kwargs, **kwargs})

    return call


@pytest.fixture
def loaders(make):
    """OpenOOD's loaders."""
    return make("msp").dataloader_dict


def write_yml(root: Path, name: str, aps_mode: bool = False, sweep=None, **changes) -> str:
    """The packaged yml but for ``changes``, in a config root of its own."""
    section = yaml.safe_load((configs_root() / f"postprocessors/{name}.yml").read_text())["postprocessor"]
    section["postprocessor_args"].update(changes)
    section |= {"APS_mode": aps_mode, "postprocessor_sweep": sweep}
    path = root / "postprocessors" / f"{name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"postprocessor": section}, sort_keys=False))
    return str(root)


def images(loader) -> int:
    return len(loader.dataset)


def alone(postprocessor, net, loader):
    """The same method without OpenOOD, with the postprocessor's settings."""
    settings = {name: getattr(postprocessor.settings, name) for name in postprocessor.settings.names()}
    return postprocessor.method.detector(net, **settings).fit(loader)


@pytest.mark.parametrize("name", SWEEPS)
def test_by_name(make, name):
    net = make_net()
    evaluator = make(name, net)
    known = evaluator.dataloader_dict["id"]
    train = images(known["train"]) if name in LEARNING else 0
    assert sum(net.calls) - (TRIED if train else 0) == train
    assert not evaluator.postprocessor._collected
    table = evaluator.eval_ood(progress=False)
    assert np.isfinite(table.to_numpy().astype(float)).all()
    detector = alone(evaluator.postprocessor, make_net(), known["train"])
    want = detector.predict_loader(known["test"])
    got = evaluator.scores["id"]["test"]
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("fit_split", ["train", "val"])
def test_a_search_is_one_pass_over_each_loader(make, tmp_path, name, fit_split):
    changes = {"fit_split": fit_split} if name in LEARNING else {}
    root = write_yml(tmp_path, name, True, SWEEPS[name], **changes)
    net = make_net()
    evaluator = make(name, net, config_root=root)
    known, ood = (evaluator.dataloader_dict[key] for key in ("id", "ood"))
    train = images(known["train"]) if changes == {"fit_split": "train"} else 0
    assert sum(net.calls) == images(known["val"]) + images(ood["val"]) + train + TRIED
    postprocessor = evaluator.postprocessor
    assert postprocessor.hyperparam_search_done
    assert not postprocessor._collected
    detector = alone(postprocessor, make_net(), known[fit_split])
    np.testing.assert_allclose(
        postprocessor.inference(net, known["test"], progress=False)[1],
        detector.predict_loader(known["test"])[1],
        rtol=1e-4,
        atol=1e-4,
    )
    # the same choice as the search without OpenOOD
    other = postprocessor.method.detector(make_net(), **changes)
    fitted = {"fit_loader": known["train"]} if train else {}
    found = other.search(known["val"], ood["val"], SWEEPS[name], False, **fitted)
    assert found.best_settings == postprocessor.settings
    # another candidate does not cost another pass over the training images
    before = sum(net.calls)
    postprocessor.set_hyperparam(postprocessor.get_hyperparam())
    assert sum(net.calls) == before


@pytest.mark.parametrize("name", ["adascale_resnet50", "adascale_logit_cifar10_wrn_28_10"])
def test_preset(make, name):
    net = make_net()
    evaluator = make(name, net)
    postprocessor = evaluator.postprocessor
    row = presets().set_index("name").loc[name]
    assert not postprocessor.APS_mode
    assert postprocessor.settings.variant == row["variant"]
    assert postprocessor.settings.percentile == (row["p_min"], row["p_max"])
    assert postprocessor.settings.k2 == row["k2_percent"]
    assert sum(net.calls) == 2 * images(evaluator.dataloader_dict["id"]["val"]) + TRIED
    assert np.isfinite(evaluator.eval_ood(progress=False).to_numpy().astype(float)).all()


def test_every_preset_is_registered_for_both_ways_in():
    from openood.evaluation_api import postprocessor as api
    from openood.postprocessors import get_postprocessor
    from openood.utils.config import Config

    from openood_adascale.plugin.postprocessor import POSTPROCESSORS

    for name in [*presets()["name"], *SWEEPS]:
        assert api.postprocessors[name] is POSTPROCESSORS[name]
        made = get_postprocessor(Config(str(configs_root() / f"postprocessors/{name}.yml")))
        assert type(made) is POSTPROCESSORS[name]
        assert not made.APS_mode
    for row in presets().itertuples():
        assert POSTPROCESSORS[row.name](k1=1).settings.variant == row.variant


# Pickles.


@pytest.mark.parametrize("name", SWEEPS)
def test_matching_pickle_needs_no_pass(make, tmp_path, capfd, name):
    root = write_yml(tmp_path, name, True, SWEEPS[name])
    first = make(name, make_net(), config_root=root)
    path = tmp_path / f"{name}.pkl"
    restored = through_file(first.postprocessor, path)
    assert path.stat().st_size < 10_000
    net = make_net()
    second = make(None, net, postprocessor=restored, config_root=root)
    assert net.calls == []
    assert "out of date" not in capfd.readouterr().err
    known = second.dataloader_dict["id"]["test"]
    want, got = (e.postprocessor.inference(e.net, known, progress=False) for e in (first, second))
    np.testing.assert_allclose(got[1], want[1], rtol=1e-5)


@pytest.mark.parametrize("name", LEARNING)
@pytest.mark.parametrize("change", ["network", "fit_split", "images"])
def test_stale_pickle_is_named_and_fitted_again(make, loaders, tmp_path, capfd, name, change):
    root = write_yml(tmp_path, name)
    restored = through_file(make(name, make_net(0), config_root=root).postprocessor, tmp_path / "x.pkl")
    net = make_net(1 if change == "network" else 0)
    id_loaders = dict(loaders["id"])
    if change == "fit_split":
        write_yml(tmp_path, name, fit_split="val")
        del id_loaders["train"]  # nothing but the new yml's loader is asked for
    elif change == "images":
        fewer = torch.utils.data.Subset(id_loaders["train"].dataset, range(20))
        id_loaders["train"] = torch.utils.data.DataLoader(fewer, 8)
    capfd.readouterr()
    restored.setup(net, id_loaders, loaders["ood"])
    said = capfd.readouterr().err
    assert f"results/<run>/s*/postprocessors/{name}.pkl" in said
    assert "out of date" in said
    if change == "images":
        assert "made with other training images" in said
    loader = id_loaders["val" if change == "fit_split" else "train"]
    want = alone(restored, net, loader).predict_loader(loaders["id"]["test"])[1]
    got = restored.inference(net, loaders["id"]["test"], progress=False)[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


# Loaders.


@pytest.mark.parametrize("name", LEARNING)
def test_missing_training_images_are_named(loaders, name):
    from openood_adascale.plugin.postprocessor import POSTPROCESSORS

    val_only = {"val": loaders["id"]["val"]}
    net = make_net()
    with pytest.raises(
        ValueError, match=r"id_loader_dict: it has no 'train', only \['val'\].*fit_split: val"
    ):
        POSTPROCESSORS[name]().setup(net, val_only, {})
    assert net.calls == []
    postprocessor = POSTPROCESSORS[name](fit_split="val")
    postprocessor.setup(net, val_only, {})
    assert sum(net.calls) == images(val_only["val"]) + TRIED


def test_lts_asks_for_no_loader(loaders):
    from openood_adascale.plugin.postprocessor import LTSPostprocessor

    postprocessor = LTSPostprocessor()
    postprocessor.setup(make_net(), {}, {})
    assert np.isfinite(postprocessor.inference(make_net(), loaders["id"]["test"], progress=False)[1]).all()


@pytest.mark.parametrize("name", SWEEPS)
def test_main_pys_order_of_calls(loaders, tmp_path, name):
    """The test set comes before the search, loaders shuffle, and the last tie wins."""
    from openood.evaluators.ood_evaluator import OODEvaluator
    from openood.postprocessors import get_postprocessor
    from openood.utils.config import Config

    root = write_yml(tmp_path, name, True, SWEEPS[name])
    config = Config(str(Path(root) / f"postprocessors/{name}.yml"))
    net = make_net()
    known = dict(loaders["id"])
    known["train"] = torch.utils.data.DataLoader(known["train"].dataset, 16, shuffle=True)
    ood = {"val": loaders["ood"]["val"], "nearood": loaders["ood"]["near"], "farood": loaders["ood"]["far"]}
    postprocessor = get_postprocessor(config)
    postprocessor.setup(net, known, ood)
    net.calls.clear()
    first = postprocessor.inference(net, known["test"], progress=False)
    assert np.isfinite(first[1]).all()
    OODEvaluator(config).hyperparam_search(net, known["val"], ood["val"], postprocessor)
    assert sum(net.calls) <= sum(map(images, (known["test"], known["val"], ood["val"]))) + TRIED
    assert not postprocessor._collected
    want = alone(postprocessor, make_net(), known["train"]).predict_loader(known["test"])[1]
    got = postprocessor.inference(net, known["test"], progress=False)[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
