"""AdaSCALE on every kind of network that OpenOOD has."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def openood_networks() -> dict:
    import openood.networks as n
    from openood.networks.adascale_net import AdaScaleANet
    from openood.networks.ascood_net import ASCOODNet
    from openood.networks.ash_net import ASHNet
    from openood.networks.bit import KNOWN_MODELS
    from openood.networks.conf_branch_net import ConfBranchNet
    from openood.networks.csi_net import CSINet
    from openood.networks.lenet import LeNet
    from openood.networks.rot_net import RotNet
    from openood.networks.t2fnorm_net import T2FNormNet
    from openood.networks.udg_net import UDGNet

    def small():
        return n.ResNet18_32x32(num_classes=10)

    return {
        "ResNet18_32x32": (small, 32), "ResNet18_224x224": (lambda: n.ResNet18_224x224(num_classes=10), 64),
        "ResNet50": (n.ResNet50, 64), "RegNet": (n.RegNet_Y_16GF, 64), "ViT": (n.ViT_B_16, 224), "Swin": (n.Swin_T, 64),
        "WideResNet": (lambda: n.WideResNet(10, 10, 2), 32), "DenseNet": (lambda: n.DenseNet3(10, 10), 32),
        "LeNet": (lambda: LeNet(10), 28), "BiT": (lambda: KNOWN_MODELS["BiT-S-R50x1"](head_size=10, zero_head=False), 64),
        "ASCOODNet": (lambda: ASCOODNet(small()), 32), "ConfBranchNet": (lambda: ConfBranchNet(small(), 10), 32),
        "RotNet": (lambda: RotNet(small(), 10), 32), "T2FNormNet": (lambda: T2FNormNet(small(), 10), 32),
        "UDGNet": (lambda: UDGNet(small(), 10, 20), 32), "CSINet": (lambda: CSINet(small(), 512, num_classes=10), 32),
        **{w.__name__: (lambda w=w: w(small()), 32) for w in (ASHNet, AdaScaleANet)},
        "DataParallel": (lambda: torch.nn.DataParallel(small()), 32),
    }  # fmt: skip


@pytest.mark.parametrize("name", [
    "ResNet18_32x32", "ResNet18_224x224", "ResNet50", "RegNet", "ViT", "Swin", "WideResNet", "DenseNet", "LeNet", "BiT",
    "ASCOODNet", "ConfBranchNet", "RotNet", "T2FNormNet", "UDGNet", "CSINet", "ASHNet", "AdaScaleANet", "DataParallel",
])  # fmt: skip
def test_adascale_scores_every_classifier_of_openood(name):
    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    make, side = openood_networks()[name]
    torch.manual_seed(0)
    net = make().eval()
    loader = [{"data": torch.randn(2, 3, side, side), "label": torch.zeros(2, dtype=torch.long)}]
    postprocessor = AdaSCALEPostprocessor(num_samples=1)
    postprocessor.setup(net, {"val": loader}, {})
    pred, conf, label = postprocessor.inference(net, loader, progress=False)
    assert pred.shape == conf.shape == label.shape == (2,)
    assert np.isfinite(conf).all()


def test_networks_without_linear_classifier_are_refused():
    from openood.networks import ResNet18_32x32
    from openood.networks.cider_net import CIDERNet
    from openood.networks.godin_net import GodinNet

    from openood_adascale.plugin.postprocessor import AdaSCALEPostprocessor

    loader = [{"data": torch.randn(4, 3, 32, 32), "label": torch.zeros(4, dtype=torch.long)}]
    for net in (GodinNet(ResNet18_32x32(), 512, 10), CIDERNet(ResNet18_32x32(), "mlp", 128, 10)):
        with pytest.raises((ValueError, TypeError), match=f"network: .*{type(net).__name__}"):
            AdaSCALEPostprocessor().setup(net.eval(), {"val": loader}, {})
