"""Files of weights that are broken, hold more than weights, or are meant to do harm: refused, and never executed."""

import argparse
import os
import pickle
import tarfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from openood_adascale.errors import SettingError
from openood_adascale.evaluation.networks import load_network

timm = pytest.importorskip("timm")


def network():
    return timm.create_model("test_resnet", num_classes=3)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("how", ["zip", "legacy", "pickle", "within", "tar"])
def test_nothing_is_executed(tmp_path, how, monkeypatch):
    folder = tmp_path / "made"
    monkeypatch.setenv("EVIL_FOLDER", str(folder))
    path = tmp_path / "x.pth"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    elif how == "tar":
        (tmp_path / "storages").write_bytes(pickle.dumps(Evil()))
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "storages", "storages")
    else:
        state = {"state_dict": {"a": torch.ones(1)}, "args": Evil()} if how == "within" else Evil()
        torch.save(state, path, _use_new_zipfile_serialization=how != "legacy")
    with pytest.raises(SettingError, match=r"weights: '.*x\.pth'") as caught:
        load_network("timm:test_resnet", path)
    assert not folder.exists()
    expected = {"tar": "a tar archive", "pickle": "what torch.save writes"}.get(how, "posix.mkdir")
    assert expected in str(caught.value)
    assert "`weights_only`" not in str(caught.value)  # torch's advice to execute it


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_files_that_hold_more_than_weights(tmp_path):
    path = tmp_path / "x.pth"
    for content, match in [
        (network(), "holds timm"),
        ({"state_dict": {"a": torch.ones(1)}, "args": argparse.Namespace(a=1)}, "holds argparse.Namespace"),
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
    with pytest.raises(SettingError, match="nothing but weights"):
        load_network("timm:test_resnet", path)


@pytest.mark.parametrize("end", [".pth", ".safetensors"])
def test_broken_files(tmp_path, end):
    good = tmp_path / f"x{end}"
    (save_file if end == ".safetensors" else torch.save)(network().state_dict(), good)
    assert load_network("timm:test_resnet", good).network.num_classes == 3
    whole = good.read_bytes()
    path = tmp_path / f"broken{end}"
    for content in (b"", b"abc" * 9, whole[:100], whole[:-500], b"PK\x03\x04" + bytes(50)):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=r"weights: '.*broken"):
            load_network("timm:test_resnet", path)
    for missing in (tmp_path / f"none{end}", tmp_path):
        with pytest.raises(SettingError, match="expected a file"):
            load_network("timm:test_resnet", missing)
