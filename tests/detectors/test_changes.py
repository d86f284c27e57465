"""A network or settings that changed after fit are noticed, and served where they can be."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import networks as tv
import pytest
import torch
from tiny import TinyNet, make_loader

from openood_adascale import AdaSCALE, Benchmark, evaluate, using_store
from openood_adascale.detectors.bfact import BFAct, BFActSettings
from openood_adascale.detectors.energy import Energy
from openood_adascale.detectors.lts import LTS
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.detectors.scale import SCALE
from openood_adascale.evidence.collect import collect

SETTINGS = {"percentile": (60, 90), "k1": 5, "k2": 20}
METHODS = [AdaSCALE, BFAct, OptFS]


# What changes after fit.


def another(seed=5):
    torch.manual_seed(seed)
    return TinyNet().eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("change", ["network", "head", "weights", "layer", "data"])
def test_another_network_after_fit_is_noticed(network, id_images, method, change):
    detector = method(network).fit([id_images])
    detector.score(id_images)
    if change == "network":
        detector.network = another()
    elif change == "head":
        network.fc = torch.nn.Linear(64, 5)
    elif change == "weights":
        with torch.no_grad():
            network.features[0].weight.mul_(1.01)
    elif change == "layer":
        network.features[2] = torch.nn.GELU()
    else:
        network.load_state_dict(another().state_dict())
    with pytest.raises(RuntimeError, match=r"network: its layers or weights .* fitted with; call fit"):
        detector.score(id_images)
    with pytest.raises(RuntimeError, match="network: "):
        detector.predict_loader([id_images])
    want = method(detector.network).fit([id_images]).score(id_images)
    torch.testing.assert_close(detector.fit([id_images]).score(id_images), want)


@pytest.mark.parametrize("method", [MSP, Energy, SCALE, LTS])
def test_what_needs_no_fit_serves_another_network(network, id_images, method):
    detector = method(network)
    detector.score(id_images)
    network.fc = torch.nn.Linear(64, 5)
    torch.testing.assert_close(detector.score(id_images), method(network).score(id_images))
    detector.network = another()
    torch.testing.assert_close(detector.score(id_images), method(another()).score(id_images))


@pytest.mark.parametrize("method", METHODS)
def test_the_same_network_elsewhere_is_served(network, id_images, method):
    detector = method(network).fit([id_images])
    want = detector.score(id_images)
    detector.network = copy.deepcopy(network)
    torch.testing.assert_close(detector.score(id_images), want)
    network.to("meta").to_empty(device="cpu").load_state_dict(detector.network.state_dict())
    detector.network = network  # its weights lie elsewhere now
    torch.testing.assert_close(detector.score(id_images), want)
    twin = copy.deepcopy(detector)
    torch.testing.assert_close(twin.score(id_images), want)
    torch.testing.assert_close(pickle.loads(pickle.dumps(detector)).score(id_images), want)


@pytest.mark.parametrize("make", [tv.Counting, tv.Merging])
def test_what_the_pass_itself_changes_is_no_change(id_images, make):
    torch.manual_seed(0)
    detector = AdaSCALE(make()).fit(make_loader(id_images))
    first = detector.score(id_images)
    torch.testing.assert_close(detector.score(id_images), first)


def test_settings_changed_after_fit(network, id_images):
    detector = AdaSCALE(network, **SETTINGS).fit([id_images])
    for change in ({"percentile": (70, 95)}, {"variant": "L"}):  # not learnt with: served
        detector.settings = detector.settings.replace(**change)
        want = AdaSCALE(network, detector.settings).fit([id_images]).score(id_images)
        torch.testing.assert_close(detector.score(id_images), want)
    detector.settings = detector.settings.replace(lmbda=1000, epsilon=0.25)
    with pytest.raises(
        RuntimeError, match=r"settings: lmbda is 1000.0 and was 10.0, epsilon is 0.25 and was 0.5"
    ):
        detector.score(id_images)
    with pytest.raises(RuntimeError, match="settings: "):
        detector.percentiles(id_images)
    with pytest.raises(RuntimeError, match="settings: "):
        detector.predict_loader([id_images])


@pytest.mark.parametrize(
    ("method", "change"),
    [(BFAct, {"percentile": 60}), (BFAct, {"order": 5}), (OptFS, {"bins": 7}), (OptFS, {"score": "energy"})],
)
def test_what_was_counted_serves_other_settings(network, id_images, method, change):
    detector = method(network).fit([id_images])
    detector.settings = detector.settings.replace(**change)
    want = method(network, **change).fit([id_images]).score(id_images)
    torch.testing.assert_close(detector.score(id_images), want)
    served = detector.settings
    for other in ({"learn_from": "val"}, {"precision": "bfloat16"}):
        detector.settings = served.replace(**other)
        with pytest.raises(RuntimeError, match=f"settings: {next(iter(other))} is"):
            detector.score(id_images)


@pytest.mark.parametrize("settings", [{"k1": 2}, BFActSettings(), {}, 5])
def test_other_settings_are_refused(network, settings):
    with pytest.raises(TypeError, match=r"settings: .* AdaSCALE takes AdaSCALESettings"):
        AdaSCALE(network, settings)
    with pytest.raises(TypeError, match="AdaSCALE takes AdaSCALESettings"):
        AdaSCALE(network).settings = settings


@pytest.mark.parametrize("method", [BFAct, OptFS])
def test_a_summary_of_another_network_is_not_searched_with(network, id_images, ood_images, method):
    sweep = {"order_list": [1.0, 3.0]} if method is BFAct else {"bins_list": [5, 50]}
    detector = method(network).fit([id_images])
    detector.search([id_images], [ood_images], sweep)
    detector.network = another()
    with pytest.raises(ValueError, match=r"learn_loader: None .*another network, precision or source"):
        detector.search([id_images], [ood_images], sweep)
    detector.search([id_images], [ood_images], sweep, learn_loader=[id_images])
    want = method(another(), detector.settings).fit([id_images]).score(ood_images)
    torch.testing.assert_close(detector.score(ood_images), want)
    for change in ({"precision": "bfloat16"}, {"learn_from": "val"}):
        other = method(network, **change).fit([id_images])
        other.settings = method(network).settings
        with pytest.raises(ValueError, match="learn_loader: None"):
            other.search([id_images], [ood_images], sweep)


@pytest.mark.parametrize("method", METHODS)
def test_a_head_that_the_networks_mode_changes(id_images, method):
    """Merged in eval mode, apart in train mode: what is judged with is the merged one."""
    torch.manual_seed(0)
    network = tv.Merging()
    with torch.no_grad():
        network.delta.mul_(10)
    want = method(copy.deepcopy(network).eval()).fit([id_images]).score(id_images)
    torch.testing.assert_close(method(network.train()).fit([id_images]).score(id_images), want)
    assert network.training


@pytest.mark.parametrize("method", METHODS)
def test_a_counter_in_the_network_is_no_change(id_images, method):
    torch.manual_seed(0)
    network = tv.Counting().eval()
    detector = method(network).fit([id_images])
    want = detector.score(id_images)
    network(id_images)
    torch.testing.assert_close(detector.score(id_images), want)
    network(id_images)
    sets = {"near": {"a": [id_images]}, "far": {"b": [id_images]}}
    labelled = [(id_images, torch.zeros(50, dtype=torch.int64))]
    evaluate(detector, Benchmark(labelled, **sets), progress=False)
    with torch.no_grad():
        network.fc.bias.add_(1)
    with pytest.raises(RuntimeError, match="network: its layers or weights"):
        detector.score(id_images)


@pytest.mark.parametrize("where", ["body", "head"])
def test_hooks_that_come_later_are_noticed(network, id_images, where):
    detector = AdaSCALE(network).fit([id_images])
    detector.score(id_images)
    if where == "body":
        handle = network.features[2].register_forward_hook(
            lambda module, inputs, output: output.clamp(max=0.3)
        )
    else:
        handle = network.fc.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)
    with pytest.raises(RuntimeError, match="network: its layers"):
        detector.score(id_images)
    handle.remove()
    detector.score(id_images)


def test_settings_that_do_not_enter_ask_for_no_fit(network, id_images):
    detector = AdaSCALE(network).fit([id_images])
    detector.settings = detector.settings.replace(seed=7)
    detector.score(id_images)
    everywhere = AdaSCALE(network, pixels="all").fit([id_images])
    everywhere.settings = everywhere.settings.replace(o=0.5)
    everywhere.score(id_images)
    detector.settings = detector.settings.replace(num_samples=10)
    with pytest.raises(RuntimeError, match="num_samples"):
        detector.score(id_images)


def test_flags_that_a_networks_train_sets_are_put_back(id_images):
    class Thawing(TinyNet):
        def train(self, mode=True):
            for parameter in self.parameters():
                parameter.requires_grad_(mode)
            return super().train(mode)

    network = Thawing().train()
    network.fc.weight.requires_grad_(False)
    before = [parameter.requires_grad for parameter in network.parameters()]
    AdaSCALE(network).fit([id_images])
    assert [parameter.requires_grad for parameter in network.parameters()] == before


def test_running_statistics_stay(id_images):
    class Stubborn(TinyNet):
        def eval(self):
            return self

    network = Stubborn().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    AdaSCALE(network, variant="L").fit([id_images])
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_threads_that_share_a_network(network, id_images):
    network.requires_grad_(False)
    want = Energy(network).score(id_images)
    shared = Energy(network)
    with ThreadPoolExecutor(8) as pool:
        for make in (lambda: Energy(network), lambda: shared):
            for scores in pool.map(lambda _, make=make: make().score(id_images), range(80)):
                torch.testing.assert_close(scores, want)


class Scaled(TinyNet):
    """What it computes depends on a plain attribute and on a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.gain = 1.0
        self.shift = [torch.zeros(())]

    def forward(self, images):
        return super().forward(images * self.gain + self.shift[0])


@pytest.mark.parametrize("change", ["attribute", "tensor", "data"])
def test_what_no_hook_or_version_shows(change, id_images):
    """A number, a tensor in a list, weights written through .data: looked at once per loader, for fit and scores."""
    torch.manual_seed(0)
    network = Scaled().eval()
    loader = make_loader(id_images)
    detector = AdaSCALE(network, **SETTINGS).fit(loader)
    before = detector.state
    if change == "attribute":
        network.gain = 4.0
    elif change == "tensor":
        network.shift[0].add_(1)
    else:
        network.features[0].weight.data.mul_(3)
    with pytest.raises(RuntimeError, match="its layers or weights are not those"):
        detector.predict_loader(loader)
    if change == "attribute":
        with pytest.raises(RuntimeError, match="its layers or weights are not those"):
            detector.score(id_images)
    again = AdaSCALE(network, **SETTINGS).fit(loader).state
    assert not torch.equal(before, again)
    with using_store(False):
        torch.testing.assert_close(AdaSCALE(network, **SETTINGS).fit(loader).state, again)


def test_evidence_of_another_network(network, id_images, ood_images):
    torch.manual_seed(7)
    other = AdaSCALE(TinyNet().eval(), **SETTINGS)
    plan, execution = other.settings.plan(), other.settings.execution
    foreign = collect(other.reader, make_loader(id_images), plan, execution).evidence
    detector = AdaSCALE(network, **SETTINGS)
    with pytest.raises(ValueError, match=r"evidence: its head W .* is none of the weights of TinyNet"):
        detector.fit_evidence(foreign)
    with pytest.raises(ValueError, match="evidence: its head W"):
        detector.choose(foreign, foreign, {"k1_list": [SETTINGS["k1"]]})
    other.fit_evidence(foreign)


def test_another_network_is_not_settled(network, id_images):
    detector = AdaSCALE(network, **SETTINGS).fit(make_loader(id_images))
    assert repr(detector).endswith(", fitted")
    detector.network = TinyNet().eval()
    assert not repr(detector).endswith(", fitted")
