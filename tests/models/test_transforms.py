"""Transforms: the libraries' own, changed, and functions of the user."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openood_adascale.errors import SettingError
from openood_adascale.models.transforms import INTERPOLATIONS, transform_for

Image = pytest.importorskip("PIL.Image")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
OWN = "mine.py:network"


def found(chosen, spec=OWN, own=None, network=None):
    return transform_for(spec, network, own, chosen)


@pytest.mark.parametrize(
    "spec",
    [
        *(f"torchvision:{name}" for name in ("resnet18", "vit_h_14", "efficientnet_b3", "inception_v3")),
        *(f"timm:{name}" for name in ("resnet50.a1_in1k", "test_vit", "beitv2_base_patch16_224")),
    ],
)
def test_library_transform_is_that_of_the_weights(spec):
    transform, description = found(spec)
    library, _, name = spec.partition(":")
    if library == "timm":
        config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        want = timm.data.create_transform(**config)
    else:
        want = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    torch.testing.assert_close(transform(IMAGE), want(IMAGE))
    assert f"{library}'s for " in description
    assert "\n" not in description


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:test_resnet", OWN])
def test_description_can_be_given_as_transform(spec):
    text = "size=96,resize=120,mean=0.5/0.4/0.3,std=0.2/0.3/0.4,interpolation=bicubic"
    network = timm.create_model("test_resnet") if spec.startswith("timm") else None
    transform, description = found(text, spec, network=network)
    assert description.startswith(text)
    assert description.endswith("→ 3 × 96 × 96")
    images = torchvision.transforms
    expected = images.Compose([
        images.Resize(120, images.InterpolationMode.BICUBIC), images.CenterCrop(96), images.ToTensor(),
        images.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
    ])  # fmt: skip
    torch.testing.assert_close(transform(IMAGE), expected(IMAGE))


def test_settings_that_are_not_given_stay():
    transform, description = found("mean=0.5", "torchvision:resnet18")
    assert description.startswith(
        "size=224,resize=256,mean=0.5/0.5/0.5,std=0.229/0.224/0.225,interpolation=bilinear"
    )
    assert "changed" in description
    assert transform(IMAGE).shape == (3, 224, 224)
    assert "size=112,resize=128," in found("size=112", "torchvision:resnet18")[1]
    assert "size=112,resize=128," in found("size=112", "timm:resnet50.tv2_in1k")[1]
    assert "size=64,resize=73," in found("size=64,mean=0,std=1")[1]


@settings(deadline=None, max_examples=40)
@given(st.integers(8, 400), st.integers(0, 100), st.sampled_from(INTERPOLATIONS))
def test_timm_keeps_size_and_resize(size, more, interpolation):
    text = f"size={size},resize={size + more},interpolation={interpolation}"
    transform, description = found(text, "timm:test_resnet", network=timm.create_model("test_resnet"))
    assert description.startswith(f"size={size},resize={size + more},")
    steps = {type(step).__name__: step for step in transform.transforms}
    assert steps["Resize"].size in (size + more, [size + more], (size + more, size + more))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("size=0", "size: a whole number from 1 on"),
        ("size=2.5", "size: a whole number"),
        ("resize=x", "resize: a whole number"),
        ("mean=a/b/c", "mean: numbers separated by /"),
        ("mean=1/2", "mean: one number, or three"),
        ("mean=nan", "mean: one number"),
        ("std=0", "std: one number above 0"),
        ("std=1/1/-1", "std: one number above 0"),
        ("colour=1", "each of size, resize, mean, std, interpolation at most once"),
        ("size=1,size=2", "at most once"),
        ("size=", "at most once"),
        ("interpolation=cubic", "interpolation=bilinear or bicubic"),
        ("size=300,resize=200", "a resize of at least size=300"),
        ("resize=100", "a resize of at least size=224"),
        ("nonsense", "torchvision:NAME, timm:NAME"),
        ("torchvision:nothing", "a classifier"),
        ("timm:nothing_at_all", "timm:NAME of a model"),
        ("json:__name__", "a function that takes a PIL image"),
        (3, "transform: 3"),
    ],
)
def test_invalid_transform_is_named(text, match):
    for spec in ("torchvision:resnet18", "timm:resnet50"):
        with pytest.raises(SettingError, match=match):
            found(text, spec)


def test_network_without_transform_needs_size_mean_and_std():
    with pytest.raises(SettingError, match=r"transform: 'size=8'.*mean and std, too"):
        found("size=8")
    with pytest.raises(SettingError, match=r"None.*mine\.py:network has none.*return network, transform"):
        found(None)


def as_bytes(image):
    return torch.zeros(3, 4, 4, dtype=torch.uint8)


def test_own_transform_is_described_and_checked(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "my_transform.py"
    path.write_text(
        "import torch\ndef grey(image): return torch.full((3, 4, 4), float(image.size[1]))\nnone = 1\n"
    )
    transform, description = found(f"{path}:grey", "torchvision:resnet18")
    assert transform(IMAGE).unique().tolist() == [300]
    assert description == "my_transform.grey → 3 × 4 × 4"
    for wrong, match in [
        (f"{path}:none", "a function that takes a PIL image"),
        (as_bytes, r"returned torch.uint8 \(3, 4, 4\)"),
        (lambda image: image, "returned Image"),
        (lambda image: torch.zeros(1, 3, 4, 4), r"returned torch.float32 \(1, 3, 4, 4\)"),
        (lambda image: 1 / 0, "raised ZeroDivisionError"),
    ]:
        with pytest.raises(SettingError, match=rf"transform: .*{match}"):
            found(wrong)
    steps = torchvision.transforms.Compose(
        [torchvision.transforms.Resize((5, 6)), torchvision.transforms.ToTensor()]
    )
    assert found(None, own=steps)[1].startswith("Compose(Resize(size=(5, 6)")
