"""A detector as a file: what comes back, for which network, and where it can be written."""

import copy
import json
import os
from pathlib import Path

import networks as tv
import numpy as np
import pytest
import quick_process
import torch
from safetensors import safe_open
from tiny import TinyNet, make_loader

from openood_adascale import AdaSCALE, Energy
from openood_adascale.detectors import file
from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.detectors.registry import METHODS
from openood_adascale.detectors.scale import SCALE
from openood_adascale.errors import DetectorFileError

OWN = {
    "ebo": {"precision": "bfloat16"}, "scale": {"percentile": 70.1}, "lts": {"percentile": 90}, "optfs": {"bins": 7},
    "bfact": {"percentile": 60, "order": 3.3}, "adascale": {"percentile": (60, 90), "num_samples": 20, "seed": 2**60},
}  # fmt: skip


def fitted(network, name, images, calibrated=True):
    method = METHODS[name]
    detector = method.detector(network, **{**method.defaults, **OWN.get(name, {})}).fit([images])
    return detector.calibrate(make_loader(images)) if calibrated else detector


def about(path):
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["openood_adascale_detector"])


@pytest.mark.parametrize("name", METHODS)
def test_what_comes_back_is_what_was_saved(network, id_images, ood_images, tmp_path, name):
    detector = fitted(network, name, id_images)
    first, second, third = (tmp_path / f"{number} é.safetensors" for number in range(3))
    detector.save(first)
    want = detector.predict(ood_images)
    found = type(detector).load(first, network)
    assert repr(found) == repr(detector)
    assert found.settings == detector.settings
    for one in (found, file.load(str(first), network)):
        assert type(one) is type(detector)
        assert all(torch.equal(a, b) for a, b in zip(one.predict(ood_images), want, strict=True))
        np.testing.assert_array_equal(one.validation_scores, detector.validation_scores)
        assert one.threshold(0.9) == detector.threshold(0.9)
        assert torch.equal(one.is_ood(ood_images), detector.is_ood(ood_images))
    found.save(second)
    type(detector).load(first, network).save(third)  # not having run
    assert first.read_bytes() == second.read_bytes() == third.read_bytes()
    assert about(first)["method"] == name
    assert sorted(tmp_path.iterdir()) == [first, second, third]


@pytest.mark.parametrize("name", METHODS)
def test_without_scores_of_validation_images(network, id_images, tmp_path, name):
    detector = fitted(network, name, id_images, calibrated=False)
    detector.validation = None
    detector.save(tmp_path / "d")
    found = file.load(tmp_path / "d", network)
    assert torch.equal(found.score(id_images), detector.score(id_images))
    with pytest.raises(RuntimeError, match=r"call calibrate\(loader\)"):
        found.threshold()


def test_scores_that_hold_no_more_are_not_saved(network, id_images, tmp_path):
    detector = AdaSCALE(network).fit([id_images])
    detector.settings = detector.settings.replace(variant="L")
    detector.save(tmp_path / "d")
    found = AdaSCALE.load(tmp_path / "d", network)
    assert found.validation_scores is None
    assert torch.equal(found.score(id_images), detector.score(id_images))
    assert about(tmp_path / "d")["method"] == "adascale_logit"


def test_another_process_reads_it(id_images, tmp_path):
    code = (
        "import sys, torch; sys.path.insert(0, 'tests'); from tiny import TinyNet; torch.manual_seed(0)\n"
        "from openood_adascale.detectors.file import load\n"
        "network, images = TinyNet().eval(), torch.load(sys.argv[2])\n"
        "detector = load(sys.argv[1], network)\n"
        "print(detector.score(images).tolist(), detector.threshold())"
    )
    torch.manual_seed(0)
    detector = AdaSCALE(TinyNet().eval()).fit([id_images])
    detector.save(tmp_path / "d")
    torch.save(id_images[:8], tmp_path / "images")
    told = quick_process.run(
        ["-c", code, tmp_path / "d", tmp_path / "images"], Path(__file__).parents[2], check=True
    )
    scores, _, threshold = told.stdout.rpartition(" ")
    assert json.loads(scores) == pytest.approx(detector.score(id_images[:8]).tolist(), rel=1e-6)
    assert float(threshold) == detector.threshold()


# For which network.


@pytest.mark.parametrize("name", METHODS)
def test_another_network_is_refused(network, id_images, tmp_path, name):
    detector = fitted(network, name, id_images)
    detector.save(tmp_path / "d")
    torch.manual_seed(5)
    for read in (type(detector).load, file.load):
        with pytest.raises(
            DetectorFileError, match=r"d: it was made for a network with other .* TinyNet; expected"
        ):
            read(tmp_path / "d", TinyNet().eval())
        with pytest.raises(TypeError, match=r"network: str is not a torch\.nn\.Module"):
            read(tmp_path / "d", "resnet50")
    with torch.no_grad():
        network.fc.bias.add_(1e-3)
    with pytest.raises(DetectorFileError, match="other layers or weights"):
        file.load(tmp_path / "d", network)


@pytest.mark.parametrize("name", ["adascale", "bfact", "optfs"])
@pytest.mark.parametrize("change", ["weights", "head", "hook", "network"])
def test_a_loaded_detector_notices_later_changes(network, id_images, tmp_path, name, change):
    fitted(network, name, id_images).save(tmp_path / "d")
    detector = file.load(tmp_path / "d", network)
    if change != "hook":
        detector.score(id_images)
    if change == "weights":
        with torch.no_grad():
            network.features[0].weight.mul_(1.01)
    elif change == "head":
        network.fc = torch.nn.Linear(64, 5)
    elif change == "hook":
        network.fc.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)
    else:
        detector.network = TinyNet().eval()
    asked = (detector.score, detector.is_ood, lambda images: detector.predict_loader([images]))
    for ask in (*asked, lambda images: detector.save(tmp_path / "e"), lambda images: detector.threshold()):
        with pytest.raises(RuntimeError, match="network: its layers or weights are not those"):
            ask(id_images)
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("name", METHODS)
def test_a_network_that_counts(id_images, tmp_path, name):
    torch.manual_seed(0)
    network = tv.Counting().eval()
    detector = fitted(network, name, id_images)
    want = detector.score(id_images)
    detector.save(tmp_path / "d")
    network(id_images)
    found = file.load(tmp_path / "d", network)
    assert torch.equal(found.score(id_images), want)
    network(id_images)
    assert found.threshold() == detector.threshold()
    found.save(tmp_path / "e")
    torch.manual_seed(0)
    fresh = file.load(tmp_path / "e", tv.Counting().eval())
    assert torch.equal(fresh.score(id_images), want)


@pytest.mark.parametrize("name", ["adascale", "bfact", "optfs"])
def test_a_counting_network_that_has_not_run_since(id_images, tmp_path, name):
    torch.manual_seed(0)
    network = tv.Counting().eval()
    detector = fitted(network, name, id_images)
    detector.network = copy.deepcopy(network)
    detector.save(tmp_path / "d")
    network(id_images)
    assert file.load(tmp_path / "d", network).threshold() == detector.threshold()


def test_the_same_network_wrapped(network, id_images, tmp_path):
    AdaSCALE(network).fit([id_images]).save(tmp_path / "d")
    found = AdaSCALE.load(tmp_path / "d", torch.nn.DataParallel(network.train()))
    assert found.threshold() == AdaSCALE.load(tmp_path / "d", network.eval()).threshold()


@pytest.mark.parametrize("name", ["adascale", "bfact", "optfs"])
def test_other_settings_of_a_loaded_detector(network, id_images, ood_images, tmp_path, name):
    fitted(network, name, id_images).save(tmp_path / "d")
    detector = file.load(tmp_path / "d", network)
    judge = {"adascale": {"variant": "L"}, "bfact": {"order": 9}, "optfs": {"score": "energy"}}[name]
    learn = {"adascale": {"lmbda": 3}, "bfact": {"percentile": 50}, "optfs": {"bins": 3}}[name]
    detector.settings = detector.settings.replace(**judge)
    detector.score(id_images)
    detector.settings = detector.settings.replace(**learn)
    with pytest.raises(RuntimeError, match=rf"settings: {next(iter(learn))} is .* call fit\(loader\)"):
        detector.score(id_images)
    detector.fit([id_images]).score(id_images)
    searched = file.load(tmp_path / "d", network)
    if name == "adascale":
        searched.search([id_images], [ood_images], {"lmbda_list": [1, 5]})
    else:
        with pytest.raises(ValueError, match="learn_loader: None"):
            searched.search(
                [id_images], [ood_images], {"percentile_list": [50 if name == "bfact" else [1, 99]]}
            )


# What is saved.


@pytest.mark.parametrize("method", [AdaSCALE, BFAct, OptFS])
def test_nothing_to_save(network, tmp_path, method):
    with pytest.raises(RuntimeError, match="is not fitted"):
        method(network).save(tmp_path / "d")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", [MSP, Energy, SCALE, LTS])
def test_what_learns_nothing_is_saved_as_it_is(network, id_images, tmp_path, method):
    method(network).save(tmp_path / "d")
    assert torch.equal(
        method.load(tmp_path / "d", network).score(id_images), method(network).score(id_images)
    )


def test_where_it_cannot_be_written(network, id_images, tmp_path, monkeypatch):
    detector = AdaSCALE(network).fit([id_images])
    for place in (tmp_path / "none" / "d", tmp_path, Path("/")):
        with pytest.raises(
            DetectorFileError, match=rf"{place.name}: it cannot be written: .* expected the name"
        ):
            detector.save(place)
    detector.save(tmp_path / "d")
    before = (tmp_path / "d").read_bytes()
    os.link(tmp_path / "d", tmp_path / "read")  # as one that reads it just now
    AdaSCALE(network).fit([id_images[:9]]).save(tmp_path / "d")
    assert (tmp_path / "read").read_bytes() == before
    os.replace(tmp_path / "read", tmp_path / "d")

    def full(path, content):
        with open(path, "wb") as opened:
            opened.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DetectorFileError, match="No space left on device"):
        detector.save(tmp_path / "d")
    assert (tmp_path / "d").read_bytes() == before
    assert os.listdir(tmp_path) == ["d"]


class Nested(AdaSCALE):
    """Somebody's own, in no registry, that learns more than a tensor."""

    def learn(self, evidence, settings):
        plain = super().learn(evidence, settings)
        return {"a": {"b": plain, "none": None}, "a.b": plain[:3].to(torch.bfloat16), "empty": plain[:0]}

    def judge(self, evidence, settings, state):
        return super().judge(evidence, settings, state["a"]["b"])


def test_a_class_that_is_not_registered(network, id_images, tmp_path):
    detector = Nested(network).fit([id_images])
    detector.save(tmp_path / "d")
    found = Nested.load(tmp_path / "d", network)
    assert torch.equal(found.score(id_images), detector.score(id_images))
    assert found.state["a"]["none"] is None
    assert torch.equal(found.state["a.b"], detector.state["a.b"])
    assert found.state["a.b"].dtype == torch.bfloat16
    with pytest.raises(
        DetectorFileError, match=r"d: its method '.*:Nested' is not registered; expected one of msp, ebo"
    ):
        file.load(tmp_path / "d", network)
    with pytest.raises(DetectorFileError, match="expected 'adascale', of AdaSCALE"):
        AdaSCALE.load(tmp_path / "d", network)
    AdaSCALE(network).fit([id_images]).save(tmp_path / "d")
    with pytest.raises(DetectorFileError, match=r"of the method 'adascale'; expected '.*:Nested'"):
        Nested.load(tmp_path / "d", network)
    detector.state = {"a": 5}
    with pytest.raises(TypeError, match=r"state\.a: 5 cannot be saved; expected tensors"):
        detector.save(tmp_path / "d")
