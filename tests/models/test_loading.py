"""Networks by name and file: torchvision's, timm's and one's own, with random weights; nothing is downloaded."""

import importlib
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from openood_adascale.errors import SettingError
from openood_adascale.models.loading import _with_new_names, load_network

Image = pytest.importorskip("PIL.Image")
torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
LIBRARIES = {
    "torchvision:mobilenet_v2": lambda **options: torchvision.models.mobilenet_v2(**options),
    "torchvision:squeezenet1_1": lambda **options: torchvision.models.squeezenet1_1(**options),
    "timm:test_resnet": lambda **options: timm.create_model("test_resnet", **options),
    "timm:test_vit.r160_in1k": lambda **options: timm.create_model("test_vit", **options),
    "timm:deit_tiny_distilled_patch16_224": lambda **options: timm.create_model(
        "deit_tiny_distilled_patch16_224", **options
    ),
}


def trained(spec, classes=13):
    torch.manual_seed(0)
    return LIBRARIES[spec](num_classes=classes).eval()


def saved(path, state):
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


def weights_of(path, spec="timm:test_resnet"):
    return saved(path, trained(spec).state_dict())


# Weights.


@pytest.mark.parametrize("end", [".pth", ".safetensors"])
@pytest.mark.parametrize("spec", LIBRARIES)
def test_library_network_is_loaded_from_a_file(tmp_path, spec, end):
    network = trained(spec)
    loaded = load_network(spec, saved(tmp_path / f"weights{end}", network.state_dict()))
    assert not any(module.training for module in loaded.network.modules())
    assert loaded.name == spec
    image = loaded.transform(IMAGE)[None]
    with torch.no_grad():
        logits = loaded.network(image)
        torch.testing.assert_close(logits, network(image))
    assert logits.shape == (1, 13)


def test_weights_that_do_not_fit_are_named(tmp_path):
    state = trained("timm:test_resnet").state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(2, 3)
    del state["conv1.0.weight"]
    state.update({f"more{number}": torch.zeros(1) for number in range(9)})
    path = saved(tmp_path / "x.pth", state)
    with pytest.raises(SettingError) as caught:
        load_network("timm:test_resnet", path)
    for part in (
        f"weights: '{path}'", "weights of timm:test_resnet", "missing: conv1.0.weight", "unexpected: more0, more1",
        "… (9 in all)", "of another shape: layer1.0.conv1.weight (2, 3) instead of (",
    ):  # fmt: skip
        assert part in str(caught.value)
    other = saved(tmp_path / "other.pth", trained("timm:test_vit.r160_in1k").state_dict())
    with pytest.raises(SettingError, match=r"the weights of torchvision:resnet18; missing: .*unexpected: "):
        load_network("torchvision:resnet18", other)


def test_old_densenet_names_are_renamed():
    """As in the files that torchvision's own weights are downloaded as."""
    network = torchvision.models.DenseNet(8, (2, 2, 2, 2), 16, num_classes=5).eval()
    state = network.state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value for name, value in state.items()
    }
    assert old.keys() != state.keys()
    assert _with_new_names("densenet121", old).keys() == state.keys()
    assert _with_new_names("resnet18", old) is old


@pytest.mark.parametrize("auxiliary", [True, False])
def test_googlenet_transforms_its_input(tmp_path, auxiliary):
    network = torchvision.models.googlenet(
        weights=None, init_weights=False, aux_logits=auxiliary, transform_input=True, num_classes=6
    ).eval()
    loaded = load_network("torchvision:googlenet", saved(tmp_path / "x.pth", network.state_dict()))
    image = loaded.transform(IMAGE)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded.network(image), network(image))


# Specs.


@pytest.mark.parametrize(
    ("spec", "weights", "match"),
    [
        ("resnet18", None, "network: 'resnet18'.*torchvision:NAME, timm:NAME"),
        (None, None, "network: None"),
        ("timm:test_resnet", None, "weights: None.*random"),
        ("torchvision:resnet19", "default", "such as .*resnet18"),
        ("torchvision:fcn_resnet50", "default", "a classifier"),
        ("timm:resnet5o", "default", "such as .*resnet50"),
        ("timm:hf-hub:someone/evil", "default", "timm:NAME of a model"),
        ("timm:test_resnet.nothing", "default", r"tags \(r160_in1k\)"),
        ("timm:test_resnet", 3, "weights: 3"),
        ("torchvision:", None, "network: 'torchvision:'"),
        ("no.such.module:f", None, "No module named"),
        ("json:dumsp", None, "such as .*dumps"),
        ("json:dumps", None, "dumps raised TypeError"),
        ("platform:system", None, "system returned str"),
        ("sys:path", None, "path is list"),
    ],
)
def test_invalid_spec_is_named(spec, weights, match):
    with pytest.raises(SettingError, match=match):
        load_network(spec, weights)


def test_missing_library_is_named(monkeypatch):
    for name in ("timm", "torchvision"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(SettingError, match=rf"pip install {name}"):
            load_network(f"{name}:resnet18", "default")


def test_default_weights_are_the_librarys_own(tmp_path, monkeypatch):
    """As if downloaded: torchvision looks in its cache first."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = torchvision.models.mobilenet_v2().eval()
    weights = torchvision.models.MobileNet_V2_Weights.DEFAULT
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    torch.save(network.state_dict(), tmp_path / "hub/checkpoints" / Path(weights.url).name)
    loaded = load_network("torchvision:mobilenet_v2", "default")
    torch.testing.assert_close(loaded.network.classifier[1].weight, network.classifier[1].weight)

    def refuse(*args, **kwargs):
        raise ConnectionError("no way")

    monkeypatch.setattr(timm, "create_model", refuse)
    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", refuse)
    for spec in ("timm:test_resnet", "torchvision:resnet18"):
        with pytest.raises(
            SettingError, match=r"weights: 'default'.*cannot be loaded \(ConnectionError: no way\)"
        ):
            load_network(spec, "default")


OWN = """
import torch
from torch import nn
import {sibling}

def transform(image):
    return torch.full((3, 8, 8), float(image.size[0]))

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(192, {sibling}.CLASSES))

def both():
    return build(), transform

def wrong():
    return build(), 3
"""


def own(folder, name="my_network", sibling="my_sibling"):
    folder.mkdir(exist_ok=True)
    (folder / f"{sibling}.py").write_text("CLASSES = 5\n")
    path = folder / f"{name}.py"
    path.write_text(OWN.format(sibling=sibling))
    return path


@pytest.fixture(autouse=True)
def _put_back(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    known = {*sys.modules}
    yield
    for name in {*sys.modules} - known:
        if name.startswith(("my_", "json_", "two-part")):
            del sys.modules[name]


def test_function_of_a_file_gives_network_and_transform(tmp_path):
    path = own(tmp_path / "code")
    loaded = load_network(f"{path}:both")
    assert not loaded.network.training
    assert loaded.transform(IMAGE).unique().tolist() == [400]
    assert "my_network.transform" in loaded.description
    assert "3 × 8 × 8" in loaded.description
    assert pickle.loads(pickle.dumps(loaded.transform)) is loaded.transform
    assert (
        load_network("my_network:both").network[2].out_features == 5
    )  # its folder can be imported from, now
    changed = {name: value + 1 for name, value in loaded.network.state_dict().items()}
    filled = load_network(f"{path}:both", saved(tmp_path / "x.safetensors", changed)).network
    torch.testing.assert_close(filled[2].bias, changed["2.bias"])
    for spec, weights, match in [
        (f"{path}:both", "default", "weights: 'default'.*my_network.py:both has its own"),
        (f"{path}:wrong", None, r"wrong returned \(Sequential, int\)"),
        (f"{path}:build", None, r"transform: None.*my_network.py:build has none.*size=224"),
        (f"{path}:biuld", None, "such as build"),
        (f"{path}:both", weights_of(tmp_path / "y.pth"), "missing: 2.weight, 2.bias; unexpected: "),
    ]:
        with pytest.raises(SettingError, match=match):
            load_network(spec, weights)


def test_file_whose_name_is_taken_is_imported(tmp_path):
    for name in ("json", "two-part"):
        path = own(tmp_path / name, name)
        assert load_network(f"{path}:both").network[2].out_features == 5
    assert importlib.import_module("json").loads("1") == 1
    broken = tmp_path / "my_broken.py"
    broken.write_text("1 / 0")
    for _ in range(2):
        with pytest.raises(SettingError, match=r"importing .*my_broken\.py raised ZeroDivisionError"):
            load_network(f"{broken}:f")


HUGGING_FACE = {"cat": 0, "dog": 1, "eel": 2}


@pytest.fixture
def vit(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        label2id=HUGGING_FACE, id2label={number: name for name, number in HUGGING_FACE.items()},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_classifier_of_transformers_is_loaded_from_a_folder(vit, monkeypatch):
    import socket

    import transformers

    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("needs the internet"))
    loaded = load_network(f"hf:{vit}")
    assert loaded.classes == list(HUGGING_FACE)
    assert "size={'height': 16, 'width': 16}" in loaded.description
    pixels = transformers.ViTImageProcessor.from_pretrained(vit)(images=IMAGE, return_tensors="pt")
    torch.testing.assert_close(loaded.transform(IMAGE)[None], pixels["pixel_values"])
    assert loaded.class_count(loaded.transform(IMAGE)) == 3
    again = pickle.loads(pickle.dumps(loaded.transform))
    assert repr(again) == repr(loaded.transform)
    changed = {name: value + 1 for name, value in loaded.network.state_dict().items()}
    weights = saved(vit / "w.safetensors", changed)
    filled = load_network(f"hf:{vit}", weights, transform="size=16,mean=0,std=1")
    torch.testing.assert_close(filled.network.classifier.bias, changed["classifier.bias"])
    other = load_network("timm:test_resnet", weights_of(vit / "r.pth"), f"hf:{vit}")
    assert other.description.startswith("ViT")


def test_folder_that_is_no_classifier_is_named(vit, monkeypatch):
    (vit / "preprocessor_config.json").unlink()
    (vit / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(SettingError, match=r"transform: None.*has none"):
        load_network(f"hf:{vit}")
    (vit / "config.json").write_text("{}")
    for spec, match in [
        (f"hf:{vit}", "an image classifier of transformers"),
        ("hf:./nowhere", "no such folder"),
        ("hf:", "hf:NAME"),
    ]:
        with pytest.raises(SettingError, match=match):
            load_network(spec)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingError, match="pip install transformers"):
        load_network(f"hf:{vit}")
