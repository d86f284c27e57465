"""OpenOOD's own postprocessors on stored activations: the same figures, or run on the images as always."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from openood_postprocessing import SmallNet, write_yml

from openood_adascale import unregister, using_store
from openood_adascale.plugin.comparison import FROM_FEATURES
from openood_adascale.plugin.qualification import NEED_IMAGES

BY_FULL_NETWORKS_ONLY = {"she"}  # wants all ten classes predicted
TOO_FEW_IMAGES = {"vim", "mds", "rmds"}  # NaN on the images alike, with as few images as these


class Net(SmallNet):
    def get_fc(self):
        return self.fc.weight.detach().numpy(), self.fc.bias.detach().numpy()


def evaluated(small_evaluator, net, name=None, **kwargs):
    """The table, and how many images went through the network."""
    net.images = 0
    evaluator = small_evaluator(name, net=net, **kwargs)
    table = evaluator.eval_ood(progress=False)
    return table, net.images, evaluator


@pytest.fixture(scope="session")
def common(tmp_path_factory):
    """A store that all tests of this file share, and the figures on the images by name."""
    return tmp_path_factory.mktemp("common") / "store"


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


def looking_at_images(base):
    """Postprocessors that need more than z and a, each in a way of its own."""

    class Perturbs(base):
        def postprocess(self, net, data):
            with torch.enable_grad():
                data = torch.autograd.Variable(data, requires_grad=True)
                net(data).max(1).values.sum().backward()
            return super().postprocess(net, data.detach() - 0.1 * data.grad.sign())

    class Brightness(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf + data.flatten(1).mean(1)

    class BrightnessInSetup(base):
        def setup(self, net, known, unknown):
            self.mean = float(next(iter(known["val"]))["data"].mean())

        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * self.mean

    class Swallows(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            try:
                conf = conf + data.amax((1, 2, 3))
            except Exception:
                conf = conf * 2
            return pred, conf

    class Size(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * np.prod(data.shape[1:])

    return [Perturbs, Brightness, BrightnessInSetup, Swallows, Size]


def looking_into_the_network(base):
    """The same, with what a network can be asked for."""

    class Noise(base):
        @torch.no_grad()
        def postprocess(self, net, data):
            pred, _ = super().postprocess(net, data)
            return pred, net(torch.zeros(len(data), 3, 32, 32) + 0.1).amax(1) + super().postprocess(
                net, data
            )[1]

    class Layers(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * float(net.conv.weight.norm())

    class Norm(base):
        def postprocess(self, net, data):
            pred, conf = super().postprocess(net, data)
            return pred, conf * sum(float(p.norm()) for p in net.parameters())

    class Hooks(base):
        def setup(self, net, known, unknown):
            self.seen = []
            handle = net.register_forward_hook(lambda *given: self.seen.append(1))
            for batch in known["val"]:
                net(batch["data"])
            handle.remove()

    class Trains(base):
        def postprocess(self, net, data):
            net.train()
            found = super().postprocess(net, data)
            net.eval()
            return found

    class Auxiliary(base):
        def inference(self, net, data_loader, progress=True):
            found = super().inference(net, data_loader, progress)
            mean = [batch["data_aux"].flatten(1).mean(1) for batch in data_loader]
            return found[0], found[1] + torch.cat(mean).numpy(), found[2]

    class Keeps(base):
        def setup(self, net, known, unknown):
            self.net = net

    return [Noise, Layers, Norm, Hooks, Trains, Auxiliary, Keeps]


@pytest.mark.parametrize("number", range(12))
def test_whoever_needs_more_is_run_on_the_images(small_evaluator, common, number, capfd):
    from openood.postprocessors import BasePostprocessor

    kind = [*looking_at_images(BasePostprocessor), *looking_into_the_network(BasePostprocessor)][number]

    def made():
        instance = kind(None)
        instance.APS_mode, instance.hyperparam_search_done = False, False
        return instance

    want, _, _ = evaluated(small_evaluator, Net(), postprocessor=made())
    with using_store(common):
        got, images, evaluator = evaluated(small_evaluator, Net(), postprocessor=made())
    pd.testing.assert_frame_equal(got, want, atol=2e-3, rtol=0)
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "as always" in line]
    assert told.startswith(f"openood-adascale: {kind.__name__}: run on the images, as always: ")
    assert images > 200
    assert type(evaluator.net) is Net


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
