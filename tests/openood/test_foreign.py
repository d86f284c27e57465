"""OpenOOD's own postprocessors as methods of `evaluate`: the figures of its own Evaluator, for any network."""

from __future__ import annotations

import copy
import logging
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import call_here as call
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import openood_adascale
from openood_adascale import AdaSCALE, Benchmark, evaluate, register_dataset, unregister, using_store
from openood_adascale.errors import SettingError
from openood_adascale.evaluation.folders import find_images
from openood_adascale.evaluation.transforms import transform_for
from openood_adascale.evidence.sharing import forget
from openood_adascale.plugin.foreign import OpenOODs, foreign

BATCH = 64
NAMES = [*OpenOODs().names("all"), "odin"]
NO_FIGURES = {"she", "vim", "nnguide"}
"""Here OpenOOD's Evaluator has none: an untrained network gives them too few right images, or dimensions."""
TRANSFORM = "size=32,resize=32,mean=0.5,std=0.25"


def count_images(network, count):
    seen = logging.getLogger("networks").images  # where a network's code may keep something; see SmallNet
    seen[network] = seen.get(network, 0) + count


class Plain(nn.Module):
    """As anyone's network is: nothing of what OpenOOD's methods ask for. Counts the images that it is given."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.head = nn.Conv2d(3, 32, 5, 4), nn.Linear(128, 6)

    def feature(self, images):
        count_images(self, len(images))
        return nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1)

    def forward(self, images):
        return self.head(self.feature(images))


class OpenOODsWay(Plain):
    """The same network as OpenOOD's are made."""

    feature_size = 128

    @property
    def fc(self):
        return self.head

    def forward(self, images, return_feature=False):
        feature = self.feature(images)
        return (self.head(feature), feature) if return_feature else self.head(feature)

    def get_fc(self):
        return self.head.weight.detach().numpy(), self.head.bias.detach().numpy()

    def get_fc_layer(self):
        return self.head


@pytest.fixture(autouse=True)
def _by_itself():
    forget()
    yield
    forget()
    unregister()
    openood_adascale.register()


def places(checkout):
    """Of the digits: kind, and list and root of each set."""
    data = checkout / "data"

    def listed(name):
        return {
            "images": str(data / "benchmark_imglist/cifar10" / name),
            "root": str(data / "images_classic"),
        }

    return {
        "train": listed("train_cifar10.txt"),
        "val": listed("val_cifar10.txt"),
        "test": listed("test_cifar10.txt"),
        "ood_val": listed("val_tin.txt"),
        "near": {name: listed(f"test_{name}.txt") for name in ("cifar100", "tin")},
        "far": {name: listed(f"test_{name}.txt") for name in ("mnist", "texture")},
        "csid": {"cifar10c": listed("test_cifar10c.txt")},
    }


@pytest.fixture
def digits(checkout):
    transform, _ = transform_for("", None, None, TRANSFORM)

    def loader(of):
        files = find_images(of["images"], root=of["root"]).with_transform(transform)
        return DataLoader(files, batch_size=BATCH)

    found = places(checkout)
    near, far, csid = (
        {name: loader(of) for name, of in found.pop(split).items()} for split in ("near", "far", "csid")
    )
    return Benchmark(near=near, far=far, covariate_shift=csid, **{k: loader(of) for k, of in found.items()})


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
    root = checkout / "unsearched"
    (root / "postprocessors").mkdir(parents=True, exist_ok=True)
    text = (checkout / f"configs/postprocessors/{name}.yml").read_text()
    (root / f"postprocessors/{name}.yml").write_text(text.replace("APS_mode: True", "APS_mode: False"))
    return str(root)


@pytest.mark.parametrize("name", sorted({*NAMES} - NO_FIGURES))
def test_the_figures_are_openoods(name, digits, reference):
    torch.manual_seed(0)  # some draw
    want, evaluator = reference(name)
    assert want["AUROC"].between(1, 100).all()
    for network in (OpenOODsWay().eval(), Plain().eval()):
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
            assert method.get_hyperparam() == evaluator.postprocessor.get_hyperparam()
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


@pytest.mark.parametrize(
    ("name", "lacks", "told"),
    [
        ("knn", "train", "--train: None .* train images, which this method needs"),
        ("react", "val", "--val: None .* val images"),
        ("mds", "labels", "--train: labels: None .* class of each train image"),
        ("temp_scaling", "labels", "--val: labels: None"),
        ("mds_ensemble", "labels", "--train: labels: None"),
    ],
)
def test_what_lacks_is_named(name, lacks, told, digits):
    if lacks == "labels":
        for loader in (digits.train, digits.val):
            loader.dataset.labels = [-1] * len(loader.dataset)
    else:
        setattr(digits, lacks, None)
    with pytest.raises(SettingError, match=told):
        evaluate(foreign(name, Plain().eval(), False), digits, search=False, progress=False)


NETWORK = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 32, 5, 4), nn.Linear(128, 6)

    def forward(self, images):
        return self.head(nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1))

def network():
    torch.manual_seed(0)
    return Net()
"""


def test_the_command(checkout, tmp_path, digits):
    for name, loader in (("id", digits.test), ("train", digits.train), ("near", digits.near["tin"])):
        for number, (path, label) in enumerate(zip(loader.dataset.paths, loader.dataset.labels, strict=True)):
            target = tmp_path / name / (f"class {label}" if label >= 0 else "") / f"{number:04}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    (tmp_path / "net.py").write_text(NETWORK)

    def run(methods, *more, check=True):
        given = [
            "--network",
            tmp_path / "net.py:network",
            "--transform",
            TRANSFORM,
            "--id",
            tmp_path / "id",
            "--near",
        ]
        given += [f"n={tmp_path / 'near'}", "--out", tmp_path / "out", "--workers", "0", "--quiet"]
        return call("evaluate", *given, "--methods", methods, *more, check=check)

    done = run("ebo,openood:ebo,openood:mds", "--train", tmp_path / "train", "--labels", "folders")
    assert "left out" not in done.stdout
    tables = {path.stem: pd.read_csv(path, index_col=0) for path in (tmp_path / "out/ood").glob("*.csv")}
    assert set(tables) == {"ebo", "openood_ebo", "openood_mds"}
    pd.testing.assert_frame_equal(tables["openood_ebo"], tables["ebo"], atol=0.011)
    assert tables["openood_mds"]["AUROC"].between(1, 100).all()
    assert "MDS (OpenOOD)" in (tmp_path / "out/report/report.html").read_text()
    # By itself, and with methods that cannot be run here.
    shutil.rmtree(tmp_path / "out")
    done = run("openood:msp,openood:knn,openood:gmm,openood:mds", "--labels", "folders", check=False)
    assert done.returncode == 1
    assert "openood:knn: left out: --train: None is not allowed" in done.stdout
    assert "openood:mds: left out: --train: None is not allowed" in done.stdout
    assert "openood:gmm: left out: " in done.stdout
    assert [path.stem for path in (tmp_path / "out/ood").glob("*.csv")] == ["openood_msp"]
    assert pd.read_csv(tmp_path / "out/ood/openood_msp.csv")["ACC"].iloc[0] == tables["ebo"]["ACC"].iloc[0]
    done = run("openood:knn", check=False)
    assert done.returncode == 2
    assert "at least one that can be run here" in done.stderr


@pytest.mark.parametrize("name", ["nonsense", "adascale", "dropout2"])
def test_names_that_there_are_not(name):
    with pytest.raises(
        SettingError, match=f"--methods: 'openood:{name}' .*openood:all .msp, mls.*, knn.*vra$"
    ):
        foreign(name, Plain())


def test_without_a_yml_nothing_is_downloaded():
    from openood.evaluation_api.postprocessor import postprocessors

    assert "patchcore" in postprocessors
    with pytest.raises(SettingError, match=r"--methods: 'openood:patchcore' .* there is no .*patchcore\.yml"):
        foreign("patchcore", Plain())
