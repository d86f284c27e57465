"""What is the activation, what is the head; and a head that is not W a + b is refused."""

import copy

import networks as tv
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_images
from torch import nn
from untouched import same, snapshot

from openood_adascale.errors import HeadMismatch
from openood_adascale.evidence.classifier import Classifier
from openood_adascale.evidence.encode import encode
from openood_adascale.evidence.head import Output
from openood_adascale.evidence.modes import device_of, frozen
from openood_adascale.evidence.plan import Execution, Perturbation

TRIVIAL = Perturbation("trivial", 0.05, 0.5)
EVERY = [Perturbation(pixels, 0.05, 0.5) for pixels in ("trivial", "salient", "random", "all")]


# What is the activation, what is the head.


@pytest.mark.parametrize("make", tv.NETWORKS, ids=lambda make: make.__name__)
def test_head_and_activation_of_many_kinds_of_network(make):
    torch.manual_seed(0)
    network = make().eval()
    images = make_images(4, 3).to(device_of(network))  # a GPU is where DataParallel goes
    classifier = Classifier(network, images)
    with torch.no_grad(), frozen(network):
        logits, activation, _, _ = classifier(images)
        want = network(images)
    torch.testing.assert_close(getattr(want, "logits", want), logits)
    head = classifier.head
    torch.testing.assert_close(activation @ head.weight.T + head.bias, logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_feature_that_the_head_did_not_see():
    """OpenOOD's ASCOODNet: the returned feature counts, and z is the head's on it."""
    network = tv.Rescaled().eval()
    images = make_images(4, 3)
    encoded = encode(Classifier(network, images), images)
    torch.testing.assert_close(encoded.activation, network.net.features(images))
    torch.testing.assert_close(encoded.logits, network.net.fc(encoded.activation))


@pytest.mark.parametrize("make", tv.WITHOUT_HEAD, ids=lambda make: make.__name__)
def test_networks_without_linear_head_are_refused(make):
    network = make()
    before = snapshot(network)
    with pytest.raises((ValueError, TypeError), match="network: "):
        Classifier(network, make_images(2, 0))
    assert same(before, snapshot(network))


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        (lambda images: images, r"a tensor of shape \(2, 3, 8, 8\)"),
        (lambda images: None, "NoneType"),
        (lambda images: [images], "list"),
    ],
)
def test_what_is_no_logits_is_told(returned, told):
    class Net(nn.Module):
        def forward(self, images):
            return returned(images)

    with pytest.raises(TypeError, match=f"^network: Net returns {told}; expected \\(B, C\\) logits$"):
        Classifier(Net(), make_images(2, 0))


def test_new_weights_are_seen(network, id_images):
    classifier = Classifier(network, id_images)
    with torch.no_grad():
        network.fc.weight.mul_(2)
    torch.testing.assert_close(encode(classifier, id_images).logits, network(id_images).detach())


def test_copies_of_a_network_are_equal(network, id_images):
    twin = copy.deepcopy(network)
    assert torch.equal(
        encode(Classifier(network, id_images), id_images).logits,
        encode(Classifier(twin, id_images), id_images).logits,
    )


# A head that is not W a + b.


@pytest.mark.parametrize("layer", tv.NO_LINEAR_HEAD, ids=lambda layer: layer.__name__)
def test_head_that_computes_something_else_is_refused(layer):
    torch.manual_seed(0)
    with pytest.raises(HeadMismatch, match=rf"'fc' \({layer.__name__}\): they differ by up to [\d.]+"):
        Classifier(tv.with_head(layer), make_images(2, 0))


def test_adapter_that_is_trained_later_is_refused(id_images):
    network = tv.with_head(tv.Adapter)
    with torch.no_grad():
        network.fc.up.zero_()  # as a LoRA layer begins
        classifier = Classifier(network, id_images)
        encode(classifier, id_images, [TRIVIAL])
        network.fc.up.add_(0.02)
    with pytest.raises(HeadMismatch, match="merge adapters"):
        encode(classifier, id_images, [TRIVIAL])


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pixels", ["trivial", "random"])
def test_what_shows_only_on_some_images_is_refused(id_images, precision, pixels):
    network = tv.Clamped().eval()
    with torch.no_grad():
        largest = network(id_images).abs().amax(1)
        network.limit = float(largest.median())
    id_images = id_images[largest.argsort()]
    classifier = Classifier(network, id_images)
    with pytest.raises(HeadMismatch, match="Clamped"):
        encode(classifier, id_images, [Perturbation(pixels, 0.05, 0.5)], Execution(precision))


def test_a_hook_that_changes_the_heads_output_is_refused(network, id_images):
    classifier = Classifier(network, id_images)
    handle = network.fc.register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(HeadMismatch):
        encode(classifier, id_images)
    handle.remove()
    encode(classifier, id_images)
    network.fc.register_forward_pre_hook(lambda module, inputs: inputs[0] * 2)  # still a linear layer
    encoded = encode(classifier, id_images)
    torch.testing.assert_close(encoded.logits, network(id_images).detach())


@settings(deadline=None, max_examples=25)
@given(
    size=st.sampled_from([1, 2, 17, 300, 3000]),
    scale=st.floats(-12, 12),
    shift=st.floats(-5, 5),
    precision=st.sampled_from(["float32", "bfloat16"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 9),
)
def test_rounding_is_no_mismatch(size, scale, shift, precision, dtype, seed):
    """Whatever the size and scale of activations and weights, and in any precision."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, size), nn.Linear(size, 3)).to(dtype).eval()
    with torch.no_grad():
        network[1].weight.mul_(2.0**scale)
        network[1].bias.add_(shift)
    images = torch.randn(9, 3, 2, 2)
    encode(Classifier(network, images.to(dtype)), images, EVERY, Execution(precision))


def test_what_the_network_itself_fails_on_is_told(network):
    with pytest.raises(
        RuntimeError, match=r"^network: TinyNet fails on images of shape \(2, 5, 8, 8\), torch\.float32: "
    ):
        Classifier(network, torch.zeros(2, 5, 8, 8))
    classifier = Classifier(network, torch.zeros(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match=r"shape \(1, 5, 8, 8\).*: RuntimeError: "):
        classifier(torch.zeros(1, 5, 8, 8))


def test_a_wrong_image_shows_beside_one_that_is_not_finite(network, id_images):
    classifier = Classifier(network, id_images)
    given = network.features(id_images[:3]).detach()
    logits = network.fc(given).detach()
    logits[1] += 1
    for row, value in ((0, torch.nan), (2, torch.inf)):
        given[row] = value
        logits[row] = torch.nan
    with pytest.raises(HeadMismatch, match="differ by up to 1"):
        classifier.check(Output(logits, given, given, logits.dtype))
    logits[1] -= 1
    classifier.check(Output(logits, given, given, logits.dtype))
