"""Tests of the feature extractor: features against a reference, precision, memory format, chunks, errors."""

from __future__ import annotations

import warnings

import networks as nets
import pytest
import reference
import torch
from detector_tester import snapshot
from networks import HEAD, TinyNet, make_images
from torch import nn

from openood_adascale.errors import NotFiniteError, SettingError
from openood_adascale.features import extractor as extractor_module
from openood_adascale.features.extractor import FeatureExtractor, InferenceSettings
from openood_adascale.features.statistics import Perturbation

IMAGES = make_images(50, 1)
TRIVIAL, SALIENT, RANDOM, ALL = (Perturbation(p, 0.05, 0.5) for p in ("trivial", "salient", "random", "all"))
EVERY = [TRIVIAL, SALIENT, RANDOM, ALL]


def extract(network, images=IMAGES, perturbations=(), *settings):
    return FeatureExtractor(network).extract(images, perturbations, InferenceSettings(*settings))


def slow_perturbed(network, images, pixels):
    """Algorithm 1, lines 1 to 4, one image at a time."""
    perturbed = []
    for image in images:
        x = image[None].clone().requires_grad_(True)
        z = network(x)
        z[0, z[0].argmax()].backward()
        mask = torch.from_numpy(reference.trivial_pixels(x.grad[0].numpy(), 0.05, pixels))
        perturbed.append(image + 0.5 * x.grad[0].sign() * mask)
    with torch.no_grad():
        return network.features(torch.stack(perturbed))


@pytest.mark.parametrize("perturbation", [TRIVIAL, SALIENT, ALL], ids=lambda p: p.pixels)
def test_features_equal_slow_reference(network, perturbation):
    found = extract(network, IMAGES, [perturbation])
    want = slow_perturbed(network, IMAGES, perturbation.pixels)
    torch.testing.assert_close(found.perturbed[perturbation], want)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, network(IMAGES))
        torch.testing.assert_close(found.activation, network.features(IMAGES))
    assert torch.equal(found.prediction, found.logits.argmax(1))


def test_several_perturbations_share_gradient_and_logits(network):
    extractor = FeatureExtractor(network)
    extractor.extract(IMAGES)
    network.calls.clear()
    extractor.extract(IMAGES, [Perturbation("trivial", o, 0.5) for o in (0.01, 0.05, 0.1)])
    assert sum(network.calls) == 4 * 50


def test_head_is_found_with_few_images_and_once(network):
    extractor = FeatureExtractor(network)
    assert extractor.head is None
    extractor.extract(IMAGES)
    assert sum(network.calls) == HEAD + 50
    torch.testing.assert_close(extractor.head.weight, network.fc.weight.detach())
    network.calls.clear()
    extractor.extract(IMAGES)
    assert sum(network.calls) == 50


def test_only_the_gradient_of_the_image_is_computed(network):
    seen = []
    for parameter in network.parameters():
        parameter.register_hook(seen.append)
    graphs = []
    network.fc.register_forward_hook(lambda module, inputs, output: graphs.append(output.requires_grad))
    extract(network, IMAGES, [RANDOM])
    assert not any(graphs)
    extract(network, IMAGES, [TRIVIAL])
    assert not seen


def test_network_is_restored_after_an_error(network):
    network.train()
    extractor = FeatureExtractor(network)
    extractor.extract(IMAGES)
    before = snapshot(network)
    handle = network.fc.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("boom")))
    with pytest.raises(KeyError, match="boom"):
        extractor.extract(IMAGES, [TRIVIAL])
    handle.remove()
    assert snapshot(network) == before


def test_network_that_changes_its_input_leaves_the_images_alone():
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)).eval()
    images = IMAGES.clone()
    found = extract(network, images, EVERY)
    assert torch.equal(images, IMAGES)
    torch.testing.assert_close(found.logits, network(IMAGES.clone()).detach())


def test_network_made_under_inference_mode_is_refused():
    with torch.inference_mode():
        network = TinyNet()
    with pytest.raises(RuntimeError, match="inference_mode"):
        extract(network, IMAGES, [TRIVIAL])


def test_network_without_gradient_takes_random_pixels_only(network):
    class Detached(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network

        def forward(self, images):
            return self.net.fc(self.net.features(images).detach())

    with pytest.raises(RuntimeError, match="pixels='random'"):
        extract(Detached().eval(), IMAGES, [TRIVIAL])
    assert extract(Detached().eval(), IMAGES, [RANDOM]).perturbed[RANDOM].shape == (50, 64)


# Precision and memory format.


@pytest.mark.parametrize(("asked", "want"), [("auto", True), ("contiguous", False), ("channels_last", True)])
def test_memory_format_is_the_one_asked_for(network, asked, want):
    extractor, seen = FeatureExtractor(network), []
    extractor.extract(IMAGES)
    network.features[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    extractor.extract(IMAGES, (), InferenceSettings("float32", asked))
    assert set(seen) == {want}


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "auto"])
@pytest.mark.parametrize("memory_format", ["auto", "contiguous", "channels_last"])
def test_lower_precision_is_close_and_the_head_stays_float32(network, precision, memory_format):
    want = extract(network, IMAGES, EVERY)
    found = extract(network, IMAGES, EVERY, precision, memory_format)
    assert found.logits.dtype == found.activation.dtype == torch.float32
    torch.testing.assert_close(found.logits, want.logits, rtol=0.05, atol=0.05)
    for p in EVERY:  # a few of the smallest gradients change places
        torch.testing.assert_close(
            found.perturbed[p].mean(1), want.perturbed[p].mean(1), rtol=0.05, atol=0.05
        )
    torch.testing.assert_close(found.logits, found.activation @ network.fc.weight.T + network.fc.bias)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_is_used_by_the_layers(network, precision):
    extractor, seen = FeatureExtractor(network), set()
    extractor.extract(IMAGES)
    network.features[3].register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    extractor.extract(IMAGES, [TRIVIAL], InferenceSettings(precision))
    assert seen == {getattr(torch, precision)}


def test_auto_precision_is_the_fastest_of_the_device(network, monkeypatch):
    monkeypatch.setattr(extractor_module, "fastest_precision", lambda device: "bfloat16")
    found, want = (extract(network, IMAGES, EVERY, precision) for precision in ("auto", "bfloat16"))
    assert torch.equal(found.activation, want.activation)
    assert not torch.equal(found.activation, extract(network, IMAGES).activation)


def test_batch_on_the_cpu_is_run_in_chunks_that_fit_its_caches(network):
    network.calls.clear()
    images = make_images(3 * extractor_module.CPU_CHUNK * torch.get_num_threads(), 1)
    FeatureExtractor(network).extract(images)
    assert max(network.calls) == extractor_module.CPU_CHUNK * torch.get_num_threads()


def test_float64_network_keeps_its_dtype(network):
    assert extract(network.double(), IMAGES, [TRIVIAL], "bfloat16").activation.dtype == torch.float64


def test_float16_without_support_is_refused(network, monkeypatch):
    monkeypatch.setattr(extractor_module, "supports_float16", lambda device: False)
    with pytest.raises(
        SettingError, match=r"precision: 'float16' is not allowed.* on cpu: float32, bfloat16, auto"
    ):
        extract(network, IMAGES, [TRIVIAL], "float16")


@pytest.mark.parametrize("precision", ["float16"])
def test_float16_keeps_gradients_that_are_tiny(network, precision):
    """Of logits that hardly move with the image: unscaled, float16 makes zeros of their gradient."""
    with torch.no_grad():
        network.fc.weight *= 1e-4
        network.fc.bias *= 1e-4
    moved = []
    for one in ("float32", precision):
        found = extract(network, IMAGES, [SALIENT], one, "contiguous")
        moved.append((found.perturbed[SALIENT] - found.activation).double())
    assert float(moved[0].norm()) > 0.5
    assert float((moved[1] - moved[0]).norm() / moved[0].norm()) < 0.2


def test_auto_memory_format_falls_back_for_network_that_views():
    network = nets.Viewed().eval()
    with torch.no_grad():
        want = network(IMAGES)
    for images in (IMAGES, IMAGES.contiguous(memory_format=torch.channels_last)):
        found = extract(network, images, EVERY)
        torch.testing.assert_close(found.logits, want)
    single = extract(network, IMAGES[:1], EVERY)
    for p in EVERY:
        torch.testing.assert_close(single.perturbed[p], found.perturbed[p][:1])


# Chunks.


class Cramped(TinyNet):
    """Has room for so many images, and for half as many with gradient."""

    def __init__(self, room):
        super().__init__()
        self.room = room

    def forward(self, images):
        if len(images) > (self.room // 2 if images.requires_grad else self.room):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return super().forward(images)


@pytest.mark.parametrize("perturbations", [(), [TRIVIAL], [RANDOM]], ids=["plain", "gradient", "random"])
def test_batch_that_does_not_fit_is_halved_for_good(perturbations):
    torch.manual_seed(0)
    network = Cramped(200).eval()
    want = extract(network, IMAGES, perturbations)
    network.room = 10
    extractor, settings = FeatureExtractor(network), InferenceSettings(forward_batch_size=50)
    with pytest.warns(
        UserWarning, match=r"^forward_batch_size: 50 images.* do not fit .*; continuing with 25$"
    ):
        first = extractor.extract(IMAGES, perturbations, settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        network.calls.clear()
        again = extractor.extract(IMAGES, perturbations, settings)
    assert max(network.calls) <= 10
    for found in (first, again):
        torch.testing.assert_close(found.logits, want.logits)
        for p in perturbations:
            torch.testing.assert_close(found.perturbed[p], want.perturbed[p])


def test_single_image_that_does_not_fit_is_told():
    network = Cramped(4).eval()
    extractor = FeatureExtractor(network)
    extractor.extract(IMAGES[:3])
    network.room = 0
    for call in (lambda: extractor.extract(IMAGES[:3]), lambda: extract(network, IMAGES[:1])):
        with pytest.raises(MemoryError, match=r"1 image\(s\) of shape \(3, 8, 8\) do not fit the memory"):
            call()


def test_batch_that_must_stay_whole_is_not_halved():
    torch.manual_seed(0)
    network = nets.BatchStatistics().eval()
    extractor = FeatureExtractor(network)
    with pytest.warns(UserWarning, match="BatchStatistics uses the statistics of the batch"):
        extractor.extract(IMAGES[:20])
    network.calls.clear()
    found = extractor.extract(IMAGES[:20], [TRIVIAL], InferenceSettings(forward_batch_size=3))
    assert set(network.calls) == {20}
    with torch.no_grad():
        torch.testing.assert_close(found.logits, network(IMAGES[:20]))
    network.features.register_forward_hook(
        lambda *_: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(MemoryError, match=r"20 image\(s\) of shape .* smaller batches"):
        extractor.extract(IMAGES[:20])


# What is not finite or no image.


@pytest.mark.parametrize("size", [1, 3, 64])
def test_images_that_are_not_finite_are_named_by_place(network, size):
    settings = InferenceSettings(forward_batch_size=size)
    images = IMAGES.clone()
    images[3, 0, 0, 0] = images[7, 1, 2, 3] = float("nan")
    with pytest.raises(NotFiniteError, match=r"images: .* 2 image\(s\), number 3, 7"):
        FeatureExtractor(network).extract(images, [TRIVIAL], settings)

    class Norm(TinyNet):
        """Has no gradient at 0."""

        def forward(self, images):
            return self.fc(self.features(images) * images.flatten(1).square().sum(1, keepdim=True).sqrt())

    images = IMAGES.clone()
    images[41] = 0
    with pytest.raises(NotFiniteError, match=r"gradient of the network .* number 41 "):
        FeatureExtractor(Norm().eval()).extract(images, [TRIVIAL], settings)
    rows = IMAGES.clone()
    rows[37] = 1e30
    network.features.register_forward_hook(
        lambda m, i, output: output / (i[0].amax((1, 2, 3)) < 1e20)[:, None]
    )
    with pytest.raises(NotFiniteError, match=r"activations of the network: .* number 37 "):
        FeatureExtractor(network).extract(rows, [RANDOM], settings)


def test_error_of_the_network_names_the_images(network):
    with pytest.raises(
        RuntimeError, match=r"^network: TinyNet fails on images of shape \(2, 5, 8, 8\), torch\.float32: "
    ):
        extract(network, torch.zeros(2, 5, 8, 8))
    extractor = FeatureExtractor(network)
    extractor.extract(IMAGES)
    with pytest.raises(RuntimeError, match=r"\(1, 5, 8, 8\).*: RuntimeError: "):
        extractor.extract(torch.zeros(1, 5, 8, 8))


# Odd networks.


def test_network_whose_eval_merges_weights_is_run_merged():
    torch.manual_seed(0)
    network = nets.Merging()
    with torch.no_grad():
        want = network.eval()(IMAGES)
    before = network.train().fc.weight.clone()
    extractor = FeatureExtractor(network)
    found = extractor.extract(IMAGES, [TRIVIAL])
    torch.testing.assert_close(found.logits, want)
    torch.testing.assert_close(found.activation @ found.head.weight.T + found.head.bias, want)
    torch.testing.assert_close(extractor.head.weight, found.head.weight)
    assert network.training
    assert not network.merged
    torch.testing.assert_close(network.fc.weight, before)


def test_checkpointed_network_needs_the_other_form():
    torch.manual_seed(0)
    extract(nets.Checkpointed(reentrant=False).eval(), IMAGES, [TRIVIAL])
    reentrant = nets.Checkpointed().eval()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        extract(reentrant, IMAGES, [TRIVIAL])
    extract(reentrant, IMAGES, [RANDOM])


def test_compiled_network_is_the_network():
    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    want = extract(network, IMAGES, [TRIVIAL])
    found = extract(torch.compile(network, backend="eager"), IMAGES, [TRIVIAL])
    torch.testing.assert_close(found.logits, want.logits)
    torch._dynamo.reset()


def test_stochastic_network_draws_a_warning(network):
    class Noisy(TinyNet):
        def forward(self, images):
            return self.fc(self.features(images) + torch.rand(64))

    with pytest.warns(UserWarning, match="Noisy is random even in eval mode"):
        extract(Noisy().eval())
    extractor = FeatureExtractor(network)
    before = snapshot(network)
    extractor.extract(IMAGES, EVERY)
    assert snapshot(network) == before
