"""Tests of the feature cache: forward passes saved, cache keys, uncacheable inputs."""

from __future__ import annotations

import datetime
import functools
import importlib.util
import random
import re
import sys
import warnings
from contextlib import contextmanager

import networks as nets
import numpy as np
import pytest
import torch
from detector_tester import DetectorTester, snapshot
from networks import HEAD, TinyNet, make_images, make_loader
from PIL import Image
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

from openood_adascale import MSP, AdaSCALE, Benchmark, BFAct, OptFS, evaluate, feature_cache
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import NotFiniteError
from openood_adascale.features import cache as cache_module
from openood_adascale.features import fingerprint
from openood_adascale.features.cache import FeatureCache, current_cache

RANDOM = {"percentile": (60, 80), "k1": 5, "k2": 50, "pixels": "random"}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD", 16)
    monkeypatch.delenv(cache_module.VARIABLE, raising=False)


@pytest.fixture
def cache(tmp_path):
    with feature_cache(tmp_path / "cache") as found:
        yield found


class Counted(Dataset):
    """Counts how often each image is read; ``cache_key`` says that its images are always the same."""

    def __init__(self, seed, count=40, shift=0.0):
        self.images, self.cache_key = make_images(count, seed, shift), (seed, shift)
        self.reads = [0] * count

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.images[index], index % 5


def run_count(network, call):
    """Return the number of images that run through the network during a call, and its result."""
    network.calls.clear()
    found = call()
    return sum(network.calls), found


def predict(network, loader, **settings):
    return MSP(network, **settings).predict_loader(loader, progress=False)[1]


@contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def recorded():
    """Yield a list that is filled with the texts of the cache's warnings."""
    texts = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        yield texts
    texts += [str(one.message) for one in found if str(one.message).startswith("cache: ")]


def quiet(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return call()


# Number of reads and forward passes.


@pytest.fixture
def datasets():
    names = ("test", "near", "far", "val", "ood_val", "train")
    return {name: Counted(seed, 20 + 7 * seed, shift=seed / 5) for seed, name in enumerate(names)}


def benchmark_of(datasets):
    loaders = {name: DataLoader(dataset, 8) for name, dataset in datasets.items()}
    return Benchmark(near={"near": loaders.pop("near")}, far={"far": loaders.pop("far")}, **loaders)


def evaluate_all(network, datasets, **more):
    detectors = {name: DetectorTester(name).make(network) for name in METHODS}
    results = evaluate(detectors, benchmark_of(datasets), progress=False, **more)
    return {name: result.scores for name, result in results.items()}


def assert_equal_scores(found, want):
    for name, sets in want.items():
        for key, scores in sets.items():
            np.testing.assert_array_equal(found[name][key], scores, err_msg=f"{name}, {key}")


def test_evaluation_of_all_methods_reads_and_runs_each_image_once(network, datasets, tmp_path):
    plain = evaluate_all(network, datasets)
    for dataset in datasets.values():
        assert set(dataset.reads) == {1}
        dataset.reads = [0] * len(dataset)
    total = sum(map(len, datasets.values()))
    passes = 2 * total - len(datasets["train"])  # a and a_ε; training images need no a_ε
    runs, filled = run_count(network, lambda: evaluate_all(network, datasets, cache_dir=tmp_path / "cache"))
    for dataset in datasets.values():
        # At most two images are read again, to see whether they are random.
        assert set(dataset.reads) <= {1, 2}
        assert dataset.reads.count(2) <= 2
        dataset.reads = [0] * len(dataset)
    assert passes <= runs <= passes + HEAD + 1
    again, found = run_count(network, lambda: evaluate_all(network, datasets, cache_dir=tmp_path / "cache"))
    assert again == 0
    assert not any(any(dataset.reads) for dataset in datasets.values())
    assert_equal_scores(filled, plain)
    assert_equal_scores(found, plain)


def test_fingerprints_are_computed_once_per_loader_and_network_and_only_for_a_cache(
    network, datasets, tmp_path, monkeypatch
):
    counts = {"network_key": 0, "dataset_key": 0}

    def counted(name, original):
        def call(*arguments):
            counts[name] += 1
            return original(*arguments)

        return call

    for name in counts:
        monkeypatch.setattr(cache_module, name, counted(name, getattr(fingerprint, name)))
    evaluate_all(network, datasets)
    assert counts == {"network_key": 0, "dataset_key": 0}
    for times in (1, 2):
        evaluate_all(network, datasets, cache_dir=tmp_path / "cache")
        assert counts == {"network_key": times, "dataset_key": times * len(datasets)}


def test_settings_without_new_perturbation_need_no_forward_pass(cache, network, id_images):
    loader = make_loader(id_images)

    def runs(method=AdaSCALE, **settings):
        return run_count(network, lambda: method(network, **settings).fit(loader, progress=False))[0]

    assert 100 < runs(**RANDOM) <= 100 + 2 * HEAD
    assert runs(**{**RANDOM, "epsilon": 0.2}) <= 100 + HEAD
    assert runs(**{**RANDOM, "pixels": "trivial"}) <= 100 + HEAD  # its gradient needs the image's own pass
    for change in ({"percentile": (70, 90)}, {"k1": 1}, {"k2": 100}, {"lmbda": 1}, {"variant": "L"}):
        assert runs(**{**RANDOM, **change}) == 0
    assert runs(OptFS, fit_split="val") == runs(BFAct) == 0


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("own_generator", [False, True])
def test_cache_keeps_order_labels_and_random_draws_of_the_loader(
    network, id_images, tmp_path, shuffle, workers, own_generator
):
    dataset = TensorDataset(id_images, torch.arange(50))

    def found(seed):
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed) if own_generator else None
        loader = DataLoader(dataset, 8, shuffle=shuffle, num_workers=workers, generator=generator)
        return *MSP(network).predict_loader(loader, progress=False), torch.rand(3, generator=generator)

    want = {seed: found(seed) for seed in (0, 1)}
    with feature_cache(tmp_path):
        for seed in (0, 1, 0):
            for got, expected in zip(found(seed), want[seed], strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("network_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_cached_scores_keep_their_dtype(network, id_images, tmp_path, network_dtype, precision):
    network.to(network_dtype)
    want = predict(network, make_loader(id_images), precision=precision)
    for _ in range(2):
        with feature_cache(tmp_path):
            found = predict(network, make_loader(id_images), precision=precision)
        assert found.dtype == want.dtype
        np.testing.assert_array_equal(found, want)


def test_images_that_are_not_finite_are_named(cache, network):
    images = make_images(50, 1)
    images[37, 0, 0, 0] = torch.nan
    with pytest.raises(NotFiniteError) as error:
        predict(network, make_loader(images))
    assert error.value.rows == [37]


# Keys.


def test_changed_input_is_extracted_again(tmp_path, network, id_images):
    def runs(images=id_images, make=make_loader, tag=None, **settings):
        with feature_cache(tmp_path, tag):
            return run_count(network, lambda: predict(network, make(images), **settings))[0]

    assert runs() == 50 + HEAD
    assert runs() == 0
    assert runs(make=lambda images: make_loader(images, 9, shuffle=True)) == 0
    assert runs(make=lambda images: make_loader(images, 20, drop_last=True)) == 0
    for change in (
        lambda: network.fc.bias.data.add_(1),
        lambda: network.features[1].running_mean.add_(1),
        lambda: network.load_state_dict(TinyNet().state_dict()),
        lambda: setattr(network.features, "2", nn.LeakyReLU()),
        lambda: setattr(network.features[2], "negative_slope", 0.3),
        lambda: id_images[3].add_(1),
    ):
        change()
        assert runs() == 50 + HEAD
        assert runs() == 0
    assert runs(id_images[:20]) == 20 + HEAD
    assert runs(id_images[:1]) <= 1 + HEAD + 1
    assert runs(memory_format="contiguous") == 50 + HEAD
    assert runs(precision="bfloat16") == 50 + HEAD
    assert runs(precision="auto") == 0  # one of the two
    assert runs(tag="a") == 50 + HEAD
    assert runs(tag="b") == 50 + HEAD
    assert runs(tag="a") == 0

    def parts(images):
        labels = torch.arange(50)
        first, second = (
            TensorDataset(images[:25], labels[:25]),
            Subset(TensorDataset(images, labels), range(25, 50)),
        )
        return DataLoader(ConcatDataset([first, second]), 16)

    assert runs(make=parts) == 50 + HEAD
    assert runs(make=parts) == 0


def test_changed_weights_within_a_block_are_seen(cache, network, id_images):
    loader = make_loader(id_images)
    first = predict(network, loader)
    with torch.no_grad():
        network.fc.weight.mul_(2)
    second = predict(network, loader)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(second, MSP(network).score(id_images))


def layer_of(scale, folder, name):
    """Return a network whose class comes from a file of the user's."""
    path = folder / f"{name}.py"
    path.write_text(
        "from networks import TinyNet\nclass Own(TinyNet):\n    def forward(self, images):\n"
        f"        return super().forward(images * {scale})\n"
    )
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    sys.modules[name] = module
    return module.Own().eval()


def test_source_of_the_network_classes_is_part_of_the_key(cache, id_images, tmp_path):
    loader = make_loader(id_images)
    found = []
    for number, scale in enumerate((1, 2, 1)):
        network = layer_of(scale, tmp_path, f"own_network_{number}")
        runs, scores = run_count(network, lambda network=network: predict(network, loader))
        assert runs == (0 if number == 2 else 50 + HEAD)
        np.testing.assert_array_equal(scores, MSP(network).score(id_images) if number == 1 else scores)
        found.append(scores)
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.allclose(found[0], found[1])


# Inputs that are not cached.


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "images" / "a"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        Image.fromarray(rng.integers(0, 255, (8, 8, 3)).astype("uint8")).save(place / f"{number}.png")
    return place.parent


def to_tensor(image):
    return transforms.functional.to_tensor(image)


def gain(image, by):
    return transforms.functional.to_tensor(image) * by


class Own:
    def __call__(self, image):
        return transforms.functional.to_tensor(image)


class Locked(Own):
    def __init__(self):
        self.generator = torch.Generator()


def local_class():
    class Local(Own):
        def __repr__(self):
            return "Local()"

    return Local()


flip = transforms.RandomHorizontalFlip()
UNSTABLE = {
    "lambda": lambda: transforms.Lambda(lambda image: transforms.functional.to_tensor(image)),
    "function": lambda: to_tensor,
    "partial": lambda: functools.partial(gain, by=2.0),
    "class": Own,
    "local class": local_class,
    "bound method": lambda: Own().__call__,
    "method": lambda: Own.__call__.__get__(Own()),
    "generator": Locked,
}


@pytest.mark.parametrize("kind", UNSTABLE)
def test_transform_without_stable_repr_is_not_cached_unless_tagged(tmp_path, folder, network, kind):
    dataset = ImageFolder(folder, UNSTABLE[kind]())
    loader = DataLoader(dataset, 4)
    want = predict(network, loader)
    with feature_cache(tmp_path / "cache"):
        with recorded() as told:
            first = predict(network, loader)
            second = predict(network, DataLoader(dataset, 4))
        assert re.fullmatch(
            "cache: the images of ImageFolder are not cached: .*cache_tag=TEXT.*", "|".join(told)
        )
    np.testing.assert_array_equal(first, want)
    np.testing.assert_array_equal(second, want)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    for tag, expected in (("v1", 8 + HEAD), ("v1", 0), ("v2", 8 + HEAD)):
        with feature_cache(tmp_path / "cache", tag), no_warning():
            runs, scores = run_count(network, lambda: predict(network, DataLoader(dataset, 4)))
        assert runs == expected
        np.testing.assert_array_equal(scores, want)


class Drawing(Counted):
    """Images of a random preprocessing."""

    def __init__(self, kind):
        super().__init__(1)
        self.kind, self.own = kind, np.random.default_rng(0)

    def __getitem__(self, index):
        drawn = {
            "torch": lambda: torch.rand(()),
            "numpy": lambda: np.random.rand(),  # noqa: NPY002
            "python": random.random,
            "own": self.own.random,
        }[self.kind]()
        return self.images[index] + 0.1 * float(drawn), 0


@pytest.mark.parametrize("kind", ["torch", "numpy", "python", "own"])
@pytest.mark.parametrize("workers", [0, 1])
def test_random_images_are_not_cached(tmp_path, network, kind, workers):
    if (kind, workers) == ("own", 1):
        pytest.skip("a generator of its own draws the same in a new process")
    loader = DataLoader(Drawing(kind), 16, num_workers=workers, generator=torch.Generator())
    before = snapshot(network)
    with feature_cache(tmp_path) as cache, recorded() as told:
        inference = MSP(network).settings.inference
        assert not cache.entry(MSP(network).extractor, loader, inference).fill(())
        if workers:  # without workers, reading draws as it does without a cache
            assert snapshot(network) == before
        for _ in range(2):
            assert run_count(network, lambda: predict(network, loader))[0] >= 40
    assert re.fullmatch(
        "cache: the images of Drawing are not cached: its images are random.*", "|".join(told)
    )
    assert not list(tmp_path.rglob("*.safetensors"))


class Noisy(TinyNet):
    def forward(self, images):
        self.calls.append(len(images))
        return self.fc(self.features(images) + 0.01 * torch.rand(64))


@pytest.mark.parametrize("make", [nets.BatchStatistics, Noisy])
def test_random_or_batch_dependent_network_is_not_cached(tmp_path, make, id_images):
    torch.manual_seed(0)
    network, loader = make().eval(), make_loader(id_images)
    want = quiet(lambda: predict(network, loader))
    for tag in (None, "tag"):
        with feature_cache(tmp_path, tag), recorded() as told:
            for _ in range(2):
                runs, found = run_count(network, lambda: predict(network, loader))
                assert runs >= 50
                np.testing.assert_allclose(found, want, rtol=0.2 if make is Noisy else 1e-6)
        assert len(told) == 1
        assert "cache_tag" not in told[0]  # it would not help
    assert not list(tmp_path.rglob("*.safetensors"))


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(make_images(20, 1), range(20), strict=True))


class MyLoader(DataLoader):
    pass


class Unknown(Dataset):
    def __init__(self):
        self.images = make_images(20, 1)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return self.images[index], 0


@pytest.mark.parametrize(
    ("make", "tag_helps"),
    [
        (lambda: [make_images(20, 1)], False), (lambda: DataLoader(Stream(), 8), False),
        (lambda: MyLoader(Counted(1, 20), 8), False),
        (lambda: DataLoader(Unknown(), 8), True),
        (lambda: DataLoader([(image, 0) for image in make_images(20, 1)], 8), True),
    ],
    ids=["list", "stream", "own loader", "own dataset", "list dataset"],
)  # fmt: skip
def test_loader_that_cannot_be_fingerprinted_is_not_cached(tmp_path, network, make, tag_helps):
    loader = make()
    want = predict(network, loader)
    with feature_cache(tmp_path), recorded() as told:
        for _ in range(2):
            runs, found = run_count(network, lambda: predict(network, loader))
            assert runs >= 20
            np.testing.assert_allclose(found, want, rtol=1e-6)
    assert len(told) == 1
    assert ("cache_tag" in told[0]) is tag_helps
    with feature_cache(tmp_path, "tag"):
        quiet(lambda: predict(network, loader))
        runs, found = run_count(network, lambda: quiet(lambda: predict(network, loader)))
    assert (runs == 0) is tag_helps
    np.testing.assert_allclose(found, want, rtol=1e-6)


# Choice of the cache.


def test_cache_is_chosen_by_argument_block_or_environment(tmp_path, network, id_images, monkeypatch):
    assert current_cache() is None
    with feature_cache(tmp_path / "a", "tag") as outer:
        assert current_cache() is outer
        with feature_cache(None) as inner:
            assert (inner.directory, inner.tag) == (outer.directory, "tag")
        with feature_cache(False):
            assert current_cache() is None
        with feature_cache(tmp_path / "b"):
            assert current_cache().directory == tmp_path / "b"
        assert current_cache() is outer
    assert current_cache() is None
    monkeypatch.setenv(cache_module.VARIABLE, str(tmp_path / "c"))
    assert current_cache().directory == tmp_path / "c"
    loader = make_loader(id_images)
    assert [run_count(network, lambda: predict(network, loader))[0] for _ in range(2)] == [50 + HEAD, 0]
    with feature_cache(False):
        assert run_count(network, lambda: predict(network, loader))[0] >= 50
    monkeypatch.setenv(cache_module.VARIABLE, " ")
    assert current_cache() is None


def test_empty_dataset_has_no_entry(cache, network):
    loader = DataLoader(TensorDataset(torch.zeros(0, 3, 8, 8), torch.zeros(0)), 8)
    with pytest.raises(ValueError, match="it yields no images"):
        predict(network, loader)


def test_entries_are_described_and_removed(cache, network, id_images, tmp_path):
    AdaSCALE(network, **RANDOM).fit(make_loader(id_images), progress=False)
    (entry,) = FeatureCache(cache.directory).entries()
    created = datetime.datetime.fromisoformat(entry.about["created"])
    assert abs(datetime.datetime.now() - created) < datetime.timedelta(hours=1)
    described = {key: entry.about[key] for key in ("N", "network", "dataset", "root")}
    assert described == {"N": 50, "network": "TinyNet", "dataset": "TensorDataset", "root": ""}
    assert entry.size > 50 * 64 * 2 * 4
    (entry.folder.parent / "a file").touch()
    (entry.folder.parent / "a link").symlink_to(tmp_path)
    assert [one.folder for one in FeatureCache(cache.directory).entries()] == [entry.folder]
    entry.remove()
    assert FeatureCache(cache.directory).entries() == []


@pytest.mark.parametrize("attribute", ["root", "data_dir"])
def test_entry_names_the_folder_of_its_images(cache, network, attribute):
    images = Counted(1)
    setattr(images, attribute, "pictures")
    predict(network, DataLoader(images, 8))
    (entry,) = FeatureCache(cache.directory).entries()
    assert entry.about["root"] == "pictures"
