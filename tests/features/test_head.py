"""Tests of finding the linear head and of comparing the logits with W a + b."""

from __future__ import annotations

import networks as nets
import pytest
import torch
from detector_tester import snapshot
from hypothesis import given
from hypothesis import strategies as st
from networks import make_images
from torch import nn

from openood_adascale.errors import HeadMismatchError
from openood_adascale.features.extractor import FeatureExtractor, InferenceSettings
from openood_adascale.features.head import ModelOutput
from openood_adascale.features.statistics import Perturbation

IMAGES = make_images(40, 1)
EVERY = [Perturbation(pixels, 0.05, 0.5) for pixels in ("trivial", "salient", "random", "all")]


def extract(network, images=IMAGES, perturbations=EVERY[:1], precision="float32"):
    return FeatureExtractor(network).extract(images, perturbations, InferenceSettings(precision))


@pytest.mark.parametrize("make", nets.NETWORKS, ids=lambda make: make.__name__)
def test_head_of_many_kinds_of_network_is_found(make):
    torch.manual_seed(0)
    network = make().eval()
    images = IMAGES.to(next(network.parameters()).device)  # a GPU is where DataParallel goes
    extractor = FeatureExtractor(network)
    found = extractor.extract(images)
    with torch.no_grad():
        want = network(images)
    torch.testing.assert_close(getattr(want, "logits", want), found.logits)
    torch.testing.assert_close(found.activation @ found.head.weight.T + found.head.bias, found.logits)
    assert extractor.split.layer_name in ("fc", "backbone.fc", "classifier.1", "head")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_returned_feature_is_the_activation():
    """OpenOOD's ASCOODNet: the returned feature counts, and z is the head's on it."""
    network = nets.Rescaled().eval()
    with pytest.warns(UserWarning, match="the feature that Rescaled returns is not the input of its head"):
        found = extract(network)
    torch.testing.assert_close(found.activation, network.net.features(IMAGES))
    torch.testing.assert_close(found.logits, network.net.fc(found.activation))


def test_head_that_is_called_several_times_is_the_right_call(network):
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

    torch.testing.assert_close(extract(Auxiliary().eval()).activation, network.features(IMAGES).detach())


def test_linear_layers_on_vectors_are_no_heads():
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.fc = nn.Linear(1, 1), nn.Linear(192, 5)

        def forward(self, images):
            logits = self.fc(images.flatten(1))
            self.scale(torch.ones(1))
            return logits

    extract(Scalar().eval())


@pytest.mark.parametrize("make", nets.WITHOUT_HEAD, ids=lambda make: make.__name__)
def test_network_without_linear_head_is_refused(make):
    network = make().eval()
    before = snapshot(network)
    with pytest.raises((ValueError, TypeError), match=r"^network: "):
        extract(network)
    assert snapshot(network) == before


@pytest.mark.parametrize(
    ("returned", "shown"),
    [
        (lambda images: images, r"a tensor of shape \(2, 3, 8, 8\)"),
        (lambda images: None, "NoneType"),
        (lambda images: [images], "list"),
    ],
)
def test_output_that_is_no_logits_is_named(returned, shown):
    class Net(nn.Module):
        def forward(self, images):
            return returned(images)

    with pytest.raises(TypeError, match=rf"^network: Net returns {shown}; expected \(B, C\) logits"):
        extract(Net())


# Logits that are not W a + b.


def test_adapter_that_is_trained_later_is_refused():
    network = nets.with_head(nets.Adapter)
    extractor = FeatureExtractor(network)
    with torch.no_grad():
        network.fc.up.zero_()  # as a LoRA layer begins
        extractor.extract(IMAGES)
        network.fc.up.add_(0.02)
    with pytest.raises(HeadMismatchError, match="merge adapters"):
        extractor.extract(IMAGES)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("pixels", ["trivial", "random"])
def test_mismatch_on_some_images_is_refused(precision, pixels):
    network = nets.Clamped().eval()
    with torch.no_grad():
        largest = network(IMAGES).abs().amax(1)
        network.limit = float(largest.median())
    with pytest.raises(HeadMismatchError, match="Clamped"):
        extract(network, IMAGES[largest.argsort()], [Perturbation(pixels, 0.05, 0.5)], precision)


def test_mismatch_shows_beside_an_image_that_is_not_finite(network):
    extractor = FeatureExtractor(network)
    extractor.extract(IMAGES)
    given_rows = network.features(IMAGES[:3]).detach()
    logits = network.fc(given_rows).detach()
    logits[1] += 1
    for row, value in ((0, torch.nan), (2, torch.inf)):
        given_rows[row], logits[row] = value, torch.nan
    output = ModelOutput(logits, given_rows, given_rows, logits.dtype)
    with pytest.raises(HeadMismatchError, match="differ by up to 1"):
        extractor.split.check(output)
    logits[1] -= 1
    extractor.split.check(output)


class Shifted(nn.Linear):
    """A linear layer with a small addition of its own, as an adapter that is not merged."""

    share = 0.0

    def forward(self, feature):
        weight = self.weight * (1 + self.share)
        return nn.functional.linear(feature, weight.to(feature.dtype), self.bias)


def wide_network(dtype=torch.float32, size=1024):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(192, size), nn.ReLU(), Shifted(size, 50)).to(dtype).eval()
    with torch.no_grad():
        made[-1].weight.normal_(std=0.1)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_low_precision_excuses_no_mismatch(dtype, precision):
    network = wide_network(dtype)
    extract(network, IMAGES, precision=precision)
    network[-1].share = 0.05
    with pytest.raises(HeadMismatchError):
        extract(network, IMAGES, precision=precision)


@pytest.mark.parametrize("matmul", ["high", "medium"])
def test_reduced_matmul_precision_is_no_mismatch_and_no_excuse(matmul):
    network, before = wide_network(), torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(matmul)
        extract(network)
        network[-1].share = 0.02
        with pytest.raises(HeadMismatchError):
            extract(network)
    finally:
        torch.set_float32_matmul_precision(before)


@given(
    size=st.sampled_from([1, 2, 17, 300, 2000]),
    scale=st.floats(-12, 12),
    shift=st.floats(-5, 5),
    precision=st.sampled_from(["float32", "bfloat16"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 9),
)
def test_rounding_is_no_mismatch(size, scale, shift, precision, dtype, seed):
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, size), nn.Linear(size, 3)).to(dtype).eval()
    with torch.no_grad():
        network[1].weight.mul_(2.0**scale)
        network[1].bias.add_(shift)
    extract(network, torch.randn(9, 3, 2, 2), EVERY, precision)


def test_huge_or_unfinite_weights_excuse_nothing():
    class Cosine(nn.Linear):
        def forward(self, feature):
            return nn.functional.normalize(feature) @ self.weight.T

    class Unfinite(nn.Linear):
        def forward(self, feature):
            return nn.functional.linear(feature, self.weight.nan_to_num(0.5), self.bias)

    class Packed(nn.Linear):
        """As 4-bit layers: the weight is packed into one column."""

        def __init__(self):
            super().__init__(64, 5)
            self.weight = nn.Parameter(torch.zeros(160, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, feature):
            return feature[:, :5] + 1

    network = wide_network(size=64)
    for head in (Cosine(64, 5), Unfinite(64, 5), Packed()):
        network[-1] = head
        with torch.no_grad():
            network[1].weight.mul_(1e20 if isinstance(head, Cosine) else 1)
            if isinstance(head, Unfinite):
                head.weight[0, 0] = float("nan")
        with pytest.raises(ValueError, match=r"^network: "):
            extract(network)


def test_new_weights_of_the_head_are_seen(network):
    extractor = FeatureExtractor(network)
    extractor.extract(IMAGES)
    with torch.no_grad():
        network.fc.weight.mul_(2)
    torch.testing.assert_close(extractor.extract(IMAGES).logits, network(IMAGES).detach())
    network.fc = nn.Linear(64, 7)
    assert extractor.extract(IMAGES).logits.shape == (40, 7)
    assert extractor.head.weight.shape == (7, 64)


def test_head_of_one_activation_is_found():
    """W is (C, 1), as long as biases and scales of other layers."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 5, 3),
        nn.BatchNorm2d(5),
        nn.Flatten(),
        nn.Linear(180, 1),
        nn.ReLU(),
        nn.Linear(1, 5),
    )
    assert extract(nn.Sequential(*layers).eval()).head.weight.shape == (5, 1)
