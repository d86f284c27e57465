"""Tests of passes over a loader: in this process, on a pool of workers, and their progress bars."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from networks import TinyNet, make_images
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler, TensorDataset

from openood_adascale import AdaSCALE, feature_cache
from openood_adascale.errors import NotFiniteError
from openood_adascale.features.collect import collect_statistics, iterate_statistics
from openood_adascale.features.extractor import FLOAT32, FeatureExtractor
from openood_adascale.features.indexed import IndexedLoader
from openood_adascale.parallel import CHOSEN, Pool

DETECTOR = AdaSCALE(TinyNet(), percentile=(60, 80))
REQUEST = DETECTOR.settings.request()


class PickledPieces(Pool):
    """Two workers that are this process; what they are sent is pickled."""

    workers = 2

    def __init__(self):
        self.keys, self.described = [], []

    def map(self, function, pieces, shared, describe=str):
        self.keys.append({name: one.key for name, one in shared.items()})
        objects, function = pickle.loads(
            pickle.dumps(({n: one.value for n, one in shared.items()}, function))
        )
        for piece in pieces:
            self.described.append(describe(piece))
            yield pickle.loads(pickle.dumps(function(objects, pickle.loads(pickle.dumps(piece)))))


@pytest.fixture
def pool():
    pytest.importorskip("ray", reason="needs the extra ray")
    found = PickledPieces()
    token = CHOSEN.set(found)
    yield found
    CHOSEN.reset(token)


def network(seed=0):
    torch.manual_seed(seed)
    return TinyNet().eval()


def loader_of(count=150, batch=4, **more):
    images = TensorDataset(make_images(count, 3), torch.arange(count) % 5)
    return DataLoader(images, batch, **more)


def collected(net, loader, **more):
    return collect_statistics(FeatureExtractor(net), loader, REQUEST, FLOAT32, **more)


def oodness(found):
    return DETECTOR.oodness_from(found.statistics)


def test_workers_give_the_statistics_of_one_process(pool):
    net, loader = network(), loader_of()
    pooled = collected(net, loader)
    CHOSEN.set(Pool())
    alone = collected(net, loader)
    np.testing.assert_array_equal(pooled.labels, alone.labels)
    assert torch.equal(pooled.statistics.logits, alone.statistics.logits)
    assert torch.equal(oodness(pooled), oodness(alone))
    assert all(map(torch.equal, pooled.statistics.head, alone.statistics.head))


def test_pieces_for_workers_hold_each_image_once(pool):
    collected(network(), loader_of(150, 4))  # 38 batches
    assert len(pool.described) == 10
    assert pool.described[0].startswith("images 0 to 15 ")
    assert pool.described[-1].startswith("images 144 to 149 ")


def test_workers_are_sent_another_network_under_another_key(pool):
    one, other, loader = network(), network(1), loader_of()
    for net in (one, other, one):
        collected(net, loader)
    keys = [key["extractor"] for key in pool.keys]
    assert keys[0] == keys[2] != keys[1]


def test_image_that_is_not_finite_is_named_by_workers(pool):
    images = make_images(150, 3)
    images[70] = torch.nan
    loader = DataLoader(TensorDataset(images), 4)
    with pytest.raises(NotFiniteError, match="number 70 "):
        collected(network(), loader)


def test_single_batch_and_other_loaders_run_in_this_process(pool):
    for loader in (loader_of(4), [(make_images(8, 3), torch.arange(8))] * 3):
        collected(network(), loader)
    assert pool.described == []


def test_workers_without_images_raise(pool):
    with pytest.raises(ValueError, match="it yields no images"):
        collected(network(), loader_of(0))


@pytest.mark.parametrize("way", ["process", "workers", "cache"])
@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_progress_bar_is_shown_if_asked_for(way, progress, shown, tmp_path, capsys, request):
    """It counts images; by default it needs a terminal, which a test has not."""
    if way == "workers":
        request.getfixturevalue("pool")
    with feature_cache(tmp_path / "cache" if way == "cache" else False):
        collected(network(), loader_of(), progress=progress, description="Some images")
    told = capsys.readouterr().err
    assert ("Some images" in told) == shown
    assert ("150/150" in told) == shown


def test_statistics_of_each_batch_are_on_the_networks_device_in_order(pool):
    found = list(iterate_statistics(FeatureExtractor(network()), loader_of(20, 6), REQUEST, FLOAT32))
    assert [len(labels) for _, labels in found] == [6, 6, 6, 2]
    assert np.concatenate([labels for _, labels in found]).tolist() == [i % 5 for i in range(20)]


def test_single_batch_needs_no_reading_process(tmp_path):
    options = {"num_workers": 1, "multiprocessing_context": "spawn", "timeout": 60}
    with feature_cache(tmp_path / "cache"):
        found = collected(network(), loader_of(4, 4, **options))
    assert torch.equal(found.statistics.logits, collected(network(), loader_of(4)).statistics.logits)


def test_indexed_loader_takes_the_batch_size_of_a_batch_sampler():
    images = TensorDataset(make_images(20, 3))
    loader = DataLoader(images, batch_sampler=BatchSampler(SequentialSampler(images), 7, False))
    found = IndexedLoader.of(loader)
    assert found is not None
    assert found.batch_size == 7
