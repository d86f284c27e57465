"""Evidence: what a plan asked for is there, everything else is told."""

import pytest
import torch
from tiny import make_images, make_loader

from openood_adascale.errors import Unavailable
from openood_adascale.evidence.collect import collect
from openood_adascale.evidence.plan import Execution, Perturbation, Plan
from openood_adascale.evidence.reader import Reader

P = Perturbation("trivial", 0.05, 0.5)
RANDOM = Perturbation("random", 0.05, 0.5)


def read(network, plan, images=None):
    images = make_images(30, 1) if images is None else images
    return collect(Reader(network), make_loader(images), plan, Execution()).evidence


def test_what_was_not_asked_for_is_told(network):
    evidence = read(network, Plan())
    assert set(evidence.parts) == {"logits", "prediction"}
    for ask in (
        lambda: evidence.activation,
        lambda: evidence.scaling_factor(80.0),
        lambda: evidence.oodness(P, 1, 5, 10),
        lambda: read(network, Plan(k1=(1,), k2=(5,), perturbations=(P,))).oodness(P, 2, 5, 10),
        lambda: read(network, Plan(k1=(1,), k2=(5,), perturbations=(P,))).oodness(RANDOM, 1, 5, 10),
    ):
        with pytest.raises(Unavailable, match=r"evidence: .* its plan asked for Plan"):
            ask()


def test_a_plan_covers_what_it_asked_for():
    one, other = Plan((60, 90), (1,), (5,), (P, RANDOM)), Plan((70, 80), (1,), (5,), (RANDOM,))
    assert one.covers(other)
    assert not other.covers(one)
    assert Plan((60, 90), (1,), (5,), (RANDOM, P)).covers(one)
    assert not one.covers(Plan(activations=True))
    assert not one.covers(Plan((50, 60)))
    assert Plan.union([]) == Plan()


def test_evidence_for_many_is_what_it_is_for_one(network):
    everything = Plan((50, 99), (1, 5, 50), (5, 100), (P, RANDOM), activations=True)
    whole = read(network, everything)
    one = read(network, Plan((80, 85), (5,), (100,), (RANDOM,)))
    torch.testing.assert_close(whole.oodness(RANDOM, 5, 100, 10), one.oodness(RANDOM, 5, 100, 10))
    percentiles = torch.linspace(80, 85, 30, dtype=torch.float64)
    torch.testing.assert_close(whole.scaling_factor(percentiles), one.scaling_factor(percentiles))
    torch.testing.assert_close(whole.scaling_factor(80.0), one.scaling_factor(torch.full((30,), 80.0)))
    part = whole[3:7]
    assert len(part) == 4
    torch.testing.assert_close(part.oodness(P, 1, 5, 10), whole.oodness(P, 1, 5, 10)[3:7])


def test_percentiles_alone_and_perturbations_alone(network):
    assert set(read(network, Plan((80, 85))).parts) == {"logits", "prediction", "total", "kept"}
    assert ("shift", P, 1) in read(network, Plan(k1=(1,), k2=(5,), perturbations=(P,))).parts


def test_the_order_of_a_plan_makes_no_difference():
    one = Plan((60, 90), (5, 1), (50, 5), (P, RANDOM), activations=True)
    other = Plan((60, 90), (1, 5), (5, 50), (RANDOM, P), activations=True)
    assert one.covers(other)
    assert other.covers(one)
    assert one.covers(one)
