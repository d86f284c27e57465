"""Which store is used, how large it grows, and in what it keeps its numbers."""

import shutil

import numpy as np
import pytest
import torch
from conftest import HEAD, make_images, make_loader

from openood_adascale import MSP, using_store
from openood_adascale.cli import main
from openood_adascale.errors import StoreError
from openood_adascale.evidence import rows
from openood_adascale.evidence.disk import DiskStore, readable
from openood_adascale.evidence.sharing import chosen_store, current_store, forget, is_chosen
from openood_adascale.evidence.store import MemoryStore
from openood_adascale.plugin import comparison


def passes(network, call):
    """How many images went through the network, and what the call gave."""
    network.calls.clear()
    found = call()
    return sum(network.calls), found


def test_off_and_the_environment(monkeypatch, tmp_path):
    assert isinstance(current_store(), MemoryStore)
    assert not is_chosen()
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE", "off")
    assert current_store() is None
    assert is_chosen()
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE", str(tmp_path / "new" / "store"))
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE_DTYPE", "bfloat16")
    found = current_store()
    assert isinstance(found, DiskStore)
    assert found.dtype == "bfloat16"
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE_DTYPE", "int8")
    with pytest.raises(StoreError, match=r"'int8' is not allowed.*bfloat16"):
        current_store()
    with pytest.raises(StoreError, match="3 is not allowed"), using_store(3):
        pass


def test_memory_keeps_its_limit(network, monkeypatch):
    monkeypatch.setattr(rows, "SHARD", 16)
    size = 64 * (64 * 4 + 16)
    store = MemoryStore(limit=2 * size + 100)
    with using_store(store):
        for seed in range(4):
            loader = make_loader(make_images(64, seed))
            assert passes(network, lambda given=loader: MSP(network).predict_loader(given))[0] == 64 + HEAD
            assert store.size <= store.limit
        assert passes(network, lambda: MSP(network).predict_loader(loader))[0] == 0
        # More than it may keep: not kept, and nothing gives way.
        large = make_loader(make_images(300, 9))
        for _ in range(2):
            assert passes(network, lambda: MSP(network).predict_loader(large))[0] == 300 + HEAD
        assert passes(network, lambda: MSP(network).predict_loader(loader))[0] == 0
    with using_store(store):
        store.clear()
        assert store.size == 0


def test_forget(network, id_images):
    MSP(network).predict_loader(make_loader(id_images))
    forget()
    assert passes(network, lambda: MSP(network).predict_loader(make_loader(id_images)))[0] == 50 + HEAD


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("float16", 2e-3)])
def test_half_the_size(tmp_path, network, id_images, dtype, tolerance):
    scores, sizes = {}, {}
    for kept in ("float32", dtype):
        with using_store(DiskStore(tmp_path / kept, kept)):
            for _ in range(2):
                scores[kept] = MSP(network).predict_loader(make_loader(id_images))[1]
        sizes[kept] = sum(p.stat().st_size for p in (tmp_path / kept).rglob("activation-*"))
    np.testing.assert_allclose(scores[dtype], scores["float32"], atol=tolerance)
    assert not np.array_equal(scores[dtype], scores["float32"])
    assert sizes[dtype] < 0.6 * sizes["float32"]
    with torch.no_grad():
        network.features[3].weight *= 1e6
    with using_store(DiskStore(tmp_path / dtype, dtype)):
        if dtype == "float16":
            with pytest.raises(StoreError, match="float16 cannot hold activations up to"):
                MSP(network).predict_loader(make_loader(id_images))
        else:
            MSP(network).predict_loader(make_loader(id_images))
    shutil.rmtree(tmp_path / dtype)


@pytest.mark.parametrize(("environment", "shares"), [("off", False), ("", True)])
def test_many_postprocessors_share_unless_told_otherwise(monkeypatch, tmp_path, environment, shares):
    seen = []
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE", environment)
    monkeypatch.setattr(comparison, "compare", lambda *args: seen.append(current_store()) or [])
    monkeypatch.setattr("openood_adascale.cli.run.register", lambda: None)
    (tmp_path / "script.py").write_text("")
    assert main(["run", "--postprocessors", "msp", str(tmp_path / "script.py")]) == 0
    assert [store is not None for store in seen] == [shares]


def test_nobody_has_chosen(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENOOD_ADASCALE_STORE", raising=False)
    assert chosen_store() is None
    with using_store(tmp_path):
        assert chosen_store() is current_store() is not None


@pytest.mark.parametrize(
    ("size", "told"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (2.5e6, "2.5 MB"), (1.28e9, "1.28 GB"), (3e12, "3 TB")],
)
def test_sizes_in_words(size, told):
    assert readable(size) == told
