"""Batches that a group shares, in one process; what several do is in tests/distributed."""

from __future__ import annotations

import pickle
import re
import warnings

import networks as tv
import numpy as np
import pytest
import torch
from named_images import Named
from tiny import TinyNet, make_images, make_loader
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from openood_adascale import MSP, AdaSCALE, using_store
from openood_adascale.distributed.work import Share, packed, unpacked
from openood_adascale.errors import NotFinite, SettingError
from openood_adascale.evidence import passes, rows
from openood_adascale.evidence.collect import batches, collect
from openood_adascale.evidence.passes import (
    Asked,
    Pass,
    chosen_workers,
    shared_batches,
    workers_of,
)
from openood_adascale.evidence.plan import Execution, Perturbation, Plan
from openood_adascale.evidence.reader import Reader
from openood_adascale.evidence.store import MemoryStore


class Group:
    """Three processes that are all this one: what they are sent goes through pickle, as it does in a group."""

    size = 3

    def __init__(self) -> None:
        self.pieces: list[int] = []
        self.keys: list[dict[str, str]] = []

    def do(self, work, count):
        self.pieces.append(count)
        parts = work.parts()
        self.keys.append({name: key for name, (key, _) in parts.items()})
        sent = pickle.loads(pickle.dumps(work))
        assert sent._reader is None
        assert sent._loader is None
        given = {name: unpacked(name, packed(name, value)) for name, (_, value) in parts.items()}
        of = [sent.results(range(rank, count, 3), given, Share(rank, 3)) for rank in range(3)]
        for number in range(count):
            yield next(of[number % 3])


@pytest.fixture
def group(monkeypatch):
    team = Group()
    monkeypatch.setattr(passes, "active_team", lambda: team)
    return team


def scored(network, loader, **settings):
    with using_store(False):
        return MSP(network, **settings).predict_loader(loader, progress=False)


@pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"num_workers": 2}, {"drop_last": True}])
def test_a_shared_pass_is_the_pass(network, id_images, group, monkeypatch, more):
    def found():
        torch.manual_seed(4)
        return *scored(network, make_loader(id_images, 8, **more)), torch.rand(2)

    *shared, drawn = found()
    assert group.pieces == [6 if "drop_last" in more else 7]
    monkeypatch.setattr(passes, "active_team", lambda: None)
    *alone, also_drawn = found()
    for one, other in zip(shared, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert torch.equal(drawn, also_drawn)


def test_evidence_of_a_shared_pass(network, id_images, group, capsys):
    """Of everything that a plan asks, in main memory, with a bar that counts images."""
    perturbations = (Perturbation("trivial", 0.1, 0.2), Perturbation("random", 0.1, 0.2))
    plan = Plan((60, 90), (5,), (50,), perturbations, activations=True)
    loader = make_loader(id_images, 8)
    with using_store(False):
        found = list(batches(Reader(network), loader, plan, Execution(), True, "all of them"))
        assert [len(one.labels) for one in found] == [8, 8, 8, 8, 8, 8, 2]
        assert not any(part.evidence.logits.requires_grad for part in found)
        told = capsys.readouterr().err
        assert "all of them" in told
        assert "50/50" in told
        whole = collect(Reader(network), loader, plan, Execution(), False)
        assert capsys.readouterr().err == ""
        want = Reader(network).read(id_images, plan, Execution())
    torch.testing.assert_close(whole.evidence.parts, want.parts)
    torch.testing.assert_close(found[1].evidence.head, want.head)
    np.testing.assert_array_equal(whole.labels, np.arange(50) % 5)


def test_a_store_is_filled_together(network, id_images, group, monkeypatch):
    monkeypatch.setattr(rows, "SHARD", 16)
    loader = make_loader(id_images, 8)
    settings = {"pixels": "random", "percentile": (60, 80), "k1": 5, "k2": 50, "lmbda": 10}
    with using_store(MemoryStore()):
        first = AdaSCALE(network, **settings).fit(loader, progress=False).predict_loader(loader, False)
        assert len(group.pieces) == 1
        assert group.pieces[0] >= 3
    with using_store(False):
        monkeypatch.setattr(passes, "active_team", lambda: None)
        want = AdaSCALE(network, **settings).fit(loader, progress=False).predict_loader(loader, False)
    for one, other in zip(first, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)


def test_what_is_not_finite_is_named_by_its_place(network, group):
    images = make_images(40, 1)
    images[21, 0, 0, 0] = torch.nan
    order = [*range(20, 40), *range(20)]
    turned = DataLoader(TensorDataset(images, torch.arange(40)), 8, sampler=order)
    with pytest.raises(NotFinite) as error:
        scored(network, turned)
    assert error.value.rows == [1]  # of those that the loader gives
    with using_store(MemoryStore()), pytest.raises(NotFinite) as error:
        MSP(network).predict_loader(make_loader(images, 8), progress=False)
    assert error.value.rows == [21]  # of the data set


def test_and_by_its_file(network, group):
    images = make_images(40, 1)
    images[13, 0, 0, 0] = torch.inf
    with pytest.raises(NotFinite, match=r"13\.png") as error:
        scored(network, DataLoader(Named(images), 8))
    assert error.value.rows == [13]
    work = Pass(
        Reader(network), DataLoader(Named(images), 8), [[9, 13]], Asked((), Execution()), lambda *_: None
    )
    parts = {name: value for name, (_, value) in work.parts().items()}
    with pytest.raises(NotFinite, match=r"13\.png") as error:
        list(work.results([0], parts, Share()))
    assert error.value.rows == [13]


def drops_one(samples):
    return torch.stack([image for image, _ in samples[1:]]), torch.zeros(len(samples) - 1)


def test_a_collate_fn_that_loses_images(network, id_images, group):
    loader = make_loader(id_images, 8, collate_fn=drops_one)
    with pytest.raises(ValueError, match="loader: of 8 images its collate_fn made 7"):
        scored(network, loader)


class Stream(IterableDataset):
    def __init__(self, images):
        self.images = images

    def __iter__(self):
        return iter(self.images)


class Jittered(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.randn(3, 8, 8), index % 5


class Noisy(TinyNet):
    def forward(self, images):
        return self.fc(self.features(images) + 0.1 * torch.rand(()))


@pytest.mark.parametrize("what", ["stream", "list", "random images", "counter", "noise", None])
@pytest.mark.filterwarnings("ignore:network")
def test_what_cannot_be_shared(what, id_images, group):
    torch.manual_seed(0)
    network = {"counter": tv.Counting, "noise": Noisy}.get(what, TinyNet)().eval()
    loader = {
        "stream": DataLoader(Stream(id_images), 8),
        "list": [id_images],
        "random images": DataLoader(Jittered(), 8),
    }.get(what, make_loader(id_images, 8))
    reason = {
        "stream": "its images are given one after another",
        "list": "its images are given one after another",
        "random images": "its images are random: reading one twice gives two",
        "counter": r"the network changes when it is run \(runs\)",
        "noise": "the network says something else of an image each time",
    }.get(what)
    reader = Reader(network)
    reader.encode(id_images, (), Execution())
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        shared = shared_batches(reader, loader)
    if reason is None:
        assert not told
        assert shared == [list(range(start, min(start + 8, 50))) for start in range(0, 50, 8)]
    else:
        assert shared is None
        (one,) = told
        assert one.category is UserWarning
        assert re.fullmatch(f"loader: one process of 3 reads it: {reason}", str(one.message))


def test_alone_nothing_is_shared(network, id_images):
    assert shared_batches(Reader(network), make_loader(id_images)) is None


def test_a_loader_without_images(network, group):
    with pytest.raises(ValueError, match="it yields no images"):
        scored(network, make_loader(make_images(3, 1), 8, drop_last=True))


def test_keys_of_what_is_sent(network, id_images):
    loader = make_loader(id_images, 8)
    asked = Asked((), Execution())

    def keys(network, loader, **more):
        work = Pass(Reader(network), loader, [[0]], asked, lambda *_: None, **more)
        return {name: key for name, (key, _) in work.parts().items()}

    one = keys(network, loader)
    assert one == keys(network, make_loader(id_images, 3))
    assert one["network"] != one["data set"]
    assert one["data set"] != keys(network, make_loader(id_images[:9]))["data set"]
    assert keys(network, loader, network_digest="known") == {**one, "network": "network known"}
    untold = DataLoader(Jittered(), 8)
    first, second = (keys(network, untold)["data set"] for _ in range(2))
    assert first != second  # never found again
    uses = Pass(Reader(network), loader, [[0]], asked, lambda *_: None).uses()
    for thing in (network, loader.dataset, loader.collate_fn, loader.dataset.tensors):
        assert any(thing is one for one in uses)


@pytest.mark.parametrize(("text", "want"), [(None, None), ("", None), (" ", None), ("0", 0), (" 12 ", 12)])
def test_workers(text, want, monkeypatch, id_images):
    monkeypatch.setattr("torch.utils.data.DataLoader.check_worker_number_rationality", lambda self: None)
    if text is not None:
        monkeypatch.setenv("OPENOOD_ADASCALE_WORKERS", text)
    assert chosen_workers() == want
    assert workers_of(make_loader(id_images, num_workers=5)) == (5 if want is None else want)


@pytest.mark.parametrize("text", ["-1", "1.5", "many", "1 2"])
def test_workers_that_cannot_be(text, monkeypatch):
    monkeypatch.setenv("OPENOOD_ADASCALE_WORKERS", text)
    with pytest.raises(SettingError) as error:
        chosen_workers()
    assert (
        str(error.value)
        == f"OPENOOD_ADASCALE_WORKERS: {text!r} is not allowed; expected a whole number from 0 on"
    )
