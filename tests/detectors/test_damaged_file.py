"""Files that are no detector's, another's, damaged or changed by hand."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import TinyNet

from openood_adascale import AdaSCALE
from openood_adascale.detectors import file
from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.errors import DetectorFileError


def contents(path):
    with safe_open(path, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        return tensors, json.loads(opened.metadata()["openood_adascale_detector"])


def rewrite(path, change):
    """As one would by hand who knows how: with the digest of what is written."""
    tensors, about = contents(path)
    del about["digest"]
    change(tensors, about)
    about["digest"] = file._digest(about, tensors)
    save_file(tensors, path, {"openood_adascale_detector": json.dumps(about)})


def test_other_methods_are_refused(network, id_images, tmp_path):
    OptFS(network).fit([id_images]).save(tmp_path / "d")
    with pytest.raises(
        DetectorFileError, match="d: it holds a detector of the method 'optfs'; expected 'bfact'"
    ):
        BFAct.load(tmp_path / "d", network)
    AdaSCALE(network, variant="L").fit([id_images]).save(tmp_path / "d")
    assert AdaSCALE.load(tmp_path / "d", network).settings.variant == "L"


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_foreign_files(network, id_images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / "d"
    kinds = {
        "empty": b"", "short": b"abc", "text": b"a detector, they say\n" * 9, "pickle": pickle.dumps(Bomb()),
        "header": (2**62).to_bytes(8, "little") + b"{}", "json": (2).to_bytes(8, "little") + b"{}",
    }  # fmt: skip
    for content in kinds.values():
        place.write_bytes(content)
        for read in (AdaSCALE.load, file.load):
            with pytest.raises(DetectorFileError, match=r"/d: .* expected a file that detector\.save"):
                read(place, network)
    torch.save({"a": Bomb()}, place)
    with pytest.raises(DetectorFileError):
        file.load(place, network)
    assert not (tmp_path / "executed").exists()
    for about in (None, {"format": "pt"}, {"openood_adascale_detector": "[1]"}):
        save_file({"state": torch.ones(3)}, place, about)
        with pytest.raises(DetectorFileError, match="of no detector"):
            file.load(place, network)
    for about in (
        "{",
        "[" * 100000,
        f'{{"format": {file.FORMAT}}}',
        f'{{"format": {file.FORMAT}, "digest": "\\ud800"}}',
    ):
        save_file({"state": torch.ones(3)}, place, {"openood_adascale_detector": about})
        with pytest.raises(DetectorFileError, match="damaged, changed by hand"):
            file.load(place, network)
    os.mkfifo(tmp_path / "pipe")
    for name, what in (("none", "there is no such file"), (".", "it is no file"), ("pipe", "it is no file")):
        with pytest.raises(DetectorFileError, match=what):
            AdaSCALE.load(tmp_path / name, network)


def test_another_version_is_refused(network, id_images, tmp_path):
    for version in (0, file.FORMAT - 1, file.FORMAT + 1, str(file.FORMAT), None, [file.FORMAT]):
        MSP(network).save(tmp_path / "d")
        rewrite(tmp_path / "d", lambda tensors, about, version=version: about.update(format=version))
        with pytest.raises(
            DetectorFileError, match=rf"d: it has the format .* of another version .* expected {file.FORMAT}"
        ):
            MSP.load(tmp_path / "d", network)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    network = TinyNet().eval()
    images = torch.randn(6, 3, 8, 8)
    place = tmp_path_factory.mktemp("saved") / "d"
    detector = OptFS(network, bins=4).fit([images]).calibrate([images])
    detector.save(place)
    return network, place.read_bytes(), place.with_name("damaged"), detector


def damaged_or_the_same(saved, content):
    network, _, place, detector = saved
    place.write_bytes(content)
    try:
        found = OptFS.load(place, network)
    except DetectorFileError:
        return
    assert found.settings == detector.settings
    assert all(torch.equal(found.state[name], detector.state[name]) for name in detector.state)
    np.testing.assert_array_equal(found.validation_scores, detector.validation_scores)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_goes_unnoticed(saved, data):
    content = bytearray(saved[1])
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    damaged_or_the_same(saved, bytes(content))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_cut_goes_unnoticed(saved, data):
    network, content, place, _ = saved
    place.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.raises(DetectorFileError, match="damaged: "):
        OptFS.load(place, network)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t, a: a["settings"].update(k1=0), r"SettingError: k1: 0 is not allowed; expected a number in \(0, 100\]"),
        (lambda t, a: a["settings"].update(k3=1), "AdaSCALE: k3: 1 is not allowed; expected one of: "),
        (lambda t, a: a["settings"].update(variant=["A"]), "variant: "),
        (lambda t, a: a["settings"].update(percentile="[" * 50), "percentile: "),
        (lambda t, a: a["settings"].update(precision="!!python/object/apply:os.mkdir [x]"), "precision: "),
        (lambda t, a: a["settings"].pop("epsilon"), "settings: epsilon missing; expected percentile|variant"),
        (lambda t, a: a.update(settings=None), "TypeError"),
        (lambda t, a: a.pop("settings"), "KeyError: 'settings'"),
        (lambda t, a: a.update(state=None), "state: None is not allowed; expected what AdaSCALE has learnt"),
        (lambda t, a: a.update(state="else"), "KeyError: 'else'"),
        (lambda t, a: a.update(state=[1]), "TypeError"),
        (lambda t, a: a.update(network="n"), "TypeError"),
        (lambda t, a: a["network"].update(volatile=[[]]), "TypeError"),
        (lambda t, a: t.update(validation_scores=torch.tensor([2.0, 1.0], dtype=torch.float64)), "expected finite"),
        (lambda t, a: t.update(validation_scores=torch.tensor([1.0, 2.0])), "expected finite float64"),
        (lambda t, a: t.update(validation_scores=torch.tensor([float("nan")], dtype=torch.float64)), "expected finite"),
        (lambda t, a: t.update(validation_scores=torch.zeros(0, dtype=torch.float64)), "one at least"),
        (lambda t, a: t.update(validation_scores=torch.zeros(2, dtype=torch.bfloat16)), "TypeError"),
        (lambda t, a: a.update(method=["adascale"]), "method"),
        (lambda t, a: a.update(method="os:system"), "method"),
    ],
)  # fmt: skip
def test_what_was_changed_by_hand(network, id_images, tmp_path, change, told):
    place = tmp_path / "d"
    AdaSCALE(network).fit([id_images]).save(place)
    rewrite(place, change)
    for read in (AdaSCALE.load, file.load):
        with pytest.raises(DetectorFileError, match=told) as caught:
            read(place, network)
        assert str(caught.value).startswith(f"{place}: ")
