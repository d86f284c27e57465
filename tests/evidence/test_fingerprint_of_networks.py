"""Digests of networks: weights, states, attributes, hooks and names of their layers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openood_adascale.evidence.fingerprint import full_network_digest, network_digest


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 3)).eval()


@pytest.mark.parametrize(
    "register",
    [
        nn.modules.module.register_module_forward_hook,
        nn.modules.module.register_module_forward_pre_hook,
    ],
)
def test_hooks_of_all_networks(net, register):
    before = network_digest(net)
    handle = register(lambda *given: None)
    try:
        assert network_digest(net) != before
    finally:
        handle.remove()
    assert network_digest(net) == before


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
def test_hooks_of_one(net, kind):
    found = {network_digest(net)}
    for hook in (lambda *given: None, lambda *given: given[0]):
        handle = getattr(net[0], f"register_{kind}_hook")(hook)
        found.add(network_digest(net))
        handle.remove()
    assert len(found) == 3
    assert network_digest(net) in found


def test_attributes(net):
    found = [network_digest(net)]
    for value in (1, 2, "1", [1], torch.ones(2), torch.zeros(2)):
        net[0].of_mine = value
        found.append(network_digest(net))
    assert len({*found}) == len(found)
    assert network_digest(net, {"0.of_mine"}) == found[0]
    assert full_network_digest(net) == found[-1]
    net[0].of_mine = iter([])
    assert full_network_digest(net) is not None
    net[0].of_mine = (number for number in range(3))
    assert full_network_digest(net) is None


def test_buffers_that_are_left_out(net):
    one = network_digest(net, {"1.running_mean"})
    net[1].running_mean += 1
    assert network_digest(net, {"1.running_mean"}) == one != network_digest(net)


def test_weights_that_are_shared():
    def net(shared):
        layers = [nn.Linear(3, 3, bias=False) for _ in range(2)]
        layers[1].weight = layers[0].weight if shared else nn.Parameter(layers[0].weight.detach().clone())
        nn.init.eye_(layers[0].weight)
        nn.init.eye_(layers[1].weight)
        return nn.Sequential(*layers)

    assert network_digest(net(True)) == network_digest(net(True)) != network_digest(net(False))


def test_states_of_ones_own():
    class Extra(nn.Linear):
        def get_extra_state(self):
            return self.extra

        def set_extra_state(self, state):
            self.extra = state

    def net(extra):
        torch.manual_seed(0)
        layer = Extra(3, 3)
        object.__setattr__(layer, "_hidden", None)
        layer.extra = extra
        return network_digest(nn.Sequential(layer), {"0.extra"})

    assert net({"scale": 1}) == net({"scale": 1}) != net({"scale": 2})
    assert net(torch.ones(2)) != net(torch.zeros(2))


def test_modes_do_not_count(net):
    before = network_digest(net)
    assert network_digest(net.train()) == before
    assert net.training
    assert net[1].training
    assert network_digest(nn.DataParallel(net)) == before


def test_names_and_shapes():
    def net(**layers):
        torch.manual_seed(0)
        return network_digest(nn.Sequential().append(nn.ModuleDict(layers)))

    with torch.no_grad():
        assert net(a=nn.ReLU()) == net(a=nn.ReLU())
        found = [net(a=nn.ReLU()), net(b=nn.ReLU()), net(a=nn.ReLU(True)), net(a=nn.ReLU(), b=nn.ReLU())]
        found += [net(a=nn.ZeroPad2d(1)), net(a=nn.ZeroPad2d(2))]
    assert len({*found}) == len(found)
