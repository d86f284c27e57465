"""Tests of the fitted state: changes that un-fit a detector, and changes that do not."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import networks as nets
import pytest
import torch
from detector_tester import DetectorTester
from networks import TinyNet, make_images, make_loader

from openood_adascale import MSP, SCALE, AdaSCALE, Benchmark, BFAct, Energy, OptFS, evaluate
from openood_adascale.detectors.bfact import BFActSettings
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import NotFittedError
from openood_adascale.features.network import WeightsVersion

FIT, IMAGES = make_images(40, 3), make_images(20, 4)
FITTED = [name for name, method in METHODS.items() if method.detector.requires_fit]
UNFITTED = [name for name in METHODS if name not in FITTED]
fitted_methods = pytest.mark.parametrize("tester", [DetectorTester(name) for name in FITTED], ids=FITTED)


def another_network(seed=5):
    torch.manual_seed(seed)
    return TinyNet().eval()


def training_step(network):
    nets.training_step(network, IMAGES)


def set_head(network):
    network.fc = torch.nn.Linear(64, 5)


def scale_weights(network):
    with torch.no_grad():
        network.features[0].weight.mul_(1.01)


def replace_parameter(network):
    network.fc.bias = torch.nn.Parameter(network.fc.bias.detach().clone())


def update_statistics(network):
    network.train()(FIT)
    network.eval()


def replace_layer(network):
    network.features[2] = torch.nn.GELU()


CHANGES = [
    set_head, scale_weights, replace_parameter, update_statistics, replace_layer,
    lambda network: network.load_state_dict(another_network().state_dict()),
    lambda network: network.double(),
    training_step,
]  # fmt: skip


@fitted_methods
class TestFittedMethods:
    def test_not_fitted_before_fit(self, tester, network, tmp_path):
        detector = tester.make(network)
        assert not detector.is_fitted
        for ask in (
            lambda: detector.score(IMAGES), lambda: detector.predict_loader([IMAGES]), lambda: detector.is_ood(IMAGES),
            lambda: detector.threshold(), lambda: detector.fit_threshold([IMAGES]), lambda: detector.save(tmp_path / "d"),
        ):  # fmt: skip
            with pytest.raises(
                NotFittedError, match=rf"{type(detector).__name__} is not fitted: call fit\(loader\)"
            ):
                ask()
        assert not list(tmp_path.iterdir())
        assert not network.calls
        assert tester.fit(network, FIT).is_fitted

    def test_changed_weights_need_another_fit(self, tester, network):
        detector = tester.fit(network, FIT)
        scale_weights(network)
        with pytest.raises(NotFittedError, match="network: weights of TinyNet have been written or replaced"):
            detector.score(IMAGES)
        want = tester.fit(network, FIT).score(IMAGES)
        assert torch.equal(detector.fit(make_loader(FIT), progress=False).score(IMAGES), want)

    def test_attributes_hooks_methods_and_modes_do_not_count(self, tester, network):
        detector = tester.fit(network, FIT)
        want = detector.score(IMAGES)
        network.best_accuracy, network._trainer = 0.93, object()
        network.features[2].register_forward_hook(lambda module, inputs, output: None)
        network.fc.register_forward_pre_hook(lambda module, inputs: None)
        network.count = lambda: 5
        network.fc.weight.grad = torch.ones_like(network.fc.weight)
        network.requires_grad_(False)
        network.train()
        assert torch.equal(detector.score(IMAGES), want)
        assert detector.is_fitted

    def test_another_network_unfits(self, tester, network):
        detector = tester.fit(network, FIT).fit_threshold([FIT])
        detector.network = network  # the same one
        detector.score(IMAGES)
        detector.network = copy.deepcopy(network)
        assert not detector.is_fitted
        assert detector.state is detector.validation_scores is detector.summary is None
        with pytest.raises(NotFittedError, match="is not fitted"):
            detector.score(IMAGES)
        with pytest.raises(TypeError, match=r"network: str is not a torch\.nn\.Module"):
            detector.network = "resnet50"

    def test_moved_network_stays_fitted(self, tester, network):
        detector = tester.fit(network, FIT).fit_threshold([FIT])
        want = detector.score(IMAGES)
        for _ in range(2):
            network._apply(lambda tensor: tensor.clone())  # as .to(device): new memory, new buffers
            assert torch.equal(detector.score(IMAGES), want)
            detector.threshold()
        network.to("cpu")
        assert torch.equal(detector.score(IMAGES), want)
        scale_weights(network)
        with pytest.raises(NotFittedError):
            detector.score(IMAGES)

    def test_score_only_settings_take_effect_at_once(self, tester, network):
        detector = tester.fit(network, FIT).fit_threshold([FIT])
        change = {"bfact": {"order": 5}, "optfs": {"score": "energy"}}.get(
            tester.name, {"percentile": (50, 99)}
        )
        if tester.name.startswith("adascale"):
            change["variant"] = {"A": "L", "L": "A"}[detector.settings.variant]
        detector.settings = detector.settings.replace(**change)
        assert torch.equal(detector.score(IMAGES), tester.fit(network, FIT, **change).score(IMAGES))
        with pytest.raises(NotFittedError, match=r"call fit_threshold\(loader\)"):
            detector.threshold()
        detector.fit_threshold([FIT])
        detector.settings = detector.settings.replace(memory_format="contiguous", forward_batch_size=3)
        detector.threshold()
        torch.testing.assert_close(detector.score(IMAGES), tester.fit(network, FIT, **change).score(IMAGES))

    def test_settings_that_fitting_depends_on_unfit(self, tester, network):
        change = {"bfact": {"percentile": 50}, "optfs": {"bins": 3}}.get(tester.name, {"lmbda": 3})
        for more in (change, {"precision": "bfloat16"}):
            detector = tester.fit(network, FIT)
            detector.settings = detector.settings.replace(**more)
            assert not detector.is_fitted
            assert not repr(detector).endswith(", fitted")
            with pytest.raises(NotFittedError, match="is not fitted"):
                detector.score(IMAGES)
            want = tester.fit(network, FIT, **more).score(IMAGES)
            assert torch.equal(detector.fit(make_loader(FIT), progress=False).score(IMAGES), want)

    def test_buffer_that_forward_passes_write_does_not_count(self, tester):
        torch.manual_seed(0)
        network = nets.Counting().eval()
        detector = tester.fit(network, FIT).fit_threshold([FIT])
        want = detector.score(IMAGES)
        network(IMAGES)
        assert torch.equal(detector.score(IMAGES), want)
        assert torch.equal(copy.deepcopy(detector).score(IMAGES), want)
        detector.threshold()
        scale_weights(network)
        with pytest.raises(NotFittedError):
            detector.score(IMAGES)

    def test_weights_that_eval_mode_merges_do_not_count(self, tester):
        """As unmerged LoRA layers: the scores are those of eval mode, and train() parts the weights again."""
        torch.manual_seed(0)
        network = nets.Merging()
        want = tester.fit(copy.deepcopy(network).eval(), FIT).score(IMAGES)
        detector, other = tester.fit(network.train(), FIT), tester.fit(network, FIT)
        for one in (detector, detector, other):
            torch.testing.assert_close(one.score(IMAGES), want, rtol=1e-4, atol=1e-4)
        assert network.training
        scale_weights(network)
        with pytest.raises(NotFittedError):
            detector.score(IMAGES)

    def test_evaluation_does_not_fit_again(self, tester, network):
        loaders = {"near": {"a": make_loader(IMAGES)}, "far": {"b": make_loader(IMAGES)}}
        detector = tester.fit(network, FIT)
        state = detector.state
        evaluate(detector, Benchmark(make_loader(IMAGES), **loaders), progress=False)
        assert detector.state is state
        scale_weights(network)
        with pytest.raises(NotFittedError):
            evaluate(detector, Benchmark(make_loader(IMAGES), **loaders), progress=False)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_any_change_of_weights_is_noticed_by_every_call(network, tmp_path, change):
    detector = AdaSCALE(network).fit([FIT])
    detector.score(IMAGES)
    change(network)
    for ask in (
        lambda: detector.score(IMAGES), lambda: detector.is_ood(IMAGES), lambda: detector.threshold(),
        lambda: detector.predict_loader([IMAGES]), lambda: detector.save(tmp_path / "d"),
        lambda: copy.deepcopy(detector).score(IMAGES), lambda: pickle.loads(pickle.dumps(detector)).score(IMAGES),
    ):  # fmt: skip
        with pytest.raises(NotFittedError, match="network: weights of TinyNet have been written or replaced"):
            ask()
    assert not list(tmp_path.iterdir())
    assert torch.equal(detector.fit([FIT]).score(IMAGES), AdaSCALE(network).fit([FIT]).score(IMAGES))


@pytest.mark.parametrize("tester", [DetectorTester(name) for name in UNFITTED], ids=UNFITTED)
class TestMethodsWithoutFitting:
    def test_fit_reads_no_image(self, tester, network):
        class Untouchable:
            def __iter__(self):
                raise AssertionError("an image was read")

        detector = tester.make(network)
        assert detector.fit(Untouchable()) is detector
        assert detector.is_fitted
        assert detector.state is None

    def test_new_weights_and_networks_are_scored(self, tester, network):
        detector = tester.make(network)
        detector.score(IMAGES)
        for change in (scale_weights, set_head):
            change(network)
            assert torch.equal(detector.score(IMAGES), tester.make(network).score(IMAGES))
        detector.network = another_network()
        assert torch.equal(detector.score(IMAGES), tester.make(another_network()).score(IMAGES))

    def test_threshold_of_changed_weights_is_refused_until_fitted_again(self, tester, network, tmp_path):
        detector = tester.make(network).fit_threshold([FIT])
        scale_weights(network)
        for ask in (
            detector.threshold,
            lambda: detector.is_ood(IMAGES),
            lambda: detector.save(tmp_path / "d"),
        ):
            with pytest.raises(
                NotFittedError, match=r"network: weights .* call fit_threshold\(loader\) again"
            ):
                ask()
        detector.fit_threshold([FIT])
        assert detector.is_ood(IMAGES).dtype == torch.bool
        detector.save(tmp_path / "d")


@pytest.mark.parametrize("settings", [{"k1": 2}, BFActSettings(), {}, 5])
def test_settings_of_another_method_are_refused(network, settings):
    with pytest.raises(TypeError, match=r"settings: .* AdaSCALE takes AdaSCALESettings"):
        AdaSCALE(network).settings = settings


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_fitting_images_are_read_once_for_other_settings(network, method):
    """The histogram serves other settings: a search or an evaluation reads the training images no more."""
    change = {"percentile": 50} if method is BFAct else {"bins": 7}
    detector = method(network).fit([FIT])
    detector.settings = detector.settings.replace(**change)
    sweep = {"percentile_list": [40, 60]} if method is BFAct else {"bins_list": [5, 9]}
    detector.search([FIT], [IMAGES], sweep)
    want = method(network, **detector.settings.as_dict()).fit([FIT])
    assert torch.equal(detector.score(IMAGES), want.score(IMAGES))
    for more in ({"fit_split": "val"}, {"precision": "bfloat16"}):
        other = method(network, **more).fit([FIT])
        other.settings = method(network).settings
        with pytest.raises(ValueError, match="fit_loader: None"):
            other.search([FIT], [IMAGES], sweep)
    scale_weights(network)
    with pytest.raises(NotFittedError, match="network: weights"):
        detector.search([FIT], [IMAGES], sweep)


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_search_on_validation_images_fits_on_those_of_the_search(network, method):
    sweep = {"percentile_list": [40, 60]} if method is BFAct else {"bins_list": [5, 9]}
    found, want = method(network, fit_split="val").fit([FIT]), method(network, fit_split="val")
    for detector in (found, want):
        detector.search([IMAGES], [FIT], sweep)
    assert torch.equal(found.score(IMAGES), want.score(IMAGES))


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_failed_search_leaves_the_detector_as_it_was(network, method):
    detector = method(network).fit([FIT])
    state, summary, settings = detector.state, detector.summary, detector.settings
    sweep = {"percentile_list": [50, 60]} if method is BFAct else {"bins_list": [7, 9]}
    with pytest.raises(ValueError, match="it yields no images"):
        detector.search([FIT], [], sweep, fit_loader=[IMAGES])
    assert (detector.state, detector.summary, detector.settings) == (state, summary, settings)
    detector.score(IMAGES)


def test_threads_share_a_network(network):
    network.requires_grad_(False)
    want = SCALE(network).score(IMAGES)
    shared = SCALE(network)
    with ThreadPoolExecutor(4) as pool:
        for make in (lambda: SCALE(network), lambda: shared):
            for scores in pool.map(lambda _, make=make: make().score(IMAGES), range(40)):
                torch.testing.assert_close(scores, want)


def test_flags_that_a_network_sets_in_train_are_restored():
    class Thawing(TinyNet):
        def train(self, mode=True):
            for parameter in self.parameters():
                parameter.requires_grad_(mode)
            return super().train(mode)

    network = Thawing().train()
    network.fc.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in network.parameters()]
    AdaSCALE(network).fit([FIT])
    assert [parameter.requires_grad for parameter in network.parameters()] == before


def test_tripwire_keeps_no_tensor_alive(network):
    import weakref

    tripwire = WeightsVersion(network)
    assert tripwire.holds(network)
    weight = weakref.ref(network.fc.weight)
    set_head(network)
    assert weight() is None
    assert not tripwire.holds(network)


def test_repr_names_network_settings_and_state(network):
    assert repr(MSP(network)) == "MSP(TinyNet)"
    assert repr(SCALE(network, percentile=70)) == "SCALE(TinyNet, percentile=70.0)"
    assert repr(OptFS(network).fit([FIT])).endswith(", fitted")
    assert repr(Energy(network)) == "Energy(TinyNet)"


def test_scoring_goes_through_few_files(network):
    """At most 12 of our files, so that one can read the way from score to the equations."""
    import sys

    import openood_adascale

    folder = openood_adascale.__path__[0]
    loader = make_loader(FIT)
    detector = AdaSCALE(network).fit(loader, progress=False)

    def files(call):
        found = set()
        sys.setprofile(lambda frame, event, argument: found.add(frame.f_code.co_filename))
        try:
            call()
        finally:
            sys.setprofile(None)
        return {name.removeprefix(folder) for name in found if name.startswith(folder)}

    for call in (
        lambda: AdaSCALE(network).fit(loader, progress=False),
        lambda: detector.score(IMAGES),
        lambda: AdaSCALE(network).fit(loader, progress=False).score(IMAGES),
    ):
        assert len(files(call)) <= 12, sorted(files(call))
