"""Tests of saving and loading detectors."""

from __future__ import annotations

import copy
import json
import os
import pickle
import resource
import signal
from pathlib import Path

import networks as nets
import numpy as np
import pytest
import torch
from detector_tester import DetectorTester
from hypothesis import given
from hypothesis import strategies as st
from networks import TinyNet, make_images
from safetensors import safe_open
from safetensors.torch import save_file

from openood_adascale import MSP, AdaSCALE, BFAct, OptFS, load_detector
from openood_adascale.detectors import serialization
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import DetectorFileError
from openood_adascale.features.files import write_tensors
from openood_adascale.features.fingerprint import first_difference, weights_fingerprint

FIT, IMAGES = make_images(20, 3), make_images(10, 4)
KEY = "openood_adascale_detector"


def contents(path):
    with safe_open(path, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()[KEY])


def rewrite(path, change):
    """Edit a file as one would who knows how: with the checksum of its content."""
    tensors, content = contents(path)
    del content["checksum"]
    change(tensors, content)
    write_tensors(path, KEY, content, tensors)


# Weights.


def test_same_weights_load_in_another_class(network, tmp_path):
    detector = AdaSCALE(network).fit([FIT])
    detector.save(tmp_path / "d")

    class Documented(TinyNet):
        """With a docstring, another method and a hook."""

        def forward(self, images):
            """Return the logits."""
            return super().forward(images)

        def count(self):
            return 5

    other = Documented().train()
    other.load_state_dict(network.state_dict())
    other.best_accuracy, other._trainer = 0.9, object()  # as Lightning
    other.register_forward_hook(lambda module, inputs, output: None)
    for same in (other, copy.deepcopy(network), nn_parallel(network), network):
        found = AdaSCALE.load(tmp_path / "d", same)
        assert torch.equal(found.score(IMAGES), detector.score(IMAGES))
    assert other.training


def nn_parallel(network):
    return torch.nn.DataParallel(copy.deepcopy(network).train())


@pytest.mark.parametrize("name", METHODS)
def test_first_different_tensor_is_named(network, tmp_path, name):
    detector = DetectorTester(name).fit(network, FIT)
    detector.save(tmp_path / "d")
    with torch.no_grad():
        network.features[3].bias.add_(1e-6)
        network.fc.bias.add_(1)
    for load in (type(detector).load, load_detector):
        with pytest.raises(
            DetectorFileError, match=r"/d: .* TinyNet: its tensor 'features\.3\.bias' has other values"
        ):
            load(tmp_path / "d", network)
        with pytest.raises(TypeError, match=r"network: str is not a torch\.nn\.Module"):
            load(tmp_path / "d", "resnet50")


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (lambda network: setattr(network.fc, "bias", None), "it has no tensor 'fc.bias'"),
        (lambda network: setattr(network, "more", torch.nn.Linear(1, 1)), "its tensor 'more.weight' is not in the saved"),
        (lambda network: network.features[1].running_var.add_(1), "its tensor 'features.1.running_var' has other"),
        (lambda network: network.register_buffer("hidden", torch.ones(1), persistent=False), "'hidden' is not in the"),
        (lambda network: network.double(), "'features.0.weight' has other values, or another shape or dtype"),
        (lambda network: setattr(network, "fc", torch.nn.Linear(64, 7)), "'fc.weight' has other values, or another shape"),
    ],
)  # fmt: skip
def test_different_tensor_is_named(network, tmp_path, change, difference):
    MSP(network).save(tmp_path / "d")
    change(network)
    with pytest.raises(DetectorFileError, match=difference):
        MSP.load(tmp_path / "d", network)


def test_fingerprint_depends_on_values_only():
    torch.manual_seed(0)
    weight = torch.randn(6, 4)
    kinds = {
        "whole": weight, "strided": weight.t().contiguous().t(), "view": torch.cat([weight, weight])[:6],
        "bfloat16": weight.bfloat16(), "sparse": weight.to_sparse(), "bool": weight > 0, "empty": weight[:0],
        "scalar": weight.sum(), "complex": weight.to(torch.complex64),
    }  # fmt: skip
    found = {}
    for name, tensor in kinds.items():
        network = torch.nn.Module()
        network.register_buffer("tensor", tensor)
        found[name] = weights_fingerprint(network)["tensor"]
    assert found["whole"] == found["strided"] == found["view"]
    assert len(set(found.values())) == len(kinds) - 2
    assert first_difference({"a": "1"}, {"a": "1"}) is None


@pytest.mark.parametrize("name", ["msp", "adascale", "optfs"])
def test_counter_is_not_part_of_the_fingerprint(tmp_path, name):
    torch.manual_seed(0)
    network = nets.Counting().eval()
    detector = DetectorTester(name).fit(network, FIT).fit_threshold([FIT])
    want = detector.score(IMAGES)
    detector.save(tmp_path / "d")
    network(IMAGES)
    found = load_detector(tmp_path / "d", network)
    assert torch.equal(found.score(IMAGES), want)
    found.save(tmp_path / "e")
    torch.manual_seed(0)
    assert torch.equal(load_detector(tmp_path / "e", nets.Counting().eval()).score(IMAGES), want)


# Content.


class Named(AdaSCALE):
    """A user's method, not registered, whose state is several tensors."""

    def fit_state(self, statistics, settings):
        plain = super().fit_state(statistics, settings)
        return {"a": plain, "b.c": plain[:3].to(torch.bfloat16), "empty": plain[:0]}

    def score_statistics(self, statistics, settings, state):
        return super().score_statistics(statistics, settings, state["a"])


def test_unregistered_method_loads_by_its_class(network, tmp_path):
    detector = Named(network).fit([FIT])
    detector.save(tmp_path / "d")
    found = Named.load(tmp_path / "d", network)
    assert torch.equal(found.score(IMAGES), detector.score(IMAGES))
    assert torch.equal(found.state["b.c"], detector.state["b.c"])
    assert found.state["b.c"].dtype == torch.bfloat16
    with pytest.raises(
        DetectorFileError, match=r"d: its method '.*:Named' is not registered; expected one of msp, ebo"
    ):
        load_detector(tmp_path / "d", network)
    with pytest.raises(DetectorFileError, match=r"it holds a detector of '.*:Named'; expected '.*:AdaSCALE'"):
        AdaSCALE.load(tmp_path / "d", network)
    detector.set_state({"a": 5})
    with pytest.raises(
        TypeError, match=r"state: {'a': 5} cannot be saved; expected None, a tensor, or a dict"
    ):
        detector.save(tmp_path / "d")


def test_notes_and_versions_are_kept(network, tmp_path):
    MSP(network).save(tmp_path / "d", {"classes": ["a", "b"]})
    assert serialization.read_detector(tmp_path / "d").notes == {"classes": ["a", "b"]}
    assert set(contents(tmp_path / "d")[1]["versions"]) == {"openood_adascale", "torch"}


def test_threshold_of_other_settings_is_not_saved(network, tmp_path):
    detector = AdaSCALE(network).fit([FIT])
    detector.settings = detector.settings.replace(variant="L")
    detector.save(tmp_path / "d")
    found = AdaSCALE.load(tmp_path / "d", network)
    assert found.validation_scores is None
    assert torch.equal(found.score(IMAGES), detector.score(IMAGES))


# Other, damaged and edited files.


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_other_file_is_rejected_and_not_executed(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "d"
    for content in (
        b"", b"abc", b"a detector, they say\n" * 9, pickle.dumps(Bomb()), (2**62).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"{}",
    ):  # fmt: skip
        place.write_bytes(content)
        for load in (AdaSCALE.load, load_detector):
            with pytest.raises(DetectorFileError, match=r"/d: .* expected a file written by detector\.save"):
                load(place, network)
    torch.save({"state": Bomb()}, place)
    with pytest.raises(DetectorFileError):
        load_detector(place, network)
    assert not (tmp_path / "executed").exists()
    for about in ("", "[", "[1]", "null", "5", '"x"'):
        save_file({"state": torch.ones(3)}, place, {KEY: about})
        with pytest.raises(DetectorFileError, match="/d: "):
            load_detector(place, network)
    os.mkfifo(tmp_path / "pipe")
    for name, reason in (
        ("none", "there is no such file"),
        (".", "it is not a file"),
        ("pipe", "it is not a file"),
    ):
        with pytest.raises(DetectorFileError, match=reason):
            AdaSCALE.load(tmp_path / name, network)


@pytest.mark.parametrize("version", [0, 1, 2, serialization.FORMAT + 1, str(serialization.FORMAT), None, [3]])
def test_other_format_version_is_rejected(network, tmp_path, version):
    MSP(network).save(tmp_path / "d")
    rewrite(tmp_path / "d", lambda tensors, content: content.update(format=version))
    with pytest.raises(DetectorFileError, match=r"d: it has format .* Fit the detector and save it again"):
        MSP.load(tmp_path / "d", network)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    network = TinyNet().eval()
    place = tmp_path_factory.mktemp("saved") / "d"
    detector = OptFS(network, bins=4).fit([FIT]).fit_threshold([FIT])
    detector.save(place)
    return network, place.read_bytes(), place.with_name("damaged"), detector


@given(data=st.data())
def test_damaged_file_is_rejected(saved, data):
    network, content, place, detector = saved
    damaged = bytearray(content)
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        damaged[at] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del damaged[at : data.draw(st.integers(at + 1, len(content)))]
    else:
        damaged[at:at] = data.draw(st.binary(min_size=1, max_size=9))
    place.write_bytes(damaged)
    try:
        found = OptFS.load(place, network)
    except DetectorFileError:
        return
    assert found.settings == detector.settings
    assert all(torch.equal(found.state[name], detector.state[name]) for name in detector.state)
    np.testing.assert_array_equal(found.validation_scores, detector.validation_scores)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t, c: c["settings"].update(k1=0), r"k1: 0 is not allowed; expected a number in \(0, 100\]"),
        (lambda t, c: c["settings"].update(variant=["A"]), "variant: "),
        (lambda t, c: c["settings"].update(percentile="[" * 50), "percentile: "),
        (lambda t, c: c["settings"].update(precision="!!python/object/apply:os.mkdir [x]"), "precision: "),
        (lambda t, c: c.update(more=1), "unexpected keyword argument 'more'"),
        (lambda t, c: c.update(weights={"fc.weight": 5}), "tensor"),
        (lambda t, c: c.update(method=["adascale"]), "method|detector of"),
        (lambda t, c: c.update(method="os:system"), "method|detector of"),
    ],
)  # fmt: skip
def test_edited_file_is_rejected(network, tmp_path, change, reason):
    place = tmp_path / "d"
    AdaSCALE(network).fit([FIT]).save(place)
    rewrite(place, change)
    for load in (AdaSCALE.load, load_detector):
        with pytest.raises(DetectorFileError, match=reason) as caught:
            load(place, network)
        assert str(caught.value).startswith(f"{place}: ")


def test_edit_without_new_checksum_is_rejected(network, tmp_path):
    AdaSCALE(network).fit([FIT]).save(tmp_path / "d", {"classes": ["a"]})
    tensors, content = contents(tmp_path / "d")
    settings = {**content["settings"], "variant": "L"}
    for edit in ({"settings": settings}, {"notes": {"classes": ["b"]}}):
        save_file(tensors, tmp_path / "d", {KEY: json.dumps(content | edit)})
        with pytest.raises(DetectorFileError, match="its content does not match its checksum"):
            AdaSCALE.load(tmp_path / "d", network)


# Writing.


def test_file_is_replaced_whole_or_not_at_all(network, tmp_path):
    detector = AdaSCALE(network).fit([FIT])
    for place in (tmp_path / "none" / "d", tmp_path, Path("/")):
        with pytest.raises(
            DetectorFileError, match=rf"{place.name}: it cannot be written: .* expected a file name"
        ):
            detector.save(place)
    detector.save(tmp_path / "d")
    before = (tmp_path / "d").read_bytes()
    limit, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # as a full disk
        with pytest.raises(DetectorFileError, match="d: it cannot be written: "):
            detector.save(tmp_path / "d")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "d").read_bytes() == before
    assert os.listdir(tmp_path) == ["d"]
    BFAct(network).fit([FIT]).save(tmp_path / "d")
    assert type(load_detector(tmp_path / "d", network)) is BFAct
