"""Files of weights that are broken, hold more than weights, or are meant to do harm: refused, and never executed."""

import argparse
import datetime
import os
import pathlib
import pickle
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from openood_adascale.errors import SettingError
from openood_adascale.models.loading import load_network
from openood_adascale.models.weights import ENTRIES, PREFIXES, load_weights, read_state_dict, renamed_to_fit

timm = pytest.importorskip("timm")


def network():
    return timm.create_model("test_resnet", num_classes=3)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "within", "tar", "tar like zip"])
def test_reading_weights_executes_nothing(tmp_path, how, monkeypatch):
    folder = tmp_path / "made"
    monkeypatch.setenv("EVIL_FOLDER", str(folder))
    path = tmp_path / "x.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif how.startswith("tar"):
        (tmp_path / "storages").write_bytes(pickle.dumps(Evil()))
        with tarfile.open(path, "w") as archive:
            if how == "tar like zip":
                archive.add(tmp_path / "storages", "PK")
            archive.add(tmp_path / "storages", "storages")
    else:
        state = {"state_dict": {"a": torch.ones(1)}, "args": Evil()} if how == "within" else Evil()
        torch.save(state, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(SettingError, match=r"weights: '.*x\.pth'") as caught:
        load_network("timm:test_resnet", path)
    assert not folder.exists()
    expected = "a tar archive" if "tar" in how else "file of torch.save" if how == "pickle" else "posix.mkdir"
    assert expected in str(caught.value)
    assert "`weights_only`" not in str(caught.value)  # torch's advice to execute it


class Config:
    pass


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_file_with_more_than_weights_is_refused(tmp_path):
    path = tmp_path / "x.pth"
    for content, match in [
        (network(), "class timm"),
        ({"state_dict": {"a": torch.ones(1)}, "args": Config()}, "an object of the class .*Config"),
        ({"epoch": 3, "best": 0.5}, "it holds epoch, best"),
        ({"state_dict": {}}, "it holds state_dict"),
        ({}, "it holds nothing"),
        ([torch.ones(1)], "it holds list"),
        (torch.ones(1), "it holds Tensor"),
        ({"model": {"a": torch.ones(1), "b": "text"}}, "it holds model"),
    ]:
        torch.save(content, path)
        with pytest.raises(SettingError, match=match):
            load_network("timm:test_resnet", path)
    script = torch.jit.script(nn.Linear(2, 2))
    script.save(str(path))
    with pytest.raises(SettingError, match="a TorchScript program"):
        load_network("timm:test_resnet", path)


@pytest.mark.parametrize("end", [".pth", ".safetensors"])
def test_broken_file_is_named(tmp_path, end):
    good = tmp_path / f"x{end}"
    (save_file if end == ".safetensors" else torch.save)(network().state_dict(), good)
    whole = good.read_bytes()
    other = tmp_path / f"x{'.pth' if end == '.safetensors' else '.ckpt'}"  # safetensors may have another name
    other.write_bytes(whole)
    assert load_network("timm:test_resnet", other).network.num_classes == 3
    path = tmp_path / f"broken{end}"
    for content in (b"", b"abc" * 9, whole[:100], whole[:-500], b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=r"weights: '.*broken"):
            load_network("timm:test_resnet", path)
    for missing in (tmp_path / f"none{end}", tmp_path):
        with pytest.raises(SettingError, match="expected a file"):
            load_network("timm:test_resnet", missing)


# Checkpoints as training scripts write them.


def layers(**changed):
    torch.manual_seed(0)
    return nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "fc": nn.Linear(4, 2), **changed})


STATE = layers().state_dict()
OTHER = {name: torch.zeros_like(value) for name, value in STATE.items()}
BESIDE = {
    "args": argparse.Namespace(lr=0.1, output=pathlib.Path("runs/1"), windows=pathlib.PureWindowsPath("c:/x")),
    "accuracy": np.float64(93.1), "best": np.bool_(True), "history": np.arange(3.0), "seeds": np.random.get_state(),  # noqa: NPY002
    "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc), "epoch": np.int64(3),
}  # fmt: skip


@pytest.mark.skipif(not hasattr(torch.serialization, "safe_globals"), reason="torch 2.5 and later")
def test_harmless_values_beside_weights_are_read(tmp_path):
    for beside in BESIDE:
        torch.save({beside: BESIDE[beside], "model": STATE}, tmp_path / "x.pth")
        assert read_state_dict(tmp_path / "x.pth").keys() == STATE.keys(), beside


@pytest.mark.parametrize(
    "entry", [*([one] for one in ENTRIES), ["model", "state_dict"], ["ema", "module"], []]
)
def test_weights_are_found_where_they_are_nested(tmp_path, entry):
    content = STATE
    for name in reversed(entry):
        content = {"epoch": 3, "optimizer": {"lr": 0.1}, name: content}
    torch.save(content, tmp_path / "x.ckpt")
    assert read_state_dict(tmp_path / "x.ckpt").keys() == STATE.keys()


def test_one_of_several_entries_is_named(tmp_path):
    torch.save({"ema": OTHER, "model": STATE}, tmp_path / "x.pth")
    said = []
    assert torch.equal(read_state_dict(tmp_path / "x.pth", said.append)["fc.bias"], STATE["fc.bias"])
    assert "'model'" in said[0]
    assert "ema" in said[0]


def prefixed(prefix, *names, state=STATE):
    return {
        (prefix + name if not names or name.startswith(names) else name): value
        for name, value in state.items()
    }


@pytest.mark.parametrize(
    "state",
    [
        *(prefixed(prefix) for prefix in PREFIXES),
        prefixed("module._orig_mod.model."),
        prefixed("anything.of.mine."),
        prefixed("backbone.", "conv"),
        prefixed("backbone.", "conv", state=prefixed("head.", "fc")),
        {**prefixed("net."), "loss.weight": torch.ones(2)},
        {**prefixed("model."), **prefixed("model_ema.", state=OTHER)},
    ],
)
def test_prefixes_are_removed_where_the_names_then_fit(state):
    network, said = layers(), []
    load_weights(network, state, "x.pth", "mine", said.append)
    assert all(torch.equal(value, STATE[name]) for name, value in network.state_dict().items())
    assert "prefix" in said[0]


def test_names_that_fit_are_kept():
    own = nn.ModuleDict({"model": layers(), "module": nn.Linear(2, 2)})
    assert renamed_to_fit(own.state_dict(), own.state_dict())[1] == ""
    load_weights(own, own.state_dict(), "x.pth", "mine")
    for state in ({**STATE, "more": torch.ones(1)}, {**prefixed("a."), **prefixed("b.")}):
        with pytest.raises(SettingError, match="unexpected: "):
            load_weights(layers(), state, "x.pth", "mine")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.pth", b"<?xml version='1.0'?><Error>", "an HTML page"),
        ("x.safetensors", b'{"error": "not found"}', "JSON"),
        ("x.pth", b"\x1f\x8b\x08", "gzip"),
        ("x.pth", b"\x89HDF\r\n", "HDF5"),
        ("x.safetensors", b"PK\x03\x04", "end in .pth"),
    ],
)
def test_file_of_another_kind_is_named(tmp_path, name, content, told):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SettingError, match=told):
        read_state_dict(tmp_path / name)
