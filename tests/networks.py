"""Networks that differ in where the head is, what they return and what wraps them."""

from types import SimpleNamespace

import torch
from conftest import TinyNet
from torch import nn


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
