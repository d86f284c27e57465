"""Which store is used, how large it grows, and in what it keeps its numbers."""

import shutil

import numpy as np
import pytest
import torch
from tiny import HEAD, make_images, make_loader
from torch.utils.data import DataLoader, Dataset

from openood_adascale import MSP, using_store
from openood_adascale.cli import main
from openood_adascale.errors import Changed, StoreError
from openood_adascale.evidence import rows
from openood_adascale.evidence.dataset import is_deterministic
from openood_adascale.evidence.disk import DiskStore, readable
from openood_adascale.evidence.plan import Execution, Perturbation
from openood_adascale.evidence.reader import Reader
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


class Jittered(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.zeros(3, 8, 8) + torch.rand(()), 0


def test_random_images_are_looked_at_once(network, monkeypatch):
    """Whether images stay the same is found out by reading some twice, which takes its time."""
    looked = []
    monkeypatch.setattr(rows, "dataset_digest", lambda loader: "of these")
    monkeypatch.setattr(rows, "is_deterministic", lambda *given: looked.append(1) or is_deterministic(*given))
    monkeypatch.setattr(rows, "_random_images", set())
    for _ in range(3):
        assert rows.rows_of(Reader(network), DataLoader(Jittered(), 8), Execution()) is None
    assert len(looked) == 1


def test_what_no_rows_are_of(network, id_images):
    def found(loader, **more):
        return rows.rows_of(Reader(network), loader, Execution(), **more)

    assert found(make_loader(id_images)) is not None
    assert found(make_loader(id_images[:0])) is None
    assert found(DataLoader(Jittered(), 8)) is None  # of which nobody can tell what they are
    with using_store(False):
        assert found(make_loader(id_images)) is None
    size = 50 * 64 * 4
    for parts, limit in ((1, size), (3, 3 * size)):
        with using_store(MemoryStore(limit=limit)):
            assert found(make_loader(id_images), parts=parts) is not None
        with using_store(MemoryStore(limit=limit - 1)):
            assert found(make_loader(id_images), parts=parts) is None
    with using_store(MemoryStore()):
        rows_of_it = found(make_loader(id_images), network_digest="known")
        assert rows_of_it.count == 50
        assert rows_of_it.holds
        with pytest.raises(
            Changed, match=r"^store: the network changed while images were to be read; nothing of"
        ):
            rows_of_it.fill((), False, "")
        id_images += 1
        assert not rows_of_it.holds
        with pytest.raises(Changed, match=r"^store: the network and the images changed while"):
            rows_of_it.fill((), False, "")


def test_an_entry_that_is_removed_while_it_is_in_use(tmp_path, network, id_images):
    with using_store(tmp_path):
        found = rows.rows_of(Reader(network), make_loader(id_images), Execution())
        found.fill((), False, "")
        shutil.rmtree(tmp_path / "entries")
        with pytest.raises(StoreError, match=r"^store: an entry was removed while it was in use; run again$"):
            found.encoded([1, 2])


def test_rows_in_any_order(network, id_images, monkeypatch, capsys):
    monkeypatch.setattr(rows, "SHARD", 16)
    with torch.no_grad():
        want = network(id_images)
    moved = Perturbation("random", 0.1, 0.2)
    found = rows.rows_of(Reader(network), make_loader(id_images), Execution())
    found.fill((moved,), True, "some images")
    told = capsys.readouterr().err
    assert "some images: 100%" in told
    assert "50/50" in told
    for chosen in ([3], [3, 5], [49, 0, 16, 15, 3], list(range(50))[::-1]):
        encoded, labels = found.encoded(chosen, (moved,))
        torch.testing.assert_close(encoded.logits, want[chosen])
        assert labels.tolist() == [place % 5 for place in chosen]
        assert encoded.prediction.tolist() == want[chosen].argmax(1).tolist()
        assert encoded.perturbed[moved].shape == (len(chosen), 64)
        assert not encoded.logits.requires_grad
    assert found.labels([7, 8]).tolist() == [2, 3]
