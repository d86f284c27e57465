"""Tests that every registered method must pass, against its NumPy reference."""

from __future__ import annotations

import copy
import pickle

import networks as nets
import numpy as np
import pytest
import torch
from detector_tester import REFERENCES, SETTINGS, SWEEPS, DetectorTester, snapshot
from networks import TinyNet, make_images, make_loader
from sklearn.metrics import roc_auc_score

from openood_adascale import AdaSCALE, load_detector
from openood_adascale.detectors.registry import METHODS

FIT, IMAGES = make_images(60, 3), make_images(40, 4, shift=0.3)
every_method = pytest.mark.parametrize("tester", [DetectorTester(name) for name in METHODS], ids=METHODS)


def test_every_method_has_a_reference():
    assert set(REFERENCES) == set(METHODS)
    assert {name for name, method in METHODS.items() if method.detector.default_sweep} <= set(SWEEPS)


@every_method
class TestEveryMethod:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_scores_agree_with_reference(self, tester, network, dtype):
        detector = tester.fit(network.to(dtype), FIT, batch_size=60)
        tester.assert_agrees(detector, FIT, IMAGES)
        wide = tester.fit(copy.deepcopy(network).float(), FIT).score(IMAGES)
        assert np.corrcoef(detector.score(IMAGES), wide)[0, 1] > (0.9 if dtype == torch.bfloat16 else 0.999)

    def test_scores_agree_with_reference_in_lower_precision(self, tester, network):
        detector = tester.fit(network, FIT, batch_size=60, precision="bfloat16")
        tester.assert_agrees(detector, FIT, IMAGES)
        assert detector.score(IMAGES).dtype == tester.fit(network, FIT).score(IMAGES).dtype

    def test_scores_agree_with_reference_on_signed_activations(self, tester):
        torch.manual_seed(0)
        detector = tester.fit(nets.Transformer().eval(), FIT, batch_size=60)
        tester.assert_agrees(detector, FIT, IMAGES, rtol=1e-4)

    def test_predictions_are_classes_of_the_network(self, tester, network):
        classes, scores = tester.fit(network, FIT).predict(IMAGES)
        assert (classes.shape, scores.shape, classes.dtype) == ((40,), (40,), torch.int64)
        if tester.name not in ("scale", "adascale", "bfact"):  # these scale activations, and the bias stays
            assert torch.equal(classes, network(IMAGES).argmax(1))

    def test_batch_size_and_order_do_not_matter(self, tester, network):
        want = tester.fit(network, FIT, batch_size=60).score(IMAGES).numpy()
        order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
        detector = tester.fit(network, FIT[order], batch_size=7)
        for batch_size in (1, 33):
            loader = make_loader(IMAGES[:34], batch_size)
            _, scores, labels = detector.predict_loader(loader, progress=False)
            np.testing.assert_allclose(scores, want[:34], rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(labels, np.arange(34) % 5)
        for size in (7, 64):
            detector.settings = detector.settings.replace(forward_batch_size=size)
            network.calls.clear()
            np.testing.assert_allclose(detector.score(IMAGES), want, rtol=1e-4, atol=1e-4)
            assert max(network.calls) <= size

    def test_copies_score_the_same(self, tester, network):
        detector = tester.fit(network, FIT).fit_threshold(make_loader(FIT), progress=False)
        want = detector.score(IMAGES)
        for other in (copy.copy(detector), copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
            assert torch.equal(other.score(IMAGES), want)
            assert other.threshold(0.9) == detector.threshold(0.9)
            assert repr(other) == repr(detector)

    def test_saved_detector_scores_the_same(self, tester, network, tmp_path):
        detector = tester.fit(network, FIT).fit_threshold(make_loader(FIT), progress=False)
        path, again = tmp_path / "d é.safetensors", tmp_path / "again"
        detector.save(path)
        for load in (type(detector).load, load_detector):
            other = load(path, network)
            assert type(other) is type(detector)
            assert (other.settings, other.is_fitted) == (detector.settings, True)
            assert torch.equal(other.score(IMAGES), detector.score(IMAGES))
            np.testing.assert_array_equal(other.validation_scores, detector.validation_scores)
            other.save(again)
            assert again.read_bytes() == path.read_bytes()

    def test_network_is_left_as_it_was(self, tester, network):
        network.train()
        network.features[1].eval()
        network.features[0].weight.requires_grad_(False)
        network.fc.weight.grad = torch.ones_like(network.fc.weight)
        network.features[2].register_forward_hook(lambda module, inputs, output: None)
        images, before = IMAGES.clone(), snapshot(network)
        # Batches, as a DataLoader draws from the global random state.
        detector = tester.make(network).fit([FIT[:20]], progress=False)
        detector.score(images)
        if detector.default_sweep:
            detector.search([FIT[:20]], [images], tester.sweep, progress=False)
        assert snapshot(network) == before
        assert torch.equal(images, IMAGES)
        assert not images.requires_grad

    def test_gradient_mode_and_autocast_of_the_caller_do_not_matter(self, tester, network):
        want = tester.fit(network, FIT).score(IMAGES)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            got = tester.fit(network, FIT * 1).score(IMAGES * 1)  # inference tensors
        assert torch.equal(got, want)

    def test_default_device_and_dtype_do_not_matter(self, tester, network):
        more = {"num_samples": 20} if tester.name.startswith("adascale") else {}
        want = tester.fit(network, FIT, **more).score(IMAGES)
        try:
            torch.set_default_dtype(torch.float64)
            with torch.device("meta"):  # as set_default_device("cuda") with a network on the CPU
                got = tester.make(network, **more).fit([FIT], progress=False).score(IMAGES)
        finally:
            torch.set_default_dtype(torch.float32)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    def test_scores_are_finite_on_dead_network(self, tester):
        network = TinyNet().eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        scores = tester.fit(network, FIT).score(IMAGES)
        want = {"optfs": 0.0, "msp": 0.2}.get(tester.name, np.log(5))
        np.testing.assert_allclose(scores, np.full(40, want), rtol=1e-6)

    def test_search_runs_the_network_once_per_loader(self, tester, network, id_images, ood_images):
        if tester.name not in SWEEPS:
            pytest.skip("nothing to search")
        detector = tester.make(network)
        network.calls.clear()
        found = tester.search(detector, id_images, ood_images)
        passes = {"adascale": 2, "adascale_logit": 2}.get(tester.name, 1)
        fitting = 50 if tester.name in ("bfact", "optfs") else 0
        assert sum(network.calls) - passes * 90 - fitting <= 6  # to find the head
        assert detector.settings == found.best_settings
        truth = np.r_[np.ones(50), np.zeros(40)]
        for row in found.results.to_dict("records"):
            area = row.pop("auroc")
            row = {name: None if value is None or value != value else value for name, value in row.items()}
            alone = METHODS[tester.name].detector(network, **row).fit(make_loader(id_images), progress=False)
            scores = np.r_[alone.score(id_images), alone.score(ood_images)]
            assert area == pytest.approx(100 * roc_auc_score(truth, scores), abs=1e-6), row
            if alone.settings == found.best_settings:
                torch.testing.assert_close(
                    alone.score(ood_images), detector.score(ood_images), rtol=1e-4, atol=1e-4
                )
                assert area == found.best_auroc == found.results["auroc"].max()

    def test_constructor_names_its_settings(self, tester, network):
        detector = METHODS[tester.name].detector
        with pytest.raises(TypeError, match="percentle"):
            detector(network, percentle=80)
        with pytest.raises(TypeError, match="positional"):
            detector(network, 80)
        with pytest.raises(TypeError, match="network: str"):
            detector("resnet50")

    def test_bad_images_are_refused(self, tester, network):
        detector = tester.fit(network, FIT)
        for images, error in (
            (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError),
            (np.zeros((2, 3, 8, 8)), TypeError),
            (torch.zeros(0, 3, 8, 8), ValueError),
            (torch.full((2, 3, 8, 8), torch.nan), ValueError),
        ):
            with pytest.raises(error, match="images"):
                detector.score(images)

    def test_large_batch_is_scored_in_little_memory(self, tester, network, monkeypatch):
        detector = tester.fit(network, FIT)
        want = detector.score(IMAGES)
        monkeypatch.setattr("openood_adascale.features.statistics._BLOCK", 64 * 3 + 1)
        torch.testing.assert_close(detector.score(IMAGES), want)


@pytest.mark.parametrize("make", nets.NETWORKS, ids=lambda make: make.__name__)
def test_odd_networks_agree_with_reference(make):
    torch.manual_seed(0)
    network = make().eval()
    if next(network.parameters()).device.type == "cpu":  # a GPU is where DataParallel goes
        for tester in map(
            DetectorTester, ("msp", "scale", "bfact", "adascale")
        ):  # each kind of feature request
            tester.assert_agrees(
                tester.fit(network, FIT[:20], batch_size=20), FIT[:20], IMAGES[:9], rtol=1e-4
            )


# What is AdaSCALE's alone.


@pytest.mark.parametrize("pixels", ["trivial", "salient", "random", "all"])
def test_adascale_agrees_with_reference_for_all_pixels(network, pixels):
    tester = DetectorTester("adascale", {"pixels": pixels, "k2": 50, "lmbda": 3})
    tester.assert_agrees(tester.fit(network, FIT, batch_size=60), FIT, IMAGES)


def test_adascale_percentiles_lie_between_the_bounds(network):
    p = AdaSCALE(network, percentile=(60, 90)).fit([FIT]).percentiles(IMAGES)
    assert ((p >= 60) & (p <= 90)).all()
    assert p.unique().numel() > 1


def test_adascale_fits_on_one_image(network):
    detector = AdaSCALE(network).fit([FIT[:1]])
    assert set(detector.percentiles(IMAGES).tolist()) <= {80.0, 85.0}  # F is 0 or 1
    assert detector.percentiles(FIT[:1]).tolist() == [80.0]  # the image itself: Q' <= Q'


def test_adascale_num_samples_is_a_seeded_subset_whatever_the_order(network):
    everything = AdaSCALE(network).fit([FIT]).state
    first, again, other = (
        AdaSCALE(network, num_samples=20, seed=seed).fit([images]).state
        for seed, images in ((3, FIT), (3, FIT.flip(0)), (4, FIT))
    )
    torch.testing.assert_close(first, again)
    assert len(first) == len(other) == 20
    assert not torch.equal(first, other)
    assert set(first.tolist()) <= set(everything.tolist())
    assert torch.equal(AdaSCALE(network, num_samples=500).fit([FIT]).state, everything)


@pytest.mark.parametrize("percentile", [(1.001, 1.001), (99.999, 99.999), (1.5, 99.9)])
@pytest.mark.parametrize("variant", ["A", "L"])
def test_adascale_scores_are_finite_at_extreme_percentiles(network, percentile, variant):
    detector = AdaSCALE(network, variant=variant, percentile=percentile).fit([FIT])
    assert torch.isfinite(detector.score(IMAGES)).all()


def test_bfact_filter_is_finite_where_it_could_break():
    from openood_adascale.detectors.bfact import butterworth

    a = torch.tensor([[-2.0, 0.0, 1.0, 1e30]])
    expected = torch.tensor([-2 / 5**0.5, 0, 0.5**0.5]).double()
    torch.testing.assert_close(butterworth(a, 1.0, 1)[0, :3], expected)
    assert torch.equal(butterworth(a, -1.0, 1.5), butterworth(a, 1.0, 1.5))
    assert torch.equal(butterworth(a, 0.0, 2), torch.zeros(1, 4).double())
    for cutoff in (0.0, 1e-30, 1.0, 1e300):
        assert torch.isfinite(butterworth(a, cutoff, 100)).all()


def test_default_settings_are_those_of_the_signature(network):
    for name, method in METHODS.items():
        detector = method.detector(network)
        assert detector.settings == method.detector.settings_class(), name
        assert SETTINGS.get(name, {}).keys() <= set(detector.settings.names())
