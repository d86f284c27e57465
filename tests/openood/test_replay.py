"""OpenOOD's own postprocessors on stored activations: the same figures, or run on the images as always."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from openood_postprocessing import write_yml
from openood_replayed import Net, evaluated

from openood_adascale import unregister, using_store
from openood_adascale.plugin.comparison import FROM_FEATURES
from openood_adascale.plugin.qualification import NEED_IMAGES

BY_FULL_NETWORKS_ONLY = {"she"}  # wants all ten classes predicted
TOO_FEW_IMAGES = {"vim", "mds", "rmds"}  # NaN on the images alike, with as few images as these


@pytest.mark.parametrize("name", sorted({*FROM_FEATURES} - BY_FULL_NETWORKS_ONLY - TOO_FEW_IMAGES))
def test_from_features_the_figures_are_the_same(small_evaluator, common, name, capfd):
    torch.manual_seed(1)
    want, images, _ = evaluated(small_evaluator, Net(), name)
    drawn = torch.rand(2)
    assert images > 200
    for _ in range(2):
        torch.manual_seed(1)
        with using_store(common):
            got, _, evaluator = evaluated(small_evaluator, Net(), name)
        pd.testing.assert_frame_equal(got, want, atol=2e-3, rtol=0)
        assert torch.equal(torch.rand(2), drawn)
    assert "as always" not in capfd.readouterr().err
    with using_store(common):
        assert evaluated(small_evaluator, Net(), name)[1] <= 64  # those that were scored both ways
    # What the user sees of the evaluator is his own.
    assert type(evaluator.net).__name__ in ("Net", "ReactNet", "ASHNet", "ScaleNet")
    assert isinstance(next(iter(evaluator.dataloader_dict["id"]["test"]))["data"], torch.Tensor)
    assert next(iter(evaluator.dataloader_dict["id"]["test"]))["data"].ndim == 4
    assert b"openood_adascale" not in pickle.dumps(evaluator.postprocessor)


@pytest.mark.parametrize("name", ["odin", "adascale_a", "dropout"])
def test_known_to_need_the_images(small_evaluator, tmp_path, capfd, name):
    with using_store(tmp_path / "store"):
        try:
            _, images, _ = evaluated(small_evaluator, Net(), name)
        except Exception:  # this network does not do for them
            images = None
    told = [line for line in capfd.readouterr().err.splitlines() if "as always" in line]
    assert told == [f"openood-adascale: {name}: run on the images, as always: {NEED_IMAGES[name]}"]
    assert images is None or images > 900


def test_a_method_of_the_users_own(small_evaluator, common, capfd):
    """Nobody has heard of it; it needs features, draws random numbers, and is passed in as an instance."""
    from openood.postprocessors import BasePostprocessor

    class Own(BasePostprocessor):
        APS_mode, hyperparam_search_done = True, False
        args_dict = {"power_list": [1, 2]}  # noqa: RUF012
        setup_flag = False

        def setup(self, net, known, unknown):
            if not self.setup_flag:
                self.direction = torch.randn(128) + np.random.rand()  # noqa: NPY002
                self.labels = torch.cat([batch["label"] for batch in known["train"]])
                self.setup_flag = True

        def set_hyperparam(self, chosen):
            self.power = chosen[0]

        def get_hyperparam(self):
            return self.power

        @torch.no_grad()
        def postprocess(self, net, data):
            logits, feature = net(data.cuda().float(), return_feature=True)
            assert len(data) == data.size(0) == data.shape[0] == len(data[:])
            assert feature.device == next(net.parameters()).device == data.device
            return logits.argmax(1), (feature @ self.direction) ** self.power

    def run(**kwargs):
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        instance = Own(None)
        table, images, evaluator = evaluated(small_evaluator, Net(), postprocessor=instance, **kwargs)
        assert evaluator.postprocessor is instance
        return table, images, instance

    for shuffle in (False, True):
        want, _, first = run(shuffle=shuffle)
        with using_store(common):
            run(shuffle=shuffle)
            got, images, second = run(shuffle=shuffle)
        pd.testing.assert_frame_equal(got, want, atol=2e-3, rtol=0)
        assert images <= 64
        assert torch.equal(first.labels, second.labels)  # in the same shuffled order
        assert torch.equal(first.direction, second.direction)
    assert "as always" not in capfd.readouterr().err


def test_without_a_store_nothing_of_openoods_is_another(small_evaluator):
    net = Net()
    _, images, evaluator = evaluated(small_evaluator, net, "msp")
    assert images == evaluated(small_evaluator, net, "msp")[1] > 200
    assert evaluator.net is net


def test_a_network_that_changes_afterwards(small_evaluator, common):
    net = Net()
    with using_store(common):
        evaluator = small_evaluator("msp", net=net)
        with torch.no_grad():
            net.fc.weight *= -1
        got = evaluator.eval_ood(progress=False)
    other = Net()
    with torch.no_grad():
        other.fc.weight *= -1
    pd.testing.assert_frame_equal(got, evaluated(small_evaluator, other, "msp")[0], atol=2e-3, rtol=0)


def test_random_images_are_not_replayed(small_evaluator, tmp_path, capfd):
    from torchvision import transforms

    crop = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.ToTensor()])
    with using_store(tmp_path / "store"):
        _, images, _ = evaluated(small_evaluator, Net(), "msp", preprocessor=crop)
    assert images > 200
    assert "as always: the images of id test cannot be stored" in capfd.readouterr().err


def test_accuracy_comes_from_the_store_too(small_evaluator, small_net, tmp_path, packaged):
    write_yml(tmp_path, "adascale", packaged / "adascale.yml", APS_mode=False)
    net = copy.deepcopy(small_net)
    first, images, _ = evaluated(small_evaluator, small_net, "adascale", config_root=str(tmp_path))
    second, again, _ = evaluated(small_evaluator, small_net, "adascale", config_root=str(tmp_path))
    assert again == 0 < images
    pd.testing.assert_frame_equal(first, second)
    with using_store(False):
        pd.testing.assert_frame_equal(
            evaluated(small_evaluator, net, "adascale", config_root=str(tmp_path))[0],
            first,
            atol=2e-3,
            rtol=0,
        )


def test_unregister_gives_the_evaluator_back(small_evaluator, common):
    from openood.evaluation_api import Evaluator

    from openood_adascale import register

    def replaced():
        methods = Evaluator.__init__, Evaluator.eval_ood, Evaluator.eval_acc
        return [hasattr(method, "__wrapped__") for method in methods]

    assert all(replaced())
    unregister()
    try:
        assert not any(replaced())
    finally:
        register()
    assert all(replaced())
