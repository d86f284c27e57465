"""LTS, BFAct, OptFS and the presets in the real OpenOOD: by name, in a search, in pickles, in main.py's order."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from openood_support import LOOKED_AT, SmallNet, through_file

from openood_adascale.plugin.import_hook import configs_root
from openood_adascale.published.presets import presets

SWEEPS = {
    "lts": {"percentile_list": [80, 95]},
    "bfact": {"percentile_list": [80, 95], "order_list": [1, 2]},
    "optfs": {"bins_list": [20, 100], "score_list": ["vanilla", "energy"]},
}
LEARNING = ["bfact", "optfs"]


@pytest.fixture
def loaders(small_evaluator):
    """OpenOOD's loaders."""
    return small_evaluator("msp").dataloader_dict


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
def test_method_is_fitted_and_scores_by_name(small_evaluator, name):
    net = SmallNet().eval()
    evaluator = small_evaluator(name, net)
    known = evaluator.dataloader_dict["id"]
    train = images(known["train"]) if name in LEARNING else 0
    assert net.images - (LOOKED_AT if train else 0) == train
    table = evaluator.eval_ood(progress=False)
    assert np.isfinite(table.to_numpy().astype(float)).all()
    detector = alone(evaluator.postprocessor, SmallNet().eval(), known["train"])
    want = detector.predict_loader(known["test"])
    got = evaluator.scores["id"]["test"]
    np.testing.assert_allclose(got[1], want[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(got[0], want[0])


@pytest.mark.parametrize("name", SWEEPS)
@pytest.mark.parametrize("fit_split", ["train", "val"])
def test_a_search_is_one_pass_over_each_loader(small_evaluator, tmp_path, name, fit_split):
    changes = {"fit_split": fit_split} if name in LEARNING else {}
    root = write_yml(tmp_path, name, True, SWEEPS[name], **changes)
    net = SmallNet().eval()
    evaluator = small_evaluator(name, net, config_root=root)
    known, ood = (evaluator.dataloader_dict[key] for key in ("id", "ood"))
    train = images(known["train"]) if changes == {"fit_split": "train"} else 0
    assert net.images == images(known["val"]) + images(ood["val"]) + train + LOOKED_AT
    postprocessor = evaluator.postprocessor
    assert postprocessor.hyperparam_search_done
    detector = alone(postprocessor, SmallNet().eval(), known[fit_split])
    np.testing.assert_allclose(
        postprocessor.inference(net, known["test"], progress=False)[1],
        detector.predict_loader(known["test"])[1],
        rtol=1e-4,
        atol=1e-4,
    )
    # the same choice as the search without OpenOOD
    other = postprocessor.method.detector(SmallNet().eval(), **changes)
    fitted = {"fit_loader": known["train"]} if train else {}
    found = other.search(known["val"], ood["val"], SWEEPS[name], False, **fitted)
    assert found.best_settings == postprocessor.settings
    # another candidate does not cost another pass over the training images
    before = net.images
    postprocessor.set_hyperparam(postprocessor.get_hyperparam())
    assert net.images == before


@pytest.mark.parametrize("name", ["adascale_resnet50", "adascale_logit_cifar10_wrn_28_10"])
def test_preset_has_its_published_settings(small_evaluator, name):
    net = SmallNet().eval()
    evaluator = small_evaluator(name, net)
    postprocessor = evaluator.postprocessor
    row = presets().set_index("name").loc[name]
    assert not postprocessor.APS_mode
    assert postprocessor.settings.variant == row["variant"]
    assert postprocessor.settings.percentile == (row["p_min"], row["p_max"])
    assert postprocessor.settings.k2 == row["k2_percent"]
    assert net.images == 2 * images(evaluator.dataloader_dict["id"]["val"]) + LOOKED_AT
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


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("nothing", ""),
        ("settings", "made with other settings than those of"),
        ("images", "made with other training images"),
    ],
)
def test_pickle_of_a_method_that_is_fitted_on_training_images(
    small_evaluator, evaluator_kwargs, tmp_path, capfd, change, told
):
    root = write_yml(tmp_path, "optfs")
    data = tmp_path / "data"
    shutil.copytree(evaluator_kwargs["data_root"], data)
    options = {"config_root": root, "data_root": str(data)}
    first = small_evaluator("optfs", SmallNet().eval(), **options)
    restored = through_file(first.postprocessor, tmp_path / "x.pkl")
    if change == "settings":
        write_yml(tmp_path, "optfs", fit_split="val")
    elif change == "images":
        place = data / "benchmark_imglist/cifar10/train_cifar10.txt"
        place.write_text("".join(place.read_text().splitlines(keepends=True)[:20]))
    capfd.readouterr()
    net = SmallNet().eval()
    again = small_evaluator(None, net, postprocessor=restored, **options)
    said = [line for line in capfd.readouterr().err.splitlines() if "out of date" in line]
    assert len(said) == (change != "nothing")
    assert bool(net.images) == (change != "nothing")
    assert all("results/<run>/s*/postprocessors/optfs.pkl" in line and told in line for line in said)
    known = again.dataloader_dict["id"]
    want = alone(restored, net, known["val" if change == "settings" else "train"]).predict_loader(
        known["test"]
    )[1]
    got = restored.inference(net, known["test"], progress=False)[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


# Loaders.


@pytest.mark.parametrize("name", LEARNING)
def test_missing_training_images_are_named(loaders, name):
    from openood_adascale.plugin.postprocessor import POSTPROCESSORS

    val_only = {"val": loaders["id"]["val"]}
    net = SmallNet().eval()
    with pytest.raises(
        ValueError, match=r"id_loader_dict: it has no 'train', only \['val'\].*fit_split: val"
    ):
        POSTPROCESSORS[name]().setup(net, val_only, {})
    assert net.images == 0
    postprocessor = POSTPROCESSORS[name](fit_split="val")
    postprocessor.setup(net, val_only, {})
    assert net.images == images(val_only["val"]) + LOOKED_AT


@pytest.mark.parametrize("name", SWEEPS)
def test_main_pys_order_of_calls(loaders, tmp_path, name):
    """The test set comes before the search, loaders shuffle, and the last tie wins."""
    from openood.evaluators.ood_evaluator import OODEvaluator
    from openood.postprocessors import get_postprocessor
    from openood.utils.config import Config

    root = write_yml(tmp_path, name, True, SWEEPS[name])
    config = Config(str(Path(root) / f"postprocessors/{name}.yml"))
    net = SmallNet().eval()
    known = dict(loaders["id"])
    known["train"] = torch.utils.data.DataLoader(known["train"].dataset, 16, shuffle=True)
    ood = {"val": loaders["ood"]["val"], "nearood": loaders["ood"]["near"], "farood": loaders["ood"]["far"]}
    postprocessor = get_postprocessor(config)
    postprocessor.setup(net, known, ood)
    net.images = 0
    first = postprocessor.inference(net, known["test"], progress=False)
    assert np.isfinite(first[1]).all()
    OODEvaluator(config).hyperparam_search(net, known["val"], ood["val"], postprocessor)
    assert net.images <= sum(map(images, (known["test"], known["val"], ood["val"]))) + LOOKED_AT
    want = alone(postprocessor, SmallNet().eval(), known["train"]).predict_loader(known["test"])[1]
    got = postprocessor.inference(net, known["test"], progress=False)[1]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
