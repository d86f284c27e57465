"""A network as a source of Evidence: what it knows of the network, and when."""

from __future__ import annotations

import pickle

import networks as tv
import pytest
import torch
from tiny import HEAD, TinyNet, make_images
from torch import nn

from openood_adascale.evidence.modes import device_of
from openood_adascale.evidence.plan import Execution, Perturbation, Plan
from openood_adascale.evidence.reader import Reader


class Tripled(TinyNet):
    """Whose weights are others in eval mode."""

    def train(self, mode=True):
        if mode != self.training:
            with torch.no_grad():
                self.fc.weight.mul_(1 / 3 if mode else 3)
                self.fc.bias.mul_(1 / 3 if mode else 3)
        return super().train(mode)


def read(reader, images):
    return reader.encode(images, (), Execution())


def test_before_a_pass_nothing_is_known(network, id_images):
    reader = Reader(network)
    assert reader.head is None
    assert not reader.untouched
    assert not reader.stochastic
    read(reader, id_images)
    assert reader.untouched
    torch.testing.assert_close(reader.head.weight, network.fc.weight.detach())
    torch.testing.assert_close(reader.head.bias, network.fc.bias.detach())
    assert sum(network.calls) == HEAD + 50


def test_the_head_of_a_network_that_was_touched(network, id_images):
    reader = Reader(network)
    read(reader, id_images)
    with torch.no_grad():
        network.fc.weight += 1
    assert not reader.untouched
    torch.testing.assert_close(reader.head.weight, network.fc.weight.detach())
    network.fc = nn.Linear(64, 7)
    assert reader.head is None
    assert read(reader, id_images).logits.shape == (50, 7)
    assert reader.head.weight.shape == (7, 64)


def test_the_head_is_that_of_eval_mode(id_images):
    torch.manual_seed(0)
    network = Tripled().eval()
    reader, want = Reader(network), network.fc.weight.detach().clone()
    read(reader, id_images)
    network.train()
    head = reader.head
    torch.testing.assert_close(head.weight, want)
    torch.testing.assert_close(network.fc.weight.detach(), want / 3)
    network.eval()
    assert reader.head.weight.data_ptr() == network.fc.weight.data_ptr()  # no copy where none is needed


def test_a_second_pass_looks_for_no_head(network, id_images):
    reader = Reader(network)
    read(reader, id_images)
    network.calls.clear()
    read(reader, id_images)
    assert sum(network.calls) == 50


def test_what_a_pass_itself_changes(id_images):
    network = tv.Counting().eval()
    reader = Reader(network)
    read(reader, id_images)
    assert reader.volatile == {"runs"}
    assert reader.untouched
    digest = reader.digest()
    read(reader, id_images)
    assert reader.digest() == digest
    assert not reader.stochastic


def test_a_reader_that_is_sent(network, id_images):
    reader = Reader(network)
    read(reader, id_images)
    reader.volatile = frozenset({"features.1.running_mean"})
    again = pickle.loads(pickle.dumps(reader))
    assert again.volatile == reader.volatile
    assert again.head is None
    assert again.digest() == reader.digest()
    torch.testing.assert_close(read(again, id_images).logits, read(reader, id_images).logits)


@pytest.mark.parametrize("wrap", [lambda network: network, nn.DataParallel])
def test_what_a_store_notes(network, id_images, wrap):
    assert Reader(wrap(network)).probe(id_images) == {"head": "fc", "D": 64, "C": 5}


@pytest.mark.filterwarnings("ignore:network")
@pytest.mark.parametrize("make", [tv.BatchStatistics, tv.Counting])
def test_what_no_store_notes(make, id_images):
    assert Reader(make().eval()).probe(id_images) is None


def test_evidence_is_the_plans(network, id_images):
    plan = Plan((60, 90), (5,), (50,), (Perturbation("random", 0.1, 0.2),))
    evidence = Reader(network).read(id_images, plan, Execution())
    assert evidence.plan == plan
    assert len(evidence) == 50
    assert not evidence.logits.requires_grad
    moved = evidence.to(torch.device("cpu", 0))
    torch.testing.assert_close(moved.parts, evidence.parts)
    torch.testing.assert_close(moved.head, evidence.head)
    assert (moved.plan, moved.size, moved.first_kept) == (plan, 64, evidence.first_kept)
    copied = evidence[3:5].cpu()
    assert copied.logits.untyped_storage().nbytes() == 2 * 5 * 4


@pytest.mark.parametrize(("batch", "sizes"), [(20, [20, 20, 10]), ("loader", [50])])
def test_how_it_is_run(network, batch, sizes, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    reader, images = Reader(network), make_images(50, 3)
    read(reader, images)
    network.calls.clear()
    reader.encode(images, (), Execution(batch=batch))
    assert network.calls == sizes
    network.calls.clear()
    only = reader.encode(images, (Perturbation("random", 0.1, 0.2),), Execution(batch=batch), False)
    assert network.calls == sizes
    assert len(only.logits) == 0
    assert [len(moved) for moved in only.perturbed.values()] == [50]


def test_where_a_gpu_has_no_room_for_two_images_one_is_enough(network, id_images):
    whole, room = network.forward, 1

    def forward(images):
        if len(images) > room:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return whole(images)

    network.forward = forward
    assert Reader(network).read(id_images[:1], Plan(), Execution()).logits.shape == (1, 5)
    room = 0
    with pytest.raises(MemoryError, match=r"one image \(3 × 8 × 8\) does not fit"):
        Reader(network).read(id_images[:1], Plan(), Execution())


def test_a_network_without_weights_is_on_the_cpu():
    assert device_of(nn.Identity()) == torch.device("cpu")
