"""Custom datasets in the real OpenOOD give the results of the same images under OpenOOD's own name."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from openood_support import Scaled, SmallNet, write_description

import openood_adascale
from openood_adascale import feature_cache, register_dataset, unregister
from openood_adascale.errors import SettingError

VARIABLE = "OPENOOD_ADASCALE_DATASETS"


pytestmark = pytest.mark.usefixtures("_undone")


class Net(SmallNet):
    def get_fc(self):
        return self.fc.weight.cpu().detach().numpy(), self.fc.bias.cpu().detach().numpy()


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def small_configs(checkout, tmp_path, configs):
    """OpenOOD's YAML files, and of adascale a search of a few candidates."""
    shutil.copytree(checkout / "configs/postprocessors", tmp_path / "configs/postprocessors")
    return configs(
        "adascale", postprocessor_sweep={"percentile_list": [[60, 70], [80, 85]], "k2_list": [5, 50]}
    )


@pytest.mark.parametrize(
    ("name", "fsood"),
    [("adascale", False), ("adascale", True), ("msp", True), ("knn", False), ("odin", True), ("klm", False)],
)
def test_results_are_openoods(small_evaluator, net, description, small_configs, tmp_path, name, fsood):
    want = small_evaluator(name, net=net, config_root=small_configs).eval_ood(fsood, progress=False)
    own = register_dataset(write_description(tmp_path / "mine.yml", description))
    evaluator = small_evaluator(
        name, net=net, id_name=own, data_root=str(tmp_path / "nowhere"), config_root=small_configs
    )
    got = evaluator.eval_ood(fsood, progress=False)
    pd.testing.assert_frame_equal(got, want, check_exact=True)
    assert got["AUROC"].between(1, 100).all()
    assert got["ACC"].nunique() == 1
    assert not (tmp_path / "nowhere").exists()


def as_folders(entry, lines, folder):
    """Copy images of a list to a folder for each class."""
    for number, line in enumerate(lines):
        name, label = line.split()
        target = folder / f"digit {label}" / f"{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(f"{entry['root']}/{name}", target)


def test_class_folders_with_spaces_give_the_same_results(
    small_evaluator, net, description, checkout, tmp_path
):
    want = small_evaluator("knn", net=net).eval_ood(progress=False)
    for split, entry in description["id"].items():
        lines = Path(entry["images"]).read_text().splitlines()
        as_folders(entry, lines, tmp_path / "my pictures" / split)
        description["id"][split] = f"my pictures/{split}"
    description["classes"] = [f"digit {number}" for number in range(10)]  # of which the folders have six
    description["ood"]["near"]["tin"] = str(checkout / "data/images_classic/tin/test")
    own = register_dataset(write_description(tmp_path / "mine.yml", description))
    evaluator = small_evaluator("knn", net=net, id_name=own, num_workers=2)
    pd.testing.assert_frame_equal(evaluator.eval_ood(progress=False), want, check_exact=True)


def test_covariate_shifted_sets_are_evaluated(small_evaluator, net, description, tmp_path):
    """Two custom sets, one of them folders of some classes, have the images of OpenOOD's one list."""
    reference = small_evaluator("msp", net=net)
    want = reference.eval_ood(fsood=True, progress=False)
    entry = description["csid"]["cifar10c"]
    lines = Path(entry["images"]).read_text().splitlines()
    moved = [line for line in lines if line.split()[1] in ("1", "7")]
    as_folders(entry, moved, tmp_path / "shifted")
    (tmp_path / "rest.txt").write_text("\n".join(line for line in lines if line not in moved))
    description["classes"] = [f"digit {number}" for number in range(10)]
    description["csid"] = {"moved": "shifted", "rest": {**entry, "images": "rest.txt"}}
    own = register_dataset(write_description(tmp_path / "mine.yml", description))
    evaluator = small_evaluator("msp", net=net, id_name=own)
    pd.testing.assert_frame_equal(evaluator.eval_ood(fsood=True, progress=False), want, rtol=1e-6)
    assert list(evaluator.scores["csid"]) == ["moved", "rest"]
    assert len(evaluator.scores["csid"]["moved"][1]) == len(moved) > 0
    assert evaluator.eval_acc("csid") == pytest.approx(reference.eval_acc("csid"))
    del description["csid"]
    alone = small_evaluator("msp", net=net, id_name=register_dataset(description))
    for call in (lambda: alone.eval_acc("csid"), lambda: alone.eval_acc(data_name="csid")):
        with pytest.raises(SettingError, match=r"dataset: csid: None .* eval_acc\('csid'\) need"):
            call()
    assert alone.eval_acc() == reference.eval_acc("id")


def test_custom_images_are_served_from_features(small_evaluator, net, description, tmp_path, capfd):
    own = register_dataset(description)
    want = small_evaluator("knn", net=net, id_name=own).eval_ood(progress=False)
    with feature_cache(tmp_path / "cache"):
        for most in (5000, 16):
            net.images = 0
            found = small_evaluator("knn", net=net, id_name=own).eval_ood(progress=False)
            pd.testing.assert_frame_equal(found, want, atol=2e-3, rtol=0)
            assert net.images <= most
        assert "runs on the images" not in capfd.readouterr().err
        net.images = 0
        small_evaluator("optfs", net=net, id_name=own).eval_ood(progress=False)
        assert net.images <= 7


def test_adascales_pickle_knows_its_images(small_evaluator, net, description, small_configs, checkout, capfd):
    own = register_dataset(description)
    kwargs = {"net": net, "id_name": own, "config_root": small_configs}
    kept = pickle.dumps(small_evaluator("adascale", **kwargs).postprocessor)
    again = small_evaluator(postprocessor=pickle.loads(kept), **kwargs)
    assert "out of date" not in capfd.readouterr().err
    assert again.postprocessor.hyperparam_search_done
    description["id"]["val"] = description["id"]["test"]
    register_dataset(description)
    small_evaluator(postprocessor=pickle.loads(kept), **kwargs)
    assert "made with other validation images" in capfd.readouterr().err


def test_preprocessing_reaches_loaders_and_odin(small_evaluator, net, description):
    description["preprocessing"] = {"size": 32, "resize": 32, "mean": 0.5, "std": [0.2, 0.25, 0.5]}
    description["name"] = "imagenet-digits"  # OpenOOD itself wants presets of its own where it reads imagenet
    own = register_dataset(description)
    evaluator = small_evaluator("odin", net=net, id_name=own)
    assert evaluator.postprocessor.input_std == [0.2, 0.25, 0.5]
    batch = next(iter(evaluator.dataloader_dict["id"]["test"]))
    assert batch["data"].shape[1:] == (3, 32, 32)
    assert batch["data"].min() == pytest.approx(-2.5)
    assert torch.equal(batch["data"], batch["data_aux"])
    # The Evaluator's argument goes first, as ever.
    other = small_evaluator("msp", net=net, id_name=own, preprocessor=Scaled(3.0))
    changed = next(iter(other.dataloader_dict["id"]["test"]))
    assert (changed["data"].min(), changed["data"].max()) == (0, 3)
    assert torch.equal(changed["data_aux"], batch["data"])


def test_unregister_removes_the_dataset(small_evaluator, net, description):
    from openood.evaluation_api import datasets, evaluator, preprocessor
    from openood.postprocessors import info
    from openood.preprocessors import transform

    def state():
        tables = (datasets.DATA_INFO, preprocessor.default_preprocessing_dict, info.num_classes_dict)
        modules = (datasets, evaluator, preprocessor, info, transform)
        functions = [[f for f in vars(module).values() if callable(f)] for module in modules]
        return [list(table) for table in (*tables, transform.normalization_dict)], functions

    unregister()
    before = state()
    register_dataset(description)
    kept = small_evaluator("msp", net=net, id_name="my-digits")
    assert info.num_classes_dict["my-digits"] == 10
    assert transform.normalization_dict["my-digits"] == transform.normalization_dict["cifar10"]
    assert state() != before
    unregister()
    assert state() == before
    with pytest.raises(ValueError, match="my-digits"):
        small_evaluator("msp", net=net, id_name="my-digits")
    # What has been made before goes on working.
    openood_adascale.register()
    want = small_evaluator("msp", net=net).eval_ood(progress=False)
    pd.testing.assert_frame_equal(kept.eval_ood(progress=False), want, check_exact=True)
    unregister()
    assert state() == before


@pytest.mark.parametrize("name", ["cifar10", "imagenet200", "cub", "covid"])
def test_names_that_openood_uses_are_refused(description, name):
    """covid is in the table of normalisations alone."""
    with pytest.raises(SettingError, match=rf"dataset: name: '{name}' .* a name that OpenOOD does not use"):
        register_dataset({**description, "name": name})


SCRIPT = """
import argparse, sys, torch
from openood.evaluation_api import Evaluator
from openood.networks import ResNet18_32x32

parser = argparse.ArgumentParser()
parser.add_argument("--postprocessor", default="msp")
parser.add_argument("--checkpoint")
args = parser.parse_args()
net = ResNet18_32x32(num_classes=10).eval()
net.load_state_dict(torch.load(args.checkpoint, map_location="cpu"))
evaluator = Evaluator(net, id_name="my-digits", postprocessor_name=args.postprocessor, config_root="configs", num_workers=0)
print(evaluator.eval_ood(fsood=True))
"""


def test_variable_serves_a_users_script(run_script, checkpoint_root, description, tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    env = {VARIABLE: str(write_description(tmp_path / "mine.yml", description))}
    more = [tmp_path / "mine.py", "--checkpoint", checkpoint_root / "s0/best.ckpt"]
    done = run_script(
        ["-m", "openood_adascale", "run", "--postprocessors", "msp,adascale_resnet50", *more], env=env
    )
    assert "Performing inference on my-digits test set" in done.stdout
    assert "adascale_resnet50" in done.stdout.splitlines()[-2] + done.stdout.splitlines()[-3]
    broken = {VARIABLE: env[VARIABLE] + ".not"}
    done = run_script(more, env=broken, check=False)
    assert f"SettingError: {VARIABLE}: dataset: " in done.stderr
