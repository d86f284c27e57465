"""AdaSCALE in OpenOOD's Evaluator: the same as OpenOOD's own, one pass per search, pickles, networks."""

from __future__ import annotations

import contextlib
import io
import pickle
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import reference
import torch
import yaml

PAIRS = [[60, 70], [80, 85], [65, 95]]
ID_VAL_AND_OOD_VAL = (72, 40)  # images of conftest's benchmark


def write_yml(folder: Path, name: str, packaged: Path, **changes) -> Path:
    """A yml like ``packaged`` in a config root of its own; ``sweep=`` replaces its sweep, the rest its settings."""
    config = yaml.safe_load(packaged.read_text())["postprocessor"]
    for key in ("APS_mode", "postprocessor_sweep"):
        if key in changes:
            config[key] = changes.pop(key)
    config["postprocessor_args"] = {**config["postprocessor_args"], **changes}
    path = folder / "postprocessors" / f"{name}.yml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"postprocessor": {**config, "name": name}}, sort_keys=False))
    return path


@pytest.fixture
def packaged() -> Path:
    from openood_adascale.plugin import configs_root

    return configs_root() / "postprocessors"


class SmallNet(torch.nn.Module):
    """Fast, with what OpenOOD's wrappers expect; counts the images it is given."""

    feature_size = 128

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(3, 32, 5, 4)
            self.fc = torch.nn.Linear(128, 10)
        self.images = 0

    def forward(self, images, return_feature=False):
        self.images += len(images)
        feature = torch.nn.functional.adaptive_avg_pool2d(self.conv(images).relu(), 2).flatten(1)
        logits = self.fc(feature)
        return (logits, feature) if return_feature else logits

    def get_fc_layer(self):
        return self.fc


@pytest.fixture
def small_net() -> SmallNet:
    return SmallNet().eval()


@pytest.fixture
def small_evaluator(evaluator_kwargs, small_net):
    """As the fixture make_evaluator, of the small network if not told otherwise."""

    def make(postprocessor_name=None, net=None, **kwargs):
        from openood.evaluation_api import Evaluator

        return Evaluator(
            net or small_net, postprocessor_name=postprocessor_name, **{**evaluator_kwargs, **kwargs}
        )

    return make


def aurocs(printed: str) -> dict[str, float]:
    """What a search printed, by the candidate's percentiles."""
    found = re.findall(r"Hyperparam: \[(\[.*?\]).*\], auroc: ([\d.]+)", printed)
    return {pair: float(value) for pair, value in found}


@pytest.mark.parametrize(
    ("ours", "openoods", "pairs"),
    [("adascale", "adascale_a", PAIRS), ("adascale_logit", "adascale_l", PAIRS[1:2])],
)
def test_equals_openoods_own(make_evaluator, checkout, tmp_path, packaged, ours, openoods, pairs):
    sweep = {"percentile_list": pairs}
    full = {**sweep, "k1_list": [5], "k2_list": [1], "lmbda_list": [10], "o_list": [0.05]}
    write_yml(
        tmp_path, openoods, checkout / "configs/postprocessors" / f"{openoods}.yml", postprocessor_sweep=full
    )
    write_yml(tmp_path, ours, packaged / f"{ours}.yml", postprocessor_sweep=sweep, num_samples=None)
    evaluators, printed = {}, {}
    for name in (openoods, ours):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            evaluators[name] = make_evaluator(name, config_root=str(tmp_path))
        printed[name] = out.getvalue()
    theirs, mine = evaluators[openoods], evaluators[ours]

    found = {name: aurocs(text) for name, text in printed.items()}
    assert list(found[ours]) == list(found[openoods]) == [str(pair) for pair in pairs]
    for pair in found[ours]:
        assert found[ours][pair] == pytest.approx(found[openoods][pair], abs=5e-4)
    chosen = [int(p) for p in mine.postprocessor.get_hyperparam()[0]]
    assert found[openoods][str(chosen)] == pytest.approx(max(found[openoods].values()), abs=5e-4)

    theirs.postprocessor.set_hyperparam([PAIRS[1], 5, 1, 10, 0.05])
    mine.postprocessor.set_hyperparam([PAIRS[1]])
    close = []
    known, ood = mine.dataloader_dict["id"], mine.dataloader_dict["ood"]
    for loader in (known["val"], known["test"], ood["near"]["tin"], ood["far"]["texture"]):
        with contextlib.redirect_stdout(io.StringIO()):
            want, got = (e.postprocessor.inference(e.net, loader, progress=False) for e in (theirs, mine))
        close.append(np.isclose(got[1], want[1], rtol=1e-3, atol=0))
        np.testing.assert_array_equal(got[0], want[0])
        np.testing.assert_array_equal(got[2], want[2])
    # A float32 activation at a rank or rounding boundary can go either way between two correct programs.
    assert np.concatenate(close).mean() >= 0.99


@pytest.mark.parametrize("variant", ["A", "L"])
def test_scores_on_real_activations_equal_the_reference(digits_net, evaluator_kwargs, variant):
    from openood.evaluation_api.datasets import get_id_ood_dataloader
    from openood.evaluation_api.preprocessor import get_default_preprocessor

    from openood_adascale import AdaSCALE
    from openood_adascale.encode import Perturbation, encode
    from openood_adascale.models import Classifier

    loaders = get_id_ood_dataloader(
        "cifar10", evaluator_kwargs["data_root"], get_default_preprocessor("cifar10"), batch_size=100
    )
    sets = (loaders["id"]["val"], loaders["ood"]["near"]["tin"])
    val, ood = (torch.cat([batch["data"] for batch in loader]) for loader in sets)
    net, perturbation = digits_net(), Perturbation("trivial", 0.05, 0.5)
    detector = AdaSCALE(net, variant=variant, percentile=(60, 95)).fit([val])
    arrays = []
    for images in (val, ood):
        encoded = encode(Classifier(net, images), images, [perturbation])
        arrays += [encoded.activation.numpy(), encoded.perturbed[perturbation].numpy()]
    head = (net.fc.weight.detach().numpy(), net.fc.bias.detach().numpy())
    want, _, pred = reference.scores(*arrays, *head, variant=variant, percentile_pair=(60, 95))
    np.testing.assert_allclose(detector.score(ood).numpy(), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(detector.predict(ood)[0].numpy(), pred)


def test_search_is_one_pass_over_each_validation_loader(small_evaluator, small_net, tmp_path, packaged):
    images = sum(ID_VAL_AND_OOD_VAL)
    sweep = {"percentile_list": PAIRS, "k2_list": [5, 50], "lmbda_list": [1, 10]}
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    evaluator = small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 2 * images + 4  # two of the first images find the head
    assert evaluator.postprocessor.hyperparam_search_done
    assert not evaluator.postprocessor._kept
    small_net.images = 0
    write_yml(
        tmp_path,
        "adascale",
        packaged / "adascale.yml",
        postprocessor_sweep={**sweep, "o_list": [0.01, 0.05, 0.1]},
    )
    small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 4 * images + 4


def test_without_search_the_state_is_valid_after_setup(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", APS_mode=False, percentile=[70, 90])
    evaluator = small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images <= 2 * ID_VAL_AND_OOD_VAL[0] + 4
    postprocessor = evaluator.postprocessor
    assert postprocessor.settings.percentile == (70, 90)
    images = torch.cat([batch["data"] for batch in evaluator.dataloader_dict["id"]["test"]])
    pred, conf = postprocessor.postprocess(evaluator.net, images)
    whole = postprocessor.inference(evaluator.net, evaluator.dataloader_dict["id"]["test"], progress=False)
    np.testing.assert_array_equal(pred.numpy(), whole[0])
    np.testing.assert_allclose(conf.numpy(), whole[1], rtol=1e-3)


def test_an_instance_passed_in(small_evaluator):
    from openood_adascale.postprocessor import AdaSCALELogitPostprocessor, AdaSCALEPostprocessor

    plain = AdaSCALEPostprocessor(percentile=(70, 85))
    assert small_evaluator(postprocessor=plain).postprocessor.get_hyperparam()[1] == [70, 85]
    searching = AdaSCALELogitPostprocessor(sweep={"percentile_list": [[60, 70], [80, 85]]})
    evaluator = small_evaluator(postprocessor=searching)
    assert searching.settings.variant == "L"
    assert searching.hyperparam_search_done
    # passed on to another evaluator of the same network, it is not searched anew; of another, it is
    again = small_evaluator(net=evaluator.net, postprocessor=searching)
    assert again.postprocessor.hyperparam_search_done


def test_metrics_equal_those_of_evaluation(small_evaluator):
    from openood_adascale.evaluation import Benchmark, evaluate

    for name in ("msp", "adascale"):
        evaluator = small_evaluator(name)
        table = evaluator.eval_ood(fsood=False, progress=False)
        full = evaluator.eval_ood(fsood=True, progress=False)
        other = small_evaluator(name)
        benchmark = Benchmark.from_openood(other.dataloader_dict)
        mine = evaluate(other.postprocessor, benchmark, other.net, progress=False)
        np.testing.assert_allclose(mine.table.to_numpy(), table.to_numpy().astype(float), atol=1e-6)
        assert list(mine.table.index) == list(table.index)
        assert list(mine.table.columns) == list(table.columns)
        spectrum = evaluate(other.postprocessor, benchmark, other.net, full_spectrum=True, progress=False)
        np.testing.assert_allclose(spectrum.table.to_numpy(), full.to_numpy().astype(float), atol=1e-6)


def test_evaluation_searches_openoods_own_postprocessors(small_evaluator, tmp_path, checkout):
    """`evaluate` with an OpenOOD postprocessor that has not been set up gives what the Evaluator gives."""
    from openood.evaluation_api.postprocessor import get_postprocessor

    from openood_adascale.evaluation import Benchmark, evaluate

    sweep = {"percentile_list": [65, 85]}
    write_yml(tmp_path, "scale", checkout / "configs/postprocessors/scale.yml", postprocessor_sweep=sweep)
    evaluator = small_evaluator("scale", config_root=str(tmp_path))
    table = evaluator.eval_ood(progress=False)
    fresh = get_postprocessor(str(tmp_path), "scale", "cifar10")
    benchmark = Benchmark.from_openood(evaluator.dataloader_dict)
    mine = evaluate(fresh, benchmark, evaluator.net, progress=False)
    np.testing.assert_allclose(mine.table.to_numpy(), table.to_numpy().astype(float), atol=1e-6)
    assert len(mine.search) == 2


def test_a_second_search_of_one_instance_is_one_pass_again(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"percentile_list": PAIRS})
    evaluator = small_evaluator("adascale", config_root=str(tmp_path))
    first = evaluator.postprocessor.get_hyperparam()
    small_net.images = 0
    evaluator.hyperparam_search()
    assert small_net.images <= 2 * sum(ID_VAL_AND_OOD_VAL)
    assert evaluator.postprocessor.get_hyperparam() == first


def test_candidates_after_a_matching_pickle(small_evaluator, small_net, tmp_path, packaged):
    """main.py searches whatever `hyperparam_search_done` says."""
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"k2_list": [5, 50]})
    first = small_evaluator("adascale", config_root=str(tmp_path))
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    second = small_evaluator(postprocessor=restored, config_root=str(tmp_path))
    second.hyperparam_search()
    assert restored.settings == first.postprocessor.settings
    torch.testing.assert_close(restored.state, first.postprocessor.state)


def test_another_network_in_between_does_not_reach_the_state(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep={"k2_list": [5, 50]})
    postprocessor = small_evaluator("adascale", config_root=str(tmp_path)).postprocessor
    postprocessor.set_hyperparam([50])
    want = postprocessor.state
    postprocessor.get_hyperparam()
    postprocessor.postprocess(SmallNet(3).eval(), torch.randn(4, 3, 32, 32))
    postprocessor.set_hyperparam([50])
    torch.testing.assert_close(postprocessor.state, want)


def test_other_images_or_settings_make_a_live_instance_learn_anew(small_evaluator, small_net):
    from openood_adascale.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor()
    first = small_evaluator(postprocessor=postprocessor)
    small_net.images = 0
    small_evaluator(postprocessor=postprocessor)
    assert small_net.images == 0
    state = postprocessor.state
    postprocessor.settings = postprocessor.settings.replace(k2=50)
    small_evaluator(postprocessor=postprocessor)
    assert postprocessor.settings.k2 == 50
    assert not torch.equal(postprocessor.state, state)
    state, transform = postprocessor.state, first.preprocessor.transform
    other = type(first.preprocessor).__new__(type(first.preprocessor))
    other.transform = type(transform)(transform.transforms[:-1])  # not normalised
    small_evaluator(postprocessor=postprocessor, preprocessor=other)
    assert not torch.equal(postprocessor.state, state)


def test_precision_from_the_environment(small_evaluator, monkeypatch):
    monkeypatch.setenv("OPENOOD_ADASCALE_PRECISION", "bfloat16")
    assert small_evaluator("lts").postprocessor.settings.precision == "bfloat16"
    monkeypatch.setenv("OPENOOD_ADASCALE_PRECISION", "bf16")
    with pytest.raises(ValueError, match="precision: 'bf16'"):
        small_evaluator("lts")


# Pickles.


def test_pickle_holds_numbers_only(small_evaluator, tmp_path):
    from openood_adascale.postprocessor import AdaSCALEPostprocessor

    evaluator = small_evaluator("adascale")
    postprocessor = evaluator.postprocessor
    postprocessor.state = torch.rand(5000, dtype=torch.float64)
    blob = pickle.dumps(postprocessor, pickle.HIGHEST_PROTOCOL)
    assert len(blob) < 100_000
    restored = pickle.loads(blob)
    assert isinstance(restored, AdaSCALEPostprocessor)
    assert torch.equal(restored.state, postprocessor.state)
    assert restored.settings == postprocessor.settings
    assert restored.hyperparam_search_done
    assert restored.APS_mode
    assert not [v for v in vars(restored).values() if isinstance(v, torch.nn.Module)]


def test_the_search_is_kept_for_reports(small_evaluator, tmp_path, packaged, capfd):
    from openood_adascale.scores import load_search

    sweep = {"percentile_list": PAIRS, "k2_list": [5, 50]}
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    postprocessor = small_evaluator("adascale", config_root=str(tmp_path)).postprocessor
    printed = re.findall(r"auroc: ([\d.]+)", capfd.readouterr().out)
    restored = through_file(postprocessor, tmp_path / "adascale.pkl")
    table = load_search(tmp_path / "adascale.pkl")
    assert set(table) == {"p_min", "p_max", "k2", "auroc"}
    np.testing.assert_allclose(table["auroc"], [100 * float(value) for value in printed], atol=1e-4)
    pd.testing.assert_frame_equal(load_search(through_again(restored, tmp_path / "again.pkl")), table)


def through_again(postprocessor, path: Path) -> Path:
    through_file(postprocessor, path)
    return path


def through_file(postprocessor, path: Path):
    """Pickled and loaded as eval_ood.py does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as f:
        pickle.dump(postprocessor, f, pickle.HIGHEST_PROTOCOL)
    with open(path, "rb") as f:
        return pickle.load(f)


def test_matching_pickle_needs_no_pass(small_evaluator, small_net, tmp_path, capfd):
    first = small_evaluator("adascale", net=small_net)
    settings, state = first.postprocessor.settings, first.postprocessor.state
    restored = through_file(first.postprocessor, tmp_path / "adascale.pkl")
    small_net.images = 0
    capfd.readouterr()
    second = small_evaluator("adascale", net=small_net, postprocessor=restored)
    assert small_net.images == 0
    assert second.postprocessor.settings == settings
    assert torch.equal(second.postprocessor.state, state)
    assert "out of date" not in capfd.readouterr().err


@pytest.mark.parametrize("change", ["setting", "sweep", "network", "user yml appears"])
def test_stale_pickle_is_said_and_made_anew(small_evaluator, tmp_path, packaged, capfd, change):
    root = tmp_path / "configs"
    net = SmallNet(0).eval()
    sweep = {"percentile_list": PAIRS[:2]}
    if change == "user yml appears":
        root.mkdir()
    else:
        write_yml(root, "adascale", packaged / "adascale.yml", postprocessor_sweep=sweep)
    restored = through_file(
        small_evaluator("adascale", net=net, config_root=str(root)).postprocessor,
        tmp_path / "s0/postprocessors/adascale.pkl",
    )
    if change == "network":
        net = SmallNet(1).eval()
    else:
        new = (
            {"postprocessor_sweep": {"percentile_list": PAIRS[1:]}}
            if change == "sweep"
            else {"postprocessor_sweep": sweep}
        )
        write_yml(root, "adascale", packaged / "adascale.yml", k2=50, **new)
    capfd.readouterr()
    evaluator = small_evaluator(net=net, postprocessor=restored, config_root=str(root))
    printed = capfd.readouterr()
    assert str(tmp_path / "s0/postprocessors/adascale.pkl") in printed.err
    assert "out of date" in printed.err
    assert "Starting automatic parameter search" in printed.out
    fresh = small_evaluator("adascale", net=net, config_root=str(root)).postprocessor
    assert evaluator.postprocessor.settings == fresh.settings
    torch.testing.assert_close(evaluator.postprocessor.state, fresh.state)


def test_pickle_of_another_version(small_evaluator, tmp_path):
    from openood_adascale.postprocessor import AdaSCALEPostprocessor

    postprocessor = AdaSCALEPostprocessor()
    stored = postprocessor.__getstate__()
    with pytest.raises(RuntimeError, match="format 99"):
        AdaSCALEPostprocessor.__new__(AdaSCALEPostprocessor).__setstate__({**stored, "format": 99})
    foreign = AdaSCALEPostprocessor.__new__(AdaSCALEPostprocessor)
    with pytest.raises(RuntimeError, match="format None"):
        foreign.__setstate__({"net": 1})


# Settings as OpenOOD gives them.


def test_bad_settings_are_named_before_any_work(small_evaluator, small_net, tmp_path, packaged):
    from openood_adascale.settings import SettingError

    for change, message in [
        ({"k1": 0}, "k1: 0"), ({"k7": 1}, "k7"), ({"percentile": [85, 80]}, "percentile"),
        ({"postprocessor_sweep": None}, "postprocessor_sweep"), ({"postprocessor_sweep": {"k1_list": []}}, "k1_list"),
        ({"postprocessor_sweep": {"k1_list": [1, 500]}}, "500"), ({"APS_mode": "yes"}, "APS_mode"),
        ({"APS_mode": False, "postprocessor_sweep": {"k9_list": [1]}}, "k9_list"),
    ]:  # fmt: skip
        write_yml(tmp_path, "adascale", packaged / "adascale.yml", **change)
        with pytest.raises(SettingError, match=message):
            small_evaluator("adascale", net=small_net, config_root=str(tmp_path))
    assert small_net.images == 0


def test_openoods_naming_draws_a_warning(tmp_path, checkout, small_evaluator):
    write_yml(tmp_path, "adascale", checkout / "configs/postprocessors/adascale_a.yml", APS_mode=False)
    with pytest.warns(UserWarning, match="the other way round") as caught:
        small_evaluator("adascale", config_root=str(tmp_path))
    assert len([w for w in caught if "the other way round" in str(w.message)]) == 1


def test_misspelt_sections_and_calls_out_of_order(small_net):
    from openood_adascale.postprocessor import AdaSCALEPostprocessor
    from openood_adascale.settings import SettingError

    with pytest.raises(SettingError, match="postprocessor: postprocessor_arg: "):
        AdaSCALEPostprocessor({"postprocessor": {"postprocessor_arg": {"k1": 50}}})
    with pytest.raises(RuntimeError, match="call setup"):
        AdaSCALEPostprocessor().postprocess(small_net, torch.randn(4, 3, 32, 32))
    searching = AdaSCALEPostprocessor()
    searching.APS_mode = True
    with pytest.raises(SettingError, match="postprocessor_sweep"):
        searching.setup(small_net, {"val": []}, {})
    with pytest.warns(UserWarning, match="the other way round"):
        AdaSCALEPostprocessor(sweep={"k1_list": [1, 5], "k2_list": [1]})


# Networks.


def openood_networks() -> dict:
    import openood.networks as n
    from openood.networks.adascale_net import AdaScaleANet
    from openood.networks.ascood_net import ASCOODNet
    from openood.networks.ash_net import ASHNet
    from openood.networks.bit import KNOWN_MODELS
    from openood.networks.conf_branch_net import ConfBranchNet
    from openood.networks.csi_net import CSINet
    from openood.networks.lenet import LeNet
    from openood.networks.react_net import ReactNet
    from openood.networks.rot_net import RotNet
    from openood.networks.scale_net import ScaleNet
    from openood.networks.t2fnorm_net import T2FNormNet
    from openood.networks.udg_net import UDGNet

    def small():
        return n.ResNet18_32x32(num_classes=10)

    return {
        "ResNet18_32x32": (small, 32), "ResNet18_224x224": (lambda: n.ResNet18_224x224(num_classes=10), 64),
        "ResNet50": (n.ResNet50, 64), "RegNet": (n.RegNet_Y_16GF, 64), "ViT": (n.ViT_B_16, 224), "Swin": (n.Swin_T, 64),
        "WideResNet": (lambda: n.WideResNet(10, 10, 2), 32), "DenseNet": (lambda: n.DenseNet3(10, 10), 32),
        "LeNet": (lambda: LeNet(10), 28), "BiT": (lambda: KNOWN_MODELS["BiT-S-R50x1"](head_size=10, zero_head=False), 64),
        "ASCOODNet": (lambda: ASCOODNet(small()), 32), "ConfBranchNet": (lambda: ConfBranchNet(small(), 10), 32),
        "RotNet": (lambda: RotNet(small(), 10), 32), "T2FNormNet": (lambda: T2FNormNet(small(), 10), 32),
        "UDGNet": (lambda: UDGNet(small(), 10, 20), 32), "CSINet": (lambda: CSINet(small(), 512, num_classes=10), 32),
        **{w.__name__: (lambda w=w: w(small()), 32) for w in (ASHNet, ReactNet, ScaleNet, AdaScaleANet)},
        "wrapped RegNet": (lambda: ScaleNet(n.RegNet_Y_16GF()), 64),
        "DataParallel": (lambda: torch.nn.DataParallel(small()), 32),
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "ResNet18_32x32", "ResNet18_224x224", "ResNet50", "RegNet", "ViT", "Swin", "WideResNet", "DenseNet", "LeNet", "BiT",
    "ASCOODNet", "ConfBranchNet", "RotNet", "T2FNormNet", "UDGNet", "CSINet", "ASHNet", "ReactNet", "ScaleNet",
    "AdaScaleANet", "wrapped RegNet", "DataParallel",
])  # fmt: skip
def test_every_classifier_of_openood(name):
    from openood_adascale.postprocessor import AdaSCALEPostprocessor

    make, side = openood_networks()[name]
    torch.manual_seed(0)
    net = make().eval()
    loader = [
        {"data": torch.randn(2, 3, side, side), "label": torch.zeros(2, dtype=torch.long)} for _ in range(2)
    ]
    postprocessor = AdaSCALEPostprocessor(num_samples=3)
    postprocessor.setup(net, {"val": loader}, {})
    pred, conf, label = postprocessor.inference(net, loader, progress=False)
    assert pred.shape == conf.shape == label.shape == (4,)
    assert np.isfinite(conf).all()


def test_networks_that_are_no_linear_classifiers_are_refused():
    from openood.networks import ResNet18_32x32
    from openood.networks.cider_net import CIDERNet
    from openood.networks.godin_net import GodinNet

    from openood_adascale.postprocessor import AdaSCALEPostprocessor

    loader = [{"data": torch.randn(4, 3, 32, 32), "label": torch.zeros(4, dtype=torch.long)}]
    for net in (GodinNet(ResNet18_32x32(), 512, 10), CIDERNet(ResNet18_32x32(), "mlp", 128, 10)):
        with pytest.raises((ValueError, TypeError), match=f"network: {type(net).__name__}"):
            AdaSCALEPostprocessor().setup(net.eval(), {"val": loader}, {})
