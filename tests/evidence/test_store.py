"""An image goes through a network once: what a store serves, and what it must not."""

import random

import networks as tv
import numpy as np
import pytest
import torch
from tiny import HEAD, TinyNet, make_images, make_loader
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from openood_adascale import MSP, AdaSCALE, OptFS, using_store
from openood_adascale.errors import Changed, NotFinite
from openood_adascale.evidence import disk, rows
from openood_adascale.evidence.encode import fastest_precision
from openood_adascale.evidence.plan import Execution, Perturbation
from openood_adascale.evidence.store import MemoryStore

RANDOM = {
    "percentile": (60, 80),
    "k1": 5,
    "k2": 50,
    "lmbda": 10,
    "o": 0.05,
    "epsilon": 0.5,
    "pixels": "random",
}
TRIVIAL = {**RANDOM, "pixels": "trivial"}


@pytest.fixture(params=["memory", "disk"])
def store(request, tmp_path, monkeypatch):
    """Small shards, so that these images need several."""
    for module in (rows, disk):
        monkeypatch.setattr(module, "SHARD", 16)
    with using_store(MemoryStore() if request.param == "memory" else tmp_path / "store"):
        yield


def passes(network, call):
    """How many images went through the network, and what the call gave."""
    network.calls.clear()
    found = call()
    return sum(network.calls), found


@pytest.mark.parametrize("settings", [RANDOM, TRIVIAL], ids=lambda s: s["pixels"])
def test_the_second_time_no_image_goes_through_the_network(store, network, id_images, ood_images, settings):
    def scores():
        detector = AdaSCALE(network, **settings).fit(make_loader(id_images))
        return detector.predict_loader(make_loader(ood_images, 7))

    with using_store(False):
        want = scores()
    assert passes(network, scores)[0] == 2 * 90 + HEAD
    count, found = passes(network, scores)
    assert count == 0
    for got, expected in zip(found, want, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_another_perturbation_costs_its_pass_alone(store, network, id_images):
    loader = make_loader(id_images)

    def passes_of(**settings):
        return passes(network, lambda: AdaSCALE(network, **settings).fit(loader))[0]

    passes_of(**RANDOM)
    assert passes_of(**{**RANDOM, "epsilon": 0.2}) == 50 + HEAD
    assert passes_of(**{**RANDOM, "o": 0.1}) == 50 + HEAD
    assert passes_of(**TRIVIAL) == 100 + HEAD  # its gradient needs the image's own pass
    for change in ({"percentile": (70, 90)}, {"k1": 1}, {"k2": 100}, {"lmbda": 1}, {"variant": "L"}):
        assert passes_of(**{**RANDOM, **change}) == 0
    assert passes(network, lambda: OptFS(network, learn_from="val").fit(loader))[0] == 0


def test_a_search_needs_no_network_either(store, network, id_images, ood_images):
    def found(sweep):
        return AdaSCALE(network, **TRIVIAL).search(make_loader(id_images), make_loader(ood_images), sweep)

    with using_store(False):
        want = found({"percentile_list": [[60, 80], [70, 90]], "k1_list": [1, 5]})
    found({"lmbda_list": [1, 10]})
    count, got = passes(network, lambda: found({"percentile_list": [[60, 80], [70, 90]], "k1_list": [1, 5]}))
    assert count == 0
    np.testing.assert_allclose(got.table["auroc"], want.table["auroc"], atol=1e-3)
    assert got.settings == want.settings


def test_scores_of_one_batch_are_the_same_numbers(store, network, id_images):
    direct = MSP(network).score(id_images)
    for _ in range(2):
        got = MSP(network).predict_loader(make_loader(id_images, 50))[1]
        np.testing.assert_array_equal(got, direct.numpy())


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
def test_order_labels_and_draws_are_the_loaders(store, network, id_images, shuffle, workers):
    dataset = TensorDataset(id_images, torch.arange(50))

    def found(seed):
        torch.manual_seed(seed)
        loader = DataLoader(dataset, 8, shuffle=shuffle, num_workers=workers)
        return *MSP(network).predict_loader(loader, False), torch.rand(3)

    with using_store(False):
        want = {seed: found(seed) for seed in (0, 1)}
    for seed in (0, 1, 0):
        *arrays, drawn = found(seed)
        for got, expected in zip(arrays, want[seed], strict=False):
            np.testing.assert_allclose(got, expected, rtol=1e-6)
        assert torch.equal(drawn, want[seed][-1])


def test_what_differs_is_another_entry(store, network, id_images):
    loader = make_loader(id_images)

    def count(method=None, images=loader):
        return passes(network, lambda: (method or MSP(network)).predict_loader(images))[0]

    assert count() == 50 + HEAD
    assert count() == 0
    assert count(images=make_loader(id_images, 9, shuffle=True)) == 0
    with torch.no_grad():
        network.fc.bias[0] += 1
    assert count() == 50 + HEAD
    handle = network.features[2].register_forward_hook(lambda *given: given[-1] * 2)
    assert count() == 50 + HEAD
    handle.remove()
    assert count() == 0
    id_images[3] += 1
    assert count() == 50 + HEAD
    assert count(images=make_loader(id_images[:20])) == 20 + HEAD
    assert count(MSP(network, precision=fastest_precision(torch.device("cpu")))) in (0, 50 + HEAD)
    assert count(MSP(network, precision="auto")) == 0
    assert count(images=make_loader(id_images[:1])) == 1 + HEAD
    assert count(images=make_loader(id_images[:1])) == 0
    already = fastest_precision(torch.device("cpu")) == "bfloat16"
    assert count(MSP(network, precision="bfloat16")) == (0 if already else 50 + HEAD)
    assert count(MSP(network, memory_format="contiguous")) == 50 + HEAD
    changed = DataLoader(
        ConcatDataset([TensorDataset(id_images[:25], torch.zeros(25)), Subset(loader.dataset, range(25))])
    )
    assert count(images=changed) == 50 + HEAD
    assert count(images=changed) == 0


def test_a_layer_whose_code_is_another(store, id_images):
    def network(factor):
        class Net(TinyNet):
            if factor == 1:

                def forward(self, images):
                    return super().forward(images)
            else:

                def forward(self, images):
                    return super().forward(images * 2)

        torch.manual_seed(0)
        return Net().eval()

    once, twice = network(1), network(2)
    first = MSP(once).predict_loader(make_loader(id_images))[1]
    assert passes(twice, lambda: MSP(twice).predict_loader(make_loader(id_images)))[0] == 50 + HEAD
    with using_store(False):
        np.testing.assert_array_equal(first, MSP(once).predict_loader(make_loader(id_images))[1])


class Drawing(Dataset):
    """Images of a random preprocessing, of the three generators that there are and one of its own."""

    def __init__(self, images, kind):
        self.images, self.kind = images, kind
        self.own = np.random.default_rng(0)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        drawn = {
            "torch": lambda: torch.rand(()),
            "numpy": lambda: np.random.rand(),  # noqa: NPY002
            "python": random.random,
            "own": self.own.random,
        }[self.kind]()
        return self.images[index] + 0.1 * (float(drawn) > 0.5)


@pytest.mark.parametrize("kind", ["torch", "numpy", "python", "own"])
def test_images_of_a_random_preprocessing_are_not_stored(store, network, id_images, monkeypatch, kind):
    from openood_adascale.evidence import fingerprint

    known = fingerprint._dataset_parts
    monkeypatch.setattr(
        fingerprint, "_dataset_parts", lambda d: [d.kind, d.images] if isinstance(d, Drawing) else known(d)
    )
    loader = DataLoader(Drawing(id_images, kind), 16)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    assert rows.rows_of(MSP(network).reader, loader, MSP(network).settings.execution) is None
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    assert torch.equal(states[0], after[0])
    assert states[1] == after[1]
    assert (states[2] == after[2]).all()
    for _ in range(2):
        assert passes(network, lambda: MSP(network).predict_loader(loader))[0] == 50 + HEAD


def test_what_cannot_be_told_apart_is_not_stored(store, network, id_images):
    class Own(Dataset):
        def __len__(self):
            return 50

        def __getitem__(self, index):
            return id_images[index]

    def collate(samples):
        return torch.stack([image for (image,) in samples])

    collated = DataLoader(TensorDataset(id_images), 16, collate_fn=collate)
    for loader in ([id_images], DataLoader(Own(), 16), collated):
        for _ in range(2):
            assert passes(network, lambda given=loader: MSP(network).predict_loader(given))[0] == 50 + HEAD


@pytest.mark.filterwarnings("ignore:network. .* normalises by the statistics")
@pytest.mark.parametrize("make", [tv.BatchStatistics, tv.Counting])
def test_networks_whose_word_depends_on_more_than_the_image(store, make, id_images):
    network = make().eval()
    with using_store(False):
        want = MSP(network).predict_loader(make_loader(id_images))[1]
    for _ in range(2):
        count, found = passes(network, lambda: MSP(network).predict_loader(make_loader(id_images)))
        assert count in (50 + HEAD, 50 + 2 * HEAD)  # with those that show it
        np.testing.assert_allclose(found[1], want, rtol=1e-6)


def test_the_image_that_is_not_finite_is_named(store, network):
    images = make_images(50, 1)
    images[37, 0, 0, 0] = torch.nan
    with pytest.raises(NotFinite) as error:
        MSP(network).predict_loader(make_loader(images))
    assert error.value.rows == [37]


def test_a_network_without_head_has_the_same_error(store, id_images):
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.ReLU())
    with pytest.raises(ValueError, match="no linear head that shows"):
        MSP(network).predict_loader(make_loader(id_images))


def test_a_hook_that_keeps_what_it_sees(tmp_path, network, id_images):
    """It is another after every pass: nothing is stored, rather than stored anew each time."""
    seen = []
    network.features.register_forward_hook(lambda layer, given, output: seen.append(len(output)))
    with using_store(tmp_path):
        for _ in range(2):
            assert (
                passes(network, lambda: MSP(network).predict_loader(make_loader(id_images)))[0] == 50 + HEAD
            )
    assert not list((tmp_path).rglob("*.safetensors"))


SEEN: list[int] = []
OTHERS: list[int] = []


class CountsInAGlobal(TinyNet):
    def forward(self, images):
        SEEN.append(len(images))
        return super().forward(images)


class AddsAGlobal(TinyNet):
    def forward(self, images):
        return super().forward(images) + len(OTHERS)


def test_a_network_that_changes_what_its_code_names_is_not_stored(store, id_images):
    network = CountsInAGlobal().eval()
    for _ in range(2):
        assert passes(network, lambda: MSP(network).predict_loader(make_loader(id_images)))[0] >= 50


def test_nothing_is_read_of_a_network_that_has_changed_meanwhile(store, id_images):
    network = AddsAGlobal().eval()
    found = rows.rows_of(MSP(network).reader, make_loader(id_images), Execution())
    found.fill((), False, "")
    OTHERS.append(1)
    with pytest.raises(Changed, match="the network changed while images were to be read"):
        found.fill((Perturbation("random", 0.05, 0.5),), False, "")
    OTHERS.clear()
    assert passes(network, lambda: MSP(network).predict_loader(make_loader(id_images)))[0] == 0
