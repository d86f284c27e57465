"""Small networks, images and loaders for all tests."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

HEAD = 5
"""Images that run through a network to find its head: two, the same two again, and one alone."""


class TinyNet(nn.Module):
    """64 rectified activations, dropout and batch norm, so that a wrong mode shows."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.5),
        )  # fmt: skip
        self.fc = nn.Linear(64, 5, bias=bias)
        self.calls: list[int] = []
        """Sizes of the batches so far."""

    def forward(self, images: Tensor) -> Tensor:
        self.calls.append(len(images))
        return self.fc(self.features(images))


def make_images(count: int, seed: int, shift: float = 0.0) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) + shift


def make_loader(images: Tensor, batch_size: int = 16, **kwargs) -> DataLoader:
    labels = torch.arange(len(images)) % 5
    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, **kwargs)


class ReturnFeature(TinyNet):
    """As OpenOOD's ResNet."""

    def forward(self, images, return_feature=False, return_feature_list=False):
        feature = self.features(images)
        logits = self.fc(feature)
        return (logits, feature) if return_feature else logits


class ReturnFeatureList(TinyNet):
    """As OpenOOD's WideResNet and DenseNet."""

    def forward(self, images, return_feature=False):
        feature = self.features(images)
        logits = self.fc(feature)
        return (logits, [feature, images]) if return_feature else logits


class Wrapped(nn.Module):
    """As OpenOOD's AdaScaleANet around a network that knows no return_feature."""

    def __init__(self):
        super().__init__()
        self.backbone = TinyNet()

    def forward(self, images, return_feature=False, return_feature_list=False):
        if return_feature:
            return self.backbone(images, return_feature)
        return self.backbone(images)


class ReturnsSomethingElse(TinyNet):
    """As OpenOOD's BiT, whose return_feature returns the images."""

    def forward(self, images, return_feature=False):
        logits = self.fc(self.features(images))
        return (images, self.features(images)) if return_feature else logits


class SequentialHead(nn.Module):
    """As torchvision's ViT (heads[0]) and EfficientNet (classifier[1])."""

    def __init__(self):
        super().__init__()
        self.body = TinyNet().features
        self.classifier = nn.Sequential(nn.Dropout(0.4), nn.Linear(64, 7))

    def forward(self, images):
        return self.classifier(self.body(images))


class ConvolutionHead(nn.Module):
    """As OpenOOD's BiT: a 1×1 convolution on the pooled map."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, images):
        return self.head(self.body(images))[..., 0, 0]


class NoBias(TinyNet):
    def __init__(self):
        super().__init__(bias=False)


class HuggingFaceLike(TinyNet):
    def forward(self, images):
        return SimpleNamespace(logits=super().forward(images))


class TwoHeads(TinyNet):
    """As OpenOOD's ConfBranchNet: another linear layer is called after the head."""

    def __init__(self):
        super().__init__()
        self.confidence = nn.Linear(64, 1)

    def forward(self, images):
        feature = self.features(images)
        logits = self.fc(feature)
        self.confidence(feature)
        return logits


class Normalised(TinyNet):
    """As OpenOOD's T2FNormNet: the head sees the normalised feature."""

    def forward(self, images):
        return self.fc(nn.functional.normalize(self.features(images)) / 0.1)


class Transformer(nn.Module):
    """Linear layers everywhere, a head on the class token, activations of both signs."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 4, 4)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, images):
        return self.head(self.norm(self.layer(self.patch(images).flatten(2).mT))[:, 0])


def DataParallel():
    return nn.DataParallel(TinyNet())


NETWORKS = [
    TinyNet, ReturnFeature, ReturnFeatureList, Wrapped, ReturnsSomethingElse, SequentialHead, ConvolutionHead, NoBias,
    HuggingFaceLike, TwoHeads, Normalised, Transformer, DataParallel,
]  # fmt: skip


class Rescaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = TinyNet()

    def forward(self, images, return_feature=False):
        feature = self.net.features(images)
        logits = self.net.fc(feature * 3 - 1)
        return (logits, feature) if return_feature else logits


class Softmax(TinyNet):
    def forward(self, images):
        return super().forward(images).softmax(1)


class Cosine(TinyNet):
    def forward(self, images):
        return nn.functional.normalize(self.features(images)) @ nn.functional.normalize(self.fc.weight).T


class Tuple(TinyNet):
    def forward(self, images):
        return super().forward(images), torch.zeros(1)


class Map(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 1)

    def forward(self, images):
        return self.conv(images)


WITHOUT_HEAD = [Softmax, Cosine, Tuple, Map]


def training_step(network, images):
    """Step along the gradient, as ``torch.optim.SGD`` does, whose first step imports a compiler."""
    network.train()(images).square().sum().backward()
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.sub_(0.1 * parameter.grad)
    network.zero_grad()
    network.eval()


# Heads that are no W a + b, though a linear layer's output is the network's.


class CosineLayer(nn.Linear):
    def forward(self, feature):
        return nn.functional.normalize(feature) @ nn.functional.normalize(self.weight).T


class Tempered(nn.Linear):
    def forward(self, feature):
        return super().forward(feature) / 0.05


class Adapter(nn.Linear):
    """As an unmerged LoRA layer, trained already."""

    def __init__(self, *args):
        super().__init__(*args)
        self.down, self.up = nn.Parameter(torch.randn(2, 64) * 0.1), nn.Parameter(torch.randn(5, 2) * 0.1)

    def forward(self, feature):
        return super().forward(feature) + feature @ self.down.T @ self.up.T


class IntegerWeight(nn.Linear):
    """As 8-bit layers: the weight holds integers, and a scale stands beside it."""

    def __init__(self, *args):
        super().__init__(*args)
        scale = self.weight.detach().abs().max() / 127
        self.weight = nn.Parameter((self.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.scale = scale

    def forward(self, feature):
        return nn.functional.linear(feature, self.weight * self.scale, self.bias)


def with_head(layer):
    network = TinyNet()
    network.fc = layer(64, 5)
    return network.eval()


# Heads that are W a + b, though W is no parameter of theirs.


def trained_head(norm, name):
    """Return a normalised head whose own parameter has changed, as in a training step."""
    head = norm(nn.Linear(64, 5))
    with torch.no_grad():
        head.get_parameter(name).mul_(1.5)
    return head


def old_weight_norm():
    return trained_head(nn.utils.weight_norm, "weight_g")


def new_weight_norm():
    return trained_head(parametrizations.weight_norm, "parametrizations.weight.original0")


def old_spectral_norm():
    return trained_head(nn.utils.spectral_norm, "weight_orig")


def new_spectral_norm():
    return trained_head(parametrizations.spectral_norm, "parametrizations.weight.original")


def orthogonal():
    return parametrizations.orthogonal(nn.Linear(64, 5))


def pruned():
    head = nn.Linear(64, 5)
    prune.l1_unstructured(head, "weight", amount=0.5)
    return head


class FixedWeight(nn.Linear):
    """As neural-collapse classifiers: the weight is a buffer."""

    def __init__(self):
        super().__init__(64, 5, bias=False)
        weight = self.weight.detach().clone()
        del self.weight
        self.register_buffer("weight", weight)


LINEAR_HEADS = [
    old_weight_norm, new_weight_norm, old_spectral_norm, new_spectral_norm, orthogonal, pruned, FixedWeight,
]  # fmt: skip


NO_LINEAR_HEAD = [CosineLayer, Tempered, Adapter, IntegerWeight]


class Clamped(TinyNet):
    """The operation after the head is inactive on small logits."""

    limit = float("inf")

    def forward(self, images):
        return super().forward(images).clamp(-self.limit, self.limit)


class Viewed(nn.Module):
    """As LeNet in many tutorials: .view needs images, and maps, in contiguous memory."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, 2)
        self.fc = nn.Linear(72, 5)

    def forward(self, images):
        return self.fc(self.conv(images).relu().view(len(images), -1))


class Merging(TinyNet):
    """As LoRA models do: eval() merges what train() has apart."""

    def __init__(self):
        super().__init__()
        self.register_buffer("delta", torch.randn(5, 64) * 0.1)
        self.merged = False

    def train(self, mode=True):
        if mode is self.merged:
            self.fc.weight.data += -self.delta if mode else self.delta
            self.merged = not mode
        return super().train(mode)

    def forward(self, images):
        if not self.merged:
            raise RuntimeError("train mode")
        return super().forward(images)


class BatchStatistics(TinyNet):
    """A batch norm without running statistics."""

    def __init__(self):
        super().__init__()
        self.features[1] = nn.BatchNorm2d(8, track_running_stats=False)


class Checkpointed(TinyNet):
    def __init__(self, reentrant=True):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, images):
        from torch.utils.checkpoint import checkpoint

        return self.fc(checkpoint(self.features, images, use_reentrant=self.reentrant))


class Counting(TinyNet):
    """Counts its forward passes in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("runs", torch.zeros((), dtype=torch.int64))

    def forward(self, images):
        self.runs += 1
        return super().forward(images)


SEEN: list[int] = []
"""Sizes of the batches that went through any Net, also through its parts."""


class Counter(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        SEEN.append(len(images))
        return images


def images_seen(call):
    """Return the number of images that went through the networks during a call."""
    SEEN.clear()
    call()
    return sum(SEEN)


class Net(TinyNet):
    """With the parts that pytorch-ood's detectors take."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(Counter(), *self.features)

    def maps(self, images: Tensor) -> Tensor:
        return self.features(images)[:, :, None, None]

    def from_maps(self, maps: Tensor) -> Tensor:
        return self.fc(maps.flatten(1))


def known_and_unknown(known: Tensor, unknown: Tensor) -> DataLoader:
    """Return a loader of both in turn, the OOD images with labels below 0."""
    labels = torch.cat([torch.arange(len(known)) % 5, -1 - torch.arange(len(unknown)) % 3])
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(torch.cat([known, unknown])[order], labels[order]), batch_size=16)


@st.composite
def activations(draw):
    """A float32 batch with ties, zeros, all-negative rows and widely differing magnitudes."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 60)))
    elements = st.one_of(
        st.sampled_from([0.0, -1.0, 1.0, 2.5]),
        st.floats(-50, 50, width=32, allow_subnormal=False),
        st.floats(0, 1000, width=32, allow_subnormal=False),
    )
    return draw(hnp.arrays(np.float32, shape, elements=elements))
