"""The check of the head is as sharp as the head's own arithmetic, and never asks torch's settings."""

import pytest
import torch
from tiny import make_images
from torch import nn

from openood_adascale.errors import HeadMismatch
from openood_adascale.evidence.classifier import Classifier
from openood_adascale.evidence.encode import encode
from openood_adascale.evidence.plan import Execution, Perturbation

TRIVIAL = Perturbation("trivial", 0.05, 0.5)


class Shifted(nn.Linear):
    """A linear layer with a small addition of its own, as an adapter that is not merged."""

    share = 0.0

    def forward(self, feature):
        weight = self.weight * (1 + self.share)
        return nn.functional.linear(feature, weight.to(feature.dtype), self.bias)


def network(dtype=torch.float32, size=2048):
    torch.manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(192, size), nn.ReLU(), Shifted(size, 100)).to(dtype).eval()
    with torch.no_grad():
        made[-1].weight.normal_(std=0.1)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_half_precision_excuses_nothing(dtype, precision):
    made, images = network(dtype), make_images(40, 1).to(dtype)
    classifier = Classifier(made, images)
    encode(classifier, images, [TRIVIAL], Execution(precision))
    made[-1].share = 0.05
    with pytest.raises(HeadMismatch):
        encode(classifier, images, [TRIVIAL], Execution(precision))


@pytest.mark.parametrize("matmul", ["high", "medium"])
def test_reduced_products_are_no_mismatch_and_no_excuse(matmul):
    made, images = network(), make_images(40, 1)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(matmul)
        classifier = Classifier(made, images)
        encode(classifier, images, [TRIVIAL])
        made[-1].share = 0.02
        with pytest.raises(HeadMismatch):
            encode(classifier, images, [TRIVIAL])
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1.0, 1e4])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_small_and_large_weights(scale, precision):
    made, images = network(size=256), make_images(40, 1)
    with torch.no_grad():
        made[-1].weight.mul_(scale * 10)
    if (scale, precision) == (1e4, "float16"):
        return  # such logits are infinite there
    encode(Classifier(made, images), images, [TRIVIAL], Execution(precision))


def test_huge_activations_excuse_nothing():
    class Cosine(nn.Linear):
        def forward(self, feature):
            return nn.functional.normalize(feature) @ self.weight.T

    made, images = network(size=64), make_images(10, 1)
    made[-1] = Cosine(64, 5)
    with torch.no_grad():
        made[1].weight.mul_(1e20)
    with pytest.raises(HeadMismatch):
        Classifier(made, images)


def test_weights_that_are_not_the_layers():
    class Packed(nn.Linear):
        """As 4-bit layers: the weight is packed into one column."""

        def __init__(self):
            super().__init__(64, 5)
            self.weight = nn.Parameter(torch.zeros(160, 1, dtype=torch.uint8), requires_grad=False)

        def forward(self, feature):
            return feature[:, :5] + 1

    class Unfinite(nn.Linear):
        def forward(self, feature):
            return nn.functional.linear(feature, self.weight.nan_to_num(0.5), self.bias)

    images = make_images(10, 1)
    made = network(size=64)
    made[-1] = Packed()
    with pytest.raises(HeadMismatch, match=r"its weight has the shape \(160, 1\)"):
        Classifier(made, images)
    made[-1] = Unfinite(64, 5)
    with torch.no_grad():
        made[-1].weight[0, 0] = float("nan")
    with pytest.raises(HeadMismatch, match="differ by up to inf"):
        Classifier(made, images)


def test_linear_layers_on_vectors_are_no_heads():
    class Scalar(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.fc = nn.Linear(1, 1), nn.Linear(192, 5)

        def forward(self, images):
            logits = self.fc(images.flatten(1))
            self.scale(torch.ones(1))
            return logits

    Classifier(Scalar().eval(), make_images(4, 0))
