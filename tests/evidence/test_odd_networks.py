"""Networks with modes of their own, batch statistics, .view(), checkpointing, compilation."""

import logging

import networks as tv
import pytest
import torch
from tiny import TinyNet, make_images
from torch import nn

from openood_adascale.errors import NotFinite
from openood_adascale.evidence.classifier import Classifier
from openood_adascale.evidence.encode import encode
from openood_adascale.evidence.modes import frozen
from openood_adascale.evidence.plan import Execution, Perturbation

TRIVIAL = Perturbation("trivial", 0.05, 0.5)
EVERY = [Perturbation(pixels, 0.05, 0.5) for pixels in ("trivial", "salient", "random", "all")]


def test_a_network_whose_eval_does_something(id_images):
    torch.manual_seed(0)
    network = tv.Merging()
    with torch.no_grad():
        want = network.eval()(id_images)
    network.train()
    before = network.fc.weight.clone()
    encoded = encode(Classifier(network, id_images), id_images, [TRIVIAL])
    torch.testing.assert_close(encoded.logits, want)
    assert network.training
    assert not network.merged
    assert all(module.training for module in network.modules())
    torch.testing.assert_close(network.fc.weight, before)


def test_modes_of_parts_are_put_back():
    network = TinyNet().train()
    network.features[1].eval()
    before = [module.training for module in network.modules()]
    with frozen(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == before


@pytest.mark.parametrize("pixels", ["trivial", "random"])
def test_batches_stay_whole_where_they_are_normalised_together(monkeypatch, pixels):
    monkeypatch.setattr("openood_adascale.evidence.batching.CPU_BATCH", 3)
    torch.manual_seed(0)
    network, images = tv.BatchStatistics().eval(), make_images(20, 4)
    with pytest.warns(UserWarning, match=r"'features\.1' normalises by the statistics of the batch"):
        classifier = Classifier(network, images)
    network.calls.clear()
    encoded = encode(classifier, images, [Perturbation(pixels, 0.05, 0.5)])
    assert set(network.calls) == {20}
    with torch.no_grad():
        torch.testing.assert_close(encoded.logits, network(images))


@pytest.mark.parametrize("make", [tv.Viewed, tv.FlatMLP])
def test_networks_that_flatten_with_view(make, id_images):
    network = make().eval()
    with torch.no_grad():
        want = network(id_images)
    classifier = Classifier(network, id_images)
    for images in (id_images, id_images.contiguous(memory_format=torch.channels_last)):
        encoded = encode(classifier, images, EVERY)
        torch.testing.assert_close(encoded.logits, want)
    for p in EVERY:
        single = encode(classifier, id_images[:1], EVERY).perturbed[p]
        torch.testing.assert_close(single, encoded.perturbed[p][:1])


class Watching(TinyNet):
    """Notes how the images lie in memory."""

    def forward(self, images):
        logging.getLogger("networks").channels_last = images.is_contiguous(memory_format=torch.channels_last)
        return super().forward(images)


@pytest.mark.parametrize(("asked", "last"), [("auto", True), ("contiguous", False), ("channels_last", True)])
def test_how_images_lie_in_memory(id_images, asked, last):
    network = Watching().eval()
    encode(Classifier(network, id_images), id_images, execution=Execution(memory_format=asked))
    assert logging.getLogger("networks").channels_last is last


def test_the_networks_own_error_comes_through(network, id_images):
    classifier = Classifier(network, id_images)
    handle = network.fc.register_forward_hook(lambda *_: (_ for _ in ()).throw(KeyError("mine")))
    with pytest.raises(KeyError, match="mine"):
        encode(classifier, id_images)
    handle.remove()
    assert classifier.takes_channels_last


@pytest.mark.parametrize("small", [1, 3, 64])
def test_images_are_named_by_their_place_in_the_batch(id_images, monkeypatch, small):
    """Whatever parts a CPU works the batch off in."""
    monkeypatch.setattr("openood_adascale.evidence.batching.CPU_BATCH", small)

    class Norm(TinyNet):
        def forward(self, images):
            return self.fc(self.features(images) * images.flatten(1).square().sum(1, keepdim=True).sqrt())

    network = Norm().eval()
    id_images[41] = 0
    with pytest.raises(NotFinite, match=r"gradient of the network .* number 41 "):
        encode(Classifier(network, id_images), id_images, [TRIVIAL])
    rows = id_images.clone()
    rows[37] = 1e30
    network = TinyNet().eval()
    network.features.register_forward_hook(
        lambda m, i, output: output / (i[0].amax((1, 2, 3)) < 1e20)[:, None]
    )
    with pytest.raises(NotFinite, match=r"activations of the network: .* number 37 "):
        encode(Classifier(network, id_images), rows, [EVERY[2]])


def test_checkpointed_networks(id_images):
    torch.manual_seed(0)
    plain = tv.Checkpointed(reentrant=False).eval()
    encode(Classifier(plain, id_images), id_images, [TRIVIAL])
    reentrant = tv.Checkpointed().eval()
    classifier = Classifier(reentrant, id_images)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        encode(classifier, id_images, [TRIVIAL])
    encode(classifier, id_images, [EVERY[2]])


def test_a_compiled_network(id_images):
    torch._dynamo.reset()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    want = encode(Classifier(network, id_images), id_images, [TRIVIAL])
    compiled = torch.compile(network, backend="eager")
    got = encode(Classifier(compiled, id_images), id_images, [TRIVIAL])
    torch.testing.assert_close(got.logits, want.logits)
    torch._dynamo.reset()


def test_the_error_of_a_graph_that_cannot_be_whole(id_images):
    class Broken(TinyNet):
        def forward(self, images):
            torch._dynamo.graph_break()
            return super().forward(images)

    torch._dynamo.reset()
    compiled = torch.compile(Broken().eval(), backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match=r"fullgraph=True.*_orig_mod"):
        Classifier(compiled, id_images)
    torch._dynamo.reset()


def test_gradients_that_float16_alone_would_lose(network, id_images):
    """Of logits that hardly move with the image: unscaled, float16 makes zeros of their gradient."""
    with torch.no_grad():
        network.fc.weight *= 1e-4
        network.fc.bias *= 1e-4
    salient = Perturbation("salient", 0.05, 0.5)
    found = {
        precision: encode(
            Classifier(network, id_images), id_images, [salient], Execution(precision, "contiguous")
        )
        for precision in ("float32", "float16")
    }
    moved = {name: (one.perturbed[salient] - one.activation).double() for name, one in found.items()}
    assert float(moved["float32"].norm()) > 0.5
    difference = float((moved["float16"] - moved["float32"]).norm() / moved["float32"].norm())
    assert difference < 0.2, difference
