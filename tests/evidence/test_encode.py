"""Networks taken apart, and the pass over images: results, and that everything is left as it was found."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import reference
import torch
from tiny import TinyNet, make_images
from torch import nn
from untouched import same, snapshot

from openood_adascale.errors import NotFinite, SettingError
from openood_adascale.evidence import encode as encode_module
from openood_adascale.evidence.classifier import Classifier
from openood_adascale.evidence.encode import encode
from openood_adascale.evidence.plan import Execution, Perturbation

TRIVIAL = Perturbation("trivial", 0.05, 0.5)
EVERY = [Perturbation(pixels, 0.05, 0.5) for pixels in ("trivial", "salient", "random", "all")]


def slow_twin(network, images, pixels):
    """Algorithm 1 lines 1-4, one image at a time."""
    perturbed = []
    for image in images:
        x = image[None].clone().requires_grad_(True)
        z = network(x)
        z[0, z[0].argmax()].backward()
        mask = torch.from_numpy(reference.trivial_pixels(x.grad[0].numpy(), 0.05, pixels))
        perturbed.append(image + 0.5 * x.grad[0].sign() * mask)
    with torch.no_grad():
        return network.features(torch.stack(perturbed))


@pytest.mark.parametrize("pixels", ["trivial", "salient", "all"])
def test_against_a_slow_twin(network, id_images, pixels):
    encoded = encode(Classifier(network, id_images), id_images, [Perturbation(pixels, 0.05, 0.5)])
    torch.testing.assert_close(
        encoded.perturbed[Perturbation(pixels, 0.05, 0.5)], slow_twin(network, id_images, pixels)
    )
    with torch.no_grad():
        torch.testing.assert_close(encoded.logits, network(id_images))
        torch.testing.assert_close(encoded.activation, network.features(id_images))


@pytest.mark.parametrize("mode", [True, False])
def test_network_and_images_come_back_as_they_were(network, id_images, mode):
    network.train(mode)
    network.features[0].weight.requires_grad_(False)
    network.fc.weight.grad = torch.ones_like(network.fc.weight)
    before, images, state = snapshot(network), id_images.clone(), torch.get_rng_state()
    grad = network.fc.weight.grad.clone()
    encode(Classifier(network, id_images), id_images, EVERY)
    assert same(before, snapshot(network))
    assert torch.equal(images, id_images)
    assert not id_images.requires_grad
    assert torch.equal(network.fc.weight.grad, grad)
    assert torch.equal(torch.get_rng_state(), state)


def test_also_after_an_error(network, id_images):
    network.train()
    classifier = Classifier(network, id_images)
    before = snapshot(network)
    handle = network.fc.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("boom")))
    with pytest.raises(KeyError):
        encode(classifier, id_images, [TRIVIAL])
    handle.remove()
    assert same(before, snapshot(network))


def test_only_the_images_gradient_is_computed(network, id_images):
    seen = []
    for parameter in network.parameters():
        parameter.register_hook(lambda gradient: seen.append(gradient))
    encode(Classifier(network, id_images), id_images, [TRIVIAL])
    assert not seen


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_under_any_gradient_mode(network, id_images, context):
    want = encode(Classifier(network, id_images), id_images, EVERY)
    with context():
        images = id_images * 1  # an inference tensor under inference_mode
        got = encode(Classifier(network, images), images, EVERY)
    torch.testing.assert_close(got.logits, want.logits)
    for p in EVERY:
        torch.testing.assert_close(got.perturbed[p], want.perturbed[p])


def test_network_made_under_inference_mode_is_refused(id_images):
    with torch.inference_mode():
        network = TinyNet()
    with pytest.raises(RuntimeError, match="inference_mode"):
        encode(Classifier(network, id_images), id_images, [TRIVIAL])


def test_network_without_gradient_is_refused_but_random_pixels_work(network, id_images):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network

        def forward(self, images):
            return self.net.fc(self.net.features(images).detach())

    detached = Detached()
    classifier = Classifier(detached, id_images)
    with pytest.raises(RuntimeError, match="pixels='random'"):
        encode(classifier, id_images, [TRIVIAL])
    assert encode(classifier, id_images, [EVERY[2]]).perturbed[EVERY[2]].shape == (50, 64)


def test_callers_autocast_does_not_reach_in(network, id_images):
    want = encode(Classifier(network, id_images), id_images, [TRIVIAL])
    with torch.autocast("cpu", torch.bfloat16):
        got = encode(Classifier(network, id_images), id_images, [TRIVIAL])
    assert torch.equal(got.activation, want.activation)


def test_float64_network(network, id_images):
    encoded = encode(Classifier(network.double(), id_images.double()), id_images, [TRIVIAL])
    assert encoded.activation.dtype == torch.float64


def test_gradient_and_logits_are_shared_among_perturbations(network, id_images):
    classifier = Classifier(network, id_images)
    network.calls.clear()
    encode(classifier, id_images, [Perturbation("trivial", o, 0.5) for o in (0.01, 0.05, 0.1)])
    assert sum(network.calls) == 50 * 4


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "auto"])
@pytest.mark.parametrize("memory_format", ["auto", "contiguous", "channels_last"])
def test_lower_precision_is_close_and_the_head_stays_float32(network, id_images, precision, memory_format):
    before = snapshot(network)
    want = encode(Classifier(network, id_images), id_images, EVERY)
    got = encode(Classifier(network, id_images), id_images, EVERY, Execution(precision, memory_format))
    assert same(before, snapshot(network))
    assert got.logits.dtype == got.activation.dtype == torch.float32
    torch.testing.assert_close(got.logits, want.logits, rtol=0.05, atol=0.05)
    for p in EVERY:
        # a few of the smallest gradients change places
        torch.testing.assert_close(got.perturbed[p].mean(1), want.perturbed[p].mean(1), rtol=0.05, atol=0.05)
    head = network.fc
    torch.testing.assert_close(got.logits, got.activation @ head.weight.T + head.bias)


def test_half_precision_that_torch_does_not_have(network, id_images, monkeypatch):
    monkeypatch.setattr(encode_module, "has_float16", lambda device: False)
    with pytest.raises(
        SettingError, match=r"precision: 'float16' is not allowed.* on a cpu: float32, bfloat16, auto"
    ):
        encode(Classifier(network, id_images), id_images, [TRIVIAL], Execution("float16"))
    encode(Classifier(network, id_images), id_images, [TRIVIAL], Execution("bfloat16"))


@pytest.mark.parametrize("fastest", [torch.float32, torch.bfloat16])
def test_auto_is_the_fastest(network, id_images, fastest, monkeypatch):
    monkeypatch.setattr(
        encode_module, "fastest_precision", lambda device: str(fastest).removeprefix("torch.")
    )
    seen = []
    network.features[3].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    encode(Classifier(network, id_images), id_images, [TRIVIAL], Execution("auto"))
    assert seen[-1] == fastest


def test_lower_precision_is_really_used(network, id_images):
    classifier, seen = Classifier(network, id_images), []
    handle = network.features[3].register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    encode(classifier, id_images, [TRIVIAL], Execution("bfloat16"))
    handle.remove()
    assert set(seen) == {torch.bfloat16}


def test_random_pixels_build_no_graph(network, id_images):
    grads = []
    handle = network.fc.register_forward_hook(
        lambda module, inputs, output: grads.append(output.requires_grad)
    )
    encode(Classifier(network, id_images), id_images, [EVERY[2]])
    handle.remove()
    assert not any(grads)


def test_few_images_and_their_twins_share_one_pass(network, id_images):
    classifier = Classifier(network, id_images)
    network.calls.clear()
    encode(classifier, id_images[:10], [EVERY[2]])
    assert network.calls == [20]
    network.calls.clear()
    encode(classifier, id_images[:10], EVERY)
    assert network.calls == [10, 40]


def test_network_that_changes_its_input_in_place(id_images):
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    before = id_images.clone()
    encoded = encode(Classifier(network, id_images), id_images, EVERY)
    encode(Classifier(network, id_images), id_images)
    assert torch.equal(id_images, before)
    torch.testing.assert_close(encoded.logits, network(before).detach())


def test_threads_do_not_mix_their_images(network, id_images):
    network.requires_grad_(False)
    classifier = Classifier(network, id_images)
    batches = [make_images(20, seed) for seed in range(4)]
    want = [encode(classifier, batch, [TRIVIAL]).activation for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            got = pool.map(lambda batch: encode(classifier, batch, [TRIVIAL]).activation, batches)
            for one, other in zip(want, got, strict=True):
                torch.testing.assert_close(one, other)


def test_gradient_that_is_not_finite_is_named(id_images):
    class Norm(TinyNet):
        def forward(self, images):
            return self.fc(self.features(images) * images.flatten(1).square().sum(1, keepdim=True).sqrt())

    network = Norm().eval()
    id_images[4] = 0
    with pytest.raises(NotFinite, match=r"gradient of the network .* number 4 "):
        encode(Classifier(network, id_images), id_images, [TRIVIAL])


def test_head_that_is_called_more_than_once(network, id_images):
    class Auxiliary(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network

        def forward(self, images):
            feature = self.net.features(images)
            self.net.fc(feature * 2)
            logits = self.net.fc(input=feature)
            self.net.fc(feature * 0 + 7)
            return logits

    encoded = encode(Classifier(Auxiliary(), id_images), id_images)
    torch.testing.assert_close(encoded.activation, network.features(id_images).detach())


def test_equal_perturbations_are_one():
    assert Perturbation("all", 0.05, 0.5) == Perturbation("all", 0.1, 0.5)
    assert Perturbation("trivial", 0.05, 0.5, seed=1) == Perturbation("trivial", 0.05, 0.5, seed=2)
    assert Perturbation("random", 0.05, 0.5, seed=1) != Perturbation("random", 0.05, 0.5, seed=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_images_are_named(network, id_images, value):
    id_images[3, 0, 0, 0] = id_images[7, 1, 2, 3] = value
    with pytest.raises(NotFinite, match=r"images: .* 2 image\(s\), number 3, 7"):
        encode(Classifier(network, make_images(2, 0)), id_images, [TRIVIAL])


def test_not_finite_activations_are_named(network, id_images):
    rows = torch.zeros(50, 64)
    rows[5, 3] = float("nan")
    network.features.register_forward_hook(lambda module, inputs, output: output + rows[: len(output)])
    with pytest.raises(NotFinite, match=r"activations of the network: .* number 5"):
        encode(Classifier(network, make_images(2, 0)), id_images, [TRIVIAL])


@pytest.mark.parametrize(
    ("images", "error"),
    [
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), TypeError),
        (np.zeros((2, 3, 8, 8)), TypeError),
        (torch.zeros(0, 3, 8, 8), ValueError),
    ],
)
def test_other_images_are_refused(network, images, error):
    with pytest.raises(error, match="images: "):
        encode(Classifier(network, make_images(2, 0)), images, [TRIVIAL])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_layers_reckon_in_the_precision_that_was_asked_for(network, id_images, precision):
    seen = set()
    network.features[0].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    classifier = Classifier(network, id_images)
    seen.clear()
    encode(classifier, id_images, [TRIVIAL], Execution(precision))
    assert seen == {getattr(torch, precision)}
