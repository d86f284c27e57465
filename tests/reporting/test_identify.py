"""What paths and names say was evaluated."""

from __future__ import annotations

import pytest
from result_files import RESNET50, authors, comparison, imagenet_csv

from openood_adascale.detectors.registry import METHODS
from openood_adascale.reporting.identify import identify
from openood_adascale.reporting.names import LABELS, canonical_set, method_of


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{RESNET50}/ood/adascale.csv", ("imagenet", "resnet50", "AdaSCALE-A", "ood")),
        (f"{RESNET50}/fsood/adascale_l.csv", ("imagenet", "resnet50", "AdaSCALE-L", "fsood")),
        ("imagenet_regnet_tvsv1_base_default/ood/scale.csv", ("imagenet", "regnet-y-16gf", "SCALE", "ood")),
        ("imagenet_vit-b-16_tvsv1_base_default/ood/msp.csv", ("imagenet", "vit-b-16", "MSP", "ood")),
        (
            "cifar10_resnet18_32x32_base_e100_lr0.1_default/ood/adascale_logit.csv",
            ("cifar10", "resnet18_32x32", "AdaSCALE-L", "ood"),
        ),
        (
            "imagenet200_resnet18_224x224_base_e90_lr0.1_default/ood/ash.csv",
            ("imagenet200", "resnet18_224x224", "ASH", "ood"),
        ),
        (
            "cifar10_resnet18_32x32_test_ood_ood_adascale_logit_my_mark/s0/ood/ood.csv",
            ("cifar10", "resnet18_32x32", "AdaSCALE-L", "ood"),
        ),
        (
            "cifar100_resnet18_32x32_test_ood_fsood_mls_0/ood.csv",
            ("cifar100", "resnet18_32x32", "MLS", "fsood"),
        ),
        ("ish/ood/adascale_a.csv", ("imagenet", "resnet50-ISH", "AdaSCALE-A", "ood")),
        ("imagenet_resnet50_ish_default/ood/react.csv", ("imagenet", "resnet50-ISH", "ReAct", "ood")),
        ("here/adascale_resnet50.csv", (None, "resnet50", "AdaSCALE-A", None)),
        ("here/adascale_logit_imagenet_vit_b_16.csv", ("imagenet", "vit-b-16", "AdaSCALE-L", None)),
        ("here/adascale_wrn_28_10_cifar100.csv", ("cifar100", "wrn-28-10", "AdaSCALE-A", None)),
        ("here/adascale_random.csv", (None, None, None, None)),
        ("here/knn.csv", (None, None, None, None)),
        # The scheme stands between the run's folder and the file.
        (f"fsood/results/{RESNET50}/adascale.csv", ("imagenet", "resnet50", "AdaSCALE-A", None)),
        (f"fsood/{RESNET50}/s0/ood/x/adascale.csv", ("imagenet", "resnet50", "AdaSCALE-A", "ood")),
        (f"{RESNET50}/fsood/../adascale.csv", ("imagenet", "resnet50", "AdaSCALE-A", None)),
        (
            "fsood/cifar10_resnet18_32x32_test_ood_ood_msp_0/ood.csv",
            ("cifar10", "resnet18_32x32", "MSP", "ood"),
        ),
        ("fsood/results/adascale.csv", (None, None, "AdaSCALE-A", None)),
        ("mine/fsood/adascale.csv", (None, None, "AdaSCALE-A", "fsood")),
        # A folder further up is another's where one nearer names something else.
        (f"{RESNET50}/results/cifar10/ood/msp.csv", (None, None, "MSP", "ood")),
        (f"{RESNET50}/results/regnet/ood/msp.csv", (None, None, "MSP", "ood")),
        (f"{RESNET50}/tables/imagenet/ood/msp.csv", ("imagenet", "resnet50", "MSP", "ood")),
        ("imagenet_project/results/mine/ood/msp.csv", (None, None, "MSP", "ood")),
        ("ish/results/msp.csv", (None, None, "MSP", None)),
        ("cifar10_mynet_base_default/s0/ood/msp.csv", ("cifar10", "mynet", "MSP", "ood")),
    ],
)
def test_identify(tmp_path, path, expected):
    found = identify(tmp_path / path)
    assert (found.dataset, found.network, found.method, found.scheme) == expected
    assert found.training is None


@pytest.mark.parametrize(
    ("folder", "training"),
    [
        ("imagenet_resnet50_tvsv2_base_default", "torchvision weights V2"),
        ("cifar10_resnet18_32x32_augmix_e100_lr0.1_default", "augmix"),
    ],
)
def test_other_training_is_not_compared_silently(tmp_path, capsys, folder, training):
    path = imagenet_csv(tmp_path / folder / "ood" / "adascale.csv", authors())
    assert identify(path).training == training
    assert comparison(path) == 2
    assert training in capsys.readouterr().err
    assert comparison(path, "--dataset", "imagenet", "--network", "resnet50") == 0
    assert training in capsys.readouterr().out


def test_set_names():
    assert {canonical_set(name) for name in ("openimageo", "OpenImage-O", "openimage_o")} == {"openimage_o"}
    assert {canonical_set(name) for name in ("ImageNet-O", "imagenet_o")} == {"imagenet_o"}


def test_names_of_this_packages_methods_come_from_its_registry():
    for method in METHODS.values():
        assert LABELS[method.name] == method.label
        assert method_of(method.name) == (method.label, None)


def test_presets_name_their_network():
    """They are called <method>_<more>; the longest method wins."""
    assert method_of("adascale_logit_cifar10_wrn_28_10") == ("AdaSCALE-L", ("cifar10", "wrn-28-10"))
    assert method_of("lts_resnet50") == ("LTS", (None, "resnet50"))
    assert method_of("adascale_joint") == (None, None)
    assert method_of("scale_resnet50") == (None, None)  # OpenOOD's own, which has no presets
