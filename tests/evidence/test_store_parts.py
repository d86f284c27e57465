"""Entries and shards of both kinds of store, by themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from openood_adascale.errors import StoreError
from openood_adascale.evidence import disk, store
from openood_adascale.evidence.disk import DiskEntry, DiskStore, open_store
from openood_adascale.evidence.plan import Execution, Perturbation
from openood_adascale.evidence.sharing import entry_key, part_name, using_store
from openood_adascale.evidence.store import MOST, MemoryStore, kept_as

CPU = torch.device("cpu")
ABOUT = {"head": "fc", "D": 4, "N": 3, "more": "words"}


def shard(rows=3, value=1.0):
    return {"activation": torch.full((rows, 4), value), "label": torch.arange(rows)}


@pytest.fixture(params=[MemoryStore, None])
def a_store(request, tmp_path):
    return DiskStore(tmp_path / "store") if request.param is None else MemoryStore()


def test_an_entry(a_store):
    entry = a_store.entry("one")
    assert entry.about is None
    assert not entry.has("activation", 0, 3)
    entry.drop("activation", 0)  # which is not there
    entry.begin(ABOUT)
    assert entry.about == ABOUT
    given = shard()
    entry.write("activation", 0, given)
    entry.write("activation", 1, shard(2, 2.0))
    given["activation"] += 1
    assert entry.has("activation", 0, 3)
    assert not entry.has("perturbed", 0, 3)
    torch.testing.assert_close(entry.read("activation", 0), shard())
    torch.testing.assert_close(a_store.entry("one").read("activation", 1), shard(2, 2.0))
    assert a_store.entry("two").about is None
    entry.write("activation", 0, shard(3, 3.0))
    torch.testing.assert_close(entry.read("activation", 0), shard(3, 3.0))
    entry.drop("activation", 0)
    assert not entry.has("activation", 0, 3)
    assert entry.has("activation", 1, 2)


class TestOnDisk:
    @pytest.fixture
    def entry(self, tmp_path):
        found = DiskStore(tmp_path / "store").entry("one")
        found.begin(ABOUT)
        found.write("activation", 0, shard())
        return found

    def test_a_shard_of_other_rows_is_none(self, entry):
        assert not entry.has("activation", 0, 4)
        assert not entry.has("activation", 1, 3)
        assert entry.has("activation", 0, 3)

    def test_a_shard_in_anothers_place_is_none(self, entry):
        content = entry._path("activation", 0).read_bytes()
        for other in (entry._path("activation", 1), entry._path("perturbed", 0)):
            other.write_bytes(content)
        assert not entry.has("activation", 1, 3)
        assert not entry.has("perturbed", 0, 3)

    def test_a_shard_that_is_gone(self, entry):
        with pytest.raises(
            StoreError, match=r"store: .*activation-000007.safetensors cannot be read any more: "
        ):
            entry.read("activation", 7)
        entry._path("activation", 0).write_bytes(b"nothing")
        with pytest.raises(StoreError, match=r"activation-000000.safetensors cannot be read any more: "):
            entry.read("activation", 0)

    @pytest.mark.parametrize("lacks", ["head", "D", "N"])
    def test_notes_that_lack_something(self, entry, lacks):
        entry.begin({name: value for name, value in ABOUT.items() if name != lacks})
        assert entry.about is None
        entry.begin({**ABOUT, lacks: 1.5})
        assert entry.about is None

    def test_what_killed_runs_left(self, entry):
        gone = subprocess.run(
            [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
        )
        here, dead = disk._host(), gone.stdout.strip()
        names = [f".{here}.{dead}.x.y.tmp", f".elsewhere.{dead}.x.y.tmp", f".{here}.{os.getpid()}.x.y.tmp",
                 f".{here}.1.x.y.tmp", f".{here}.word.x.y.tmp", ".tmp", "..tmp"]  # fmt: skip
        for name in names:
            (entry.folder / name).write_text("half")
        entry.sweep()
        left = {path.name for path in entry.folder.iterdir()}
        assert left >= {*names[1:4], "about.json", "activation-000000.safetensors"}
        assert not left & {names[0], names[4]}

    def test_its_parts_and_size(self, entry):
        entry.write("perturbed-random-ab", 0, shard())
        entry.write("activation", 1, shard())
        assert entry.parts() == {"activation": 2 * store.SHARD, "perturbed-random-ab": store.SHARD}
        assert entry.size == sum(path.stat().st_size for path in entry.folder.iterdir())
        (entry.folder / "mine.txt").write_text("mine")
        assert entry.size < sum(path.stat().st_size for path in entry.folder.iterdir())
        entry.remove()
        assert [path.name for path in entry.folder.iterdir()] == ["mine.txt"]
        (entry.folder / "mine.txt").unlink()
        entry.remove()
        assert not entry.folder.exists()

    def test_what_cannot_be_removed(self, entry, monkeypatch):
        def refuse(path, missing_ok=False):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("pathlib.Path.unlink", refuse)
        with pytest.raises(StoreError, match=r"store: .* cannot be removed: Permission denied"):
            entry.remove()

    def test_entries_of_a_store(self, entry, tmp_path):
        DiskStore(tmp_path / "store").entry("another").begin(ABOUT)
        (tmp_path / "store/entries/file").write_text("")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "store/entries/link").symlink_to(tmp_path / "elsewhere")
        assert [one.folder.name for one in open_store(str(tmp_path / "store"))] == ["another", "one"]
        assert all(isinstance(one, DiskEntry) for one in open_store(tmp_path / "store"))

    def test_folders(self, tmp_path, monkeypatch):
        (tmp_path / "new").mkdir()
        (tmp_path / "new/lost+found").mkdir()
        assert DiskStore(tmp_path / "new").takes(
            10**15
        )  # of which the disk says more when it is to be written
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.chdir(tmp_path)
        assert DiskStore("~/new").folder == DiskStore("new").folder == tmp_path / "new"
        # Another number than last time is for another content: stores that are there cannot be used any more.
        assert json.loads((tmp_path / "new" / disk.MARKER).read_text()) == {"format": 2}
        with pytest.raises(StoreError, match=r"is not there; expected a store of this package$"):
            list(open_store(tmp_path / "none"))
        with pytest.raises(StoreError, match=r"expected a store of this package, or an empty or new folder$"):
            DiskStore(__file__)

    def test_processes(self):
        assert disk._runs(str(os.getpid()))
        assert disk._runs("1")  # another user's
        assert not disk._runs("word")
        assert not disk._runs("")


class TestInMemory:
    def test_what_was_not_used_for_longest_gives_way(self):
        size = 3 * (4 * 4 + 8)
        kept = MemoryStore(limit=3 * size)
        entries = [kept.entry(name) for name in "abc"]
        for entry in entries:
            entry.write("activation", 0, shard())
        assert kept.size == 3 * size
        assert entries[0].has("activation", 0, 3)  # used again
        entries[1].write("perturbed", 0, shard())
        assert kept.size == 3 * size
        assert not entries[1].has("activation", 0, 3)
        assert all(entry.has("activation", 0, 3) for entry in (entries[0], entries[2]))
        assert entries[1].has("perturbed", 0, 3)
        with pytest.raises(StoreError, match=r"gave way to others .*OPENOOD_ADASCALE_STORE=DIR"):
            entries[1].read("activation", 0)
        entries[2].write("activation", 0, shard())  # instead of the one that is there
        assert kept.size == 3 * size
        entries[2].drop("activation", 0)
        assert kept.size == 2 * size
        entries[1].write("perturbed", 1, shard())
        assert kept.size == 3 * size
        assert entries[1].has("perturbed", 0, 3)
        kept.clear()
        assert kept.size == 0

    def test_what_it_takes(self):
        kept = MemoryStore(limit=100)
        assert kept.takes(100)
        assert not kept.takes(101)
        kept.require(10**15)
        # The last one stays, however large.
        kept.entry("a").write("activation", 0, shard(100))
        assert kept.entry("a").has("activation", 0, 100)

    def test_its_limit(self, monkeypatch):
        monkeypatch.setattr(store, "_memory", lambda: 4 * 2**20)
        assert MemoryStore().limit == 2**20
        monkeypatch.setattr(store, "_memory", lambda: 2**50)
        assert MemoryStore().limit == MOST == 2 * 2**30

    def test_memory_of_the_machine(self, monkeypatch):
        found = store._memory()
        assert 2**28 < found < 2**45
        monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 1000}[name])
        assert store._memory() == 4096 * 1000

        def unknown(name):
            raise ValueError(name)

        monkeypatch.setattr(os, "sysconf", unknown)
        monkeypatch.setattr("pathlib.Path.read_text", lambda path: "max\n")
        assert store._memory() == 8 * 2**30
        # A container's limit, in the places of both versions of cgroups.
        for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
            monkeypatch.setattr(
                "pathlib.Path.read_text",
                lambda path, place=place: "123456\n" if str(path) == place else "max\n",
            )
            assert store._memory() == 123456


@pytest.mark.parametrize("make", [MemoryStore, lambda **more: DiskStore("unused", **more)])
def test_dtypes(make):
    with pytest.raises(StoreError) as error:
        make(dtype="int8")
    told = "store: dtype 'int8' is not allowed; expected one of float32, float16, bfloat16"
    assert str(error.value) == told


def test_kept_as():
    values = torch.tensor([[1.0, 1 + 2**-12]], requires_grad=True)
    assert not kept_as("float32", values).requires_grad
    assert kept_as("float32", values.double()).dtype == torch.float64
    for dtype in ("float16", "bfloat16"):
        found = kept_as(dtype, values)
        assert found.dtype == getattr(torch, dtype)
        assert not found.requires_grad
    kept_as("bfloat16", torch.tensor([[1e30, -1e30]]))
    with pytest.raises(StoreError) as error:
        kept_as("float16", torch.tensor([[1.0, -123456.0]]))
    told = "store: float16 cannot hold activations up to 1.23e+05; take bfloat16 or float32"
    assert str(error.value) == told


def test_keys_of_entries(monkeypatch):
    def key(network="n", images="i", device=CPU, dtype="float32", **execution):
        return entry_key(network, images, Execution(**execution), device, dtype)[0]

    keys = [key(), key(network="m"), key(images="j"), key(dtype="float16"), key(device=torch.device("cuda")),
            key(precision="bfloat16"), key(memory_format="contiguous")]  # fmt: skip
    assert len({*keys}) == len(keys)
    assert key(batch=7) == key()  # which changes no number
    assert key(precision="auto") in keys
    found, told = entry_key("n", "i", Execution(), CPU, "float32")
    assert len(found) == 32
    assert told["torch"] == torch.__version__
    assert told["precision"] == "float32"
    assert {"network": "n", "images": "i", "kept_in": "float32", "device": "cpu"}.items() <= told.items()
    monkeypatch.setattr(torch, "__version__", "0.0")
    assert key() != found
    monkeypatch.undo()
    torch.set_float32_matmul_precision("medium")
    try:
        assert key() != found
    finally:
        torch.set_float32_matmul_precision("highest")


def test_names_of_parts():
    given = Perturbation("random", 0.05, 0.5, 1)
    changes = [{}, {"pixels": "trivial"}, {"o": 0.1}, {"epsilon": 0.1}, {"seed": 2}]
    names = [part_name(replace(given, **change)) for change in changes]
    assert len({*names}) == len(names)
    assert all(name.startswith("perturbed-") for name in names)
    assert names[1].startswith("perturbed-trivial-")
    assert part_name(replace(given)) == names[0]


@pytest.mark.parametrize("given", [3, b"folder", "", 1.5])
def test_what_is_no_store(given):
    with pytest.raises(StoreError) as error, using_store(given):
        pass
    told = f"store: {given!r} is not allowed; expected a folder, a Store, or False for none"
    assert str(error.value) == told
