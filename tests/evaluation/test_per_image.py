"""Files, labels and predictions of each image: the right file for the right score, or none."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import make_images, make_loader
from torch.utils import data

from openood_adascale import Benchmark, evaluate, feature_cache
from openood_adascale.data.files import ImageFiles, find_images
from openood_adascale.detectors.logits import MSP
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import SettingError
from openood_adascale.evaluation.per_image import files_of

Image = pytest.importorskip("PIL.Image")
datasets = pytest.importorskip("torchvision.datasets")


def shaded(folder, count, classes=2):
    """Pictures whose only grey value is their number, times ten."""
    for number in range(count):
        path = folder / "abcdefgh"[number % classes] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 10,) * 3).save(path)
    return folder


class Shade(torch.nn.Module):
    """Logits that tell a picture's grey value; three classes."""

    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(4, 3)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[1.0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0.5, 0]]))
            self.fc.bias.zero_()

    def forward(self, images):
        grey = images.mean((1, 2, 3))
        return self.fc(torch.stack([grey, grey**2, 1 + grey, 0.1 + grey], 1))


def as_tensor(image):
    return torch.from_numpy(np.asarray(image) / np.float32(255)).permute(2, 0, 1)


def shade_of(path):
    with Image.open(path) as image:
        return image.getpixel((0, 0))[0] / 255


@pytest.fixture
def files(tmp_path):
    return ImageFiles(find_images(shaded(tmp_path / "files", 11), "folders").paths, None, as_tensor)


def benchmark(test, near, **more):
    images = make_loader(make_images(20, 1))
    return Benchmark(test, near={"near": near}, far={"far": near}, val=images, ood_val=images, **more)


def check(result, name="near"):
    """Every score is that of the file that stands beside it."""
    known = result.images[name]
    assert len(known.paths) == len(known.labels) == len(result.scores[name]) > 0
    network = Shade()
    shades = torch.tensor([shade_of(path) for path in known.paths]).reshape(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    with torch.no_grad():
        logits = network(shades.float())
    np.testing.assert_allclose(result.scores[name], logits.softmax(1).amax(1), rtol=1e-4)
    np.testing.assert_array_equal(known.predictions, logits.argmax(1))
    return known


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_score_has_its_file(files, tmp_path, store, workers):
    chosen = [7, 2, 9, 3, 3]
    kinds = {
        "files": files,
        "folder": datasets.ImageFolder(tmp_path / "files", as_tensor),
        "subset": data.Subset(files, chosen),
        "both": data.ConcatDataset([data.Subset(files, chosen), files]),
    }
    near = {kind: data.DataLoader(each, batch_size=4, num_workers=workers) for kind, each in kinds.items()}
    loaders = Benchmark(make_loader(make_images(20, 1)), near, {"far": make_loader(make_images(9, 2))})
    with feature_cache(tmp_path / "cache" if store else False):
        for _ in range(2 if store else 1):  # the second from the cache
            result = evaluate(MSP(Shade()), loaders, known_accuracy=1.0, progress=False)
            for kind in kinds:
                known = check(result, kind)
                assert known.percentiles is None
            assert list(result.images["subset"].paths) == [files.paths[i] for i in chosen]
            assert result.images["folder"].labels.tolist() == [0] * 6 + [1] * 5
            assert result.images["far"].paths == ()
            assert result.images["id"].labels.tolist() == [i % 5 if i % 5 < 3 else -1 for i in range(20)]


def test_last_batch_may_be_left_out(files):
    loader = data.DataLoader(files, batch_size=4, drop_last=True)
    result = evaluate(MSP(Shade()), benchmark(make_loader(make_images(20, 1)), loader), known_accuracy=1.0)
    assert len(check(result)) == 8


IN_ORDER = "in_order" in inspect.signature(data.DataLoader).parameters


class OtherFolder(datasets.ImageFolder):
    def __getitem__(self, index):
        return super().__getitem__(len(self) - 1 - index)


class Loader(data.DataLoader):
    pass


class Every(data.Sampler):
    def __init__(self, files):
        self.files = files

    def __iter__(self):
        return iter(range(len(self.files)))

    def __len__(self):
        return len(self.files)


def fewer(batch):
    return data.default_collate(batch[1:])


class Stream(data.IterableDataset):
    paths = ("a",) * 3

    def __iter__(self):
        return iter([(torch.rand(3, 8, 8), 0)] * 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda files: data.DataLoader(files, 4, shuffle=True),
        lambda files: data.DataLoader(files, sampler=data.RandomSampler(files)),
        # Its loader.sampler is a sequential one, which is not used.
        lambda files: data.DataLoader(
            files, batch_sampler=data.BatchSampler(data.RandomSampler(files), 4, False)
        ),
        lambda files: data.DataLoader(files, sampler=Every(files)),
        lambda files: data.DataLoader(files, sampler=data.SequentialSampler(range(3))),
        lambda files: data.DataLoader(files, batch_size=None),
        lambda files: data.DataLoader(files, 4, collate_fn=fewer),
        # From torch 2.6 on; earlier ones have nothing of the kind.
        lambda files: data.DataLoader(files, 4, num_workers=1, in_order=False) if IN_ORDER else [],
        lambda files: Loader(files, 4),
        lambda files: list(data.DataLoader(files, 4)),
        lambda files: data.DataLoader(OtherFolder(Path(files.paths[0]).parents[1], as_tensor), 4),
        lambda files: data.DataLoader(Stream(), 4),
        lambda files: make_loader(make_images(6, 1)),
        lambda files: data.DataLoader(_with_paths(["a"]), 4),
        lambda files: data.DataLoader(_with_paths([1] * 6), 4),
    ],
)
def test_loader_of_unknown_order_or_files_has_no_paths(files, make):
    assert files_of(make(files)) == ()


def _with_paths(paths):
    dataset = data.TensorDataset(make_images(6, 1))
    dataset.paths = paths
    return dataset


def test_dataset_with_an_attribute_paths_has_files():
    assert files_of(data.DataLoader(_with_paths(list("abcdef")), 4)) == tuple("abcdef")


def test_loader_that_yields_other_images_than_files_has_no_paths(files):
    class Shrinking(ImageFiles):
        """One file more than images."""

        def __len__(self):
            return 9

    shrinking = Shrinking(files.paths[:10], None, as_tensor)
    known = benchmark(make_loader(make_images(20, 1)), data.DataLoader(shrinking, batch_size=3))
    result = evaluate(MSP(Shade()), known, known_accuracy=1.0, progress=False, cache_dir=False)
    assert result.images["near"].paths == ()


def test_percentiles_are_those_of_the_detector(network, data):
    detectors = {name: METHODS[name].detector(network) for name in ("msp", "adascale", "adascale_logit")}
    results = evaluate(detectors, data, progress=False)
    for name in ("adascale", "adascale_logit"):
        for key, loader in {"id": data.test, **data.near, **data.far}.items():
            known = results[name].images[key]
            want = detectors[name].percentiles(loader.dataset.tensors[0])
            np.testing.assert_allclose(known.percentiles, want, rtol=1e-6)
            assert known.percentiles.dtype == np.float64
    assert all(known.percentiles is None for known in results["msp"].images.values())
    full = evaluate(detectors["adascale"], data, full_spectrum=True, progress=False)
    assert len(full.images["id"].percentiles) == len(full.images["id"].labels) == 40


def test_full_spectrum_joins_the_id_sets(files, tmp_path):
    loader = data.DataLoader(files, batch_size=4)
    other = data.DataLoader(data.Subset(files, [1, 0]), batch_size=4)
    known = benchmark(loader, loader, covariate_shift={"shifted": other})
    result = evaluate(MSP(Shade()), known, full_spectrum=True, known_accuracy=1.0, progress=False)
    assert list(check(result, "id").paths) == [*files.paths, files.paths[1], files.paths[0]]
    known.covariate_shift = {"shifted": data.DataLoader(files, batch_size=4, shuffle=True)}
    result = evaluate(MSP(Shade()), known, full_spectrum=True, known_accuracy=1.0, progress=False)
    assert result.images["id"].paths == ()


def test_class_names_are_those_of_benchmark_or_folders(files):
    def classes(names, **more):
        test = data.DataLoader(ImageFiles(files.paths, [0] * 11, as_tensor, names), batch_size=4)
        found = evaluate(MSP(Shade()), benchmark(test, test, **more), progress=False)
        return found.classes

    assert classes(["a", "b", "c"]) == ("a", "b", "c")
    assert classes(["a"]) == ()  # a folder of unlabelled images
    with pytest.raises(SettingError, match=r"2 class folders .*3, one for each of the network's 3 classes"):
        classes(["a", "b"])
    assert classes(["y", "x"], classes=["x", "y", "z"]) == ("x", "y", "z")
    with pytest.warns(UserWarning, match="2 names are left out; the network has 3 classes"):
        assert classes([], classes=["x", "y"]) == ()


class Inferring:
    """OpenOOD's postprocessor methods, and whatever they return."""

    APS_mode = False

    def __init__(self, predictions, labels):
        self.found = predictions, labels

    def setup(self, *args):
        pass

    def inference(self, net, loader, progress=True):
        with torch.no_grad():
            logits = torch.cat([net(batch[0]) for batch in loader])
        predictions, labels = (value(logits) if callable(value) else value for value in self.found)
        return predictions, logits.softmax(1).amax(1).numpy(), labels


def test_postprocessor_has_files_predictions_and_labels(files):
    loader = data.DataLoader(files, batch_size=4)
    known = benchmark(loader, loader)
    method = Inferring(lambda logits: logits.argmax(1), lambda logits: np.zeros(len(logits), int))
    found = check(evaluate(method, known, Shade(), progress=False, known_accuracy=1.0))
    assert found.labels.tolist() == [0] * 11
    for nothing in (None, "text", np.zeros(3, int), np.zeros(11)):
        result = evaluate(Inferring(nothing, nothing), known, Shade(), progress=False, known_accuracy=1.0)
        images = result.images["near"]
        assert images.predictions.tolist() == images.labels.tolist() == [-1] * 11
