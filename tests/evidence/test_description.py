"""What an object consists of: another text for whatever could make another result, the same for the same."""

from __future__ import annotations

import collections
import functools
import sys
import threading
from enum import Enum
from operator import attrgetter

import numpy as np
import pytest
import torch
from torch import nn

from openood_adascale.evidence.description import Unknown, described


@pytest.mark.parametrize(
    "values",
    [
        [None, 0, False, 0.0, "0", b"0", 0j, 1, True, "", b""],
        [[1, 2], (1, 2), [1, 2, 3], [2, 1], [[1], 2], {1, 2}, frozenset({1, 3}), {1: 2}, {2: 1}],
        [torch.zeros(2), torch.zeros(2, 1), torch.ones(2), torch.zeros(2).double(), np.zeros(2, np.int64)],
        [torch.nn.functional.relu, torch.relu, torch, np, len, sum, str, int, nn.Linear, nn.Conv2d],
        [attrgetter("a"), attrgetter("b"), functools.partial(int, base=2), functools.partial(int, base=3)],
        [collections.OrderedDict(a=1), collections.OrderedDict(a=2), collections.Counter("a")],
        [range(3), range(4), slice(3), complex(1, 2), np.float32(1), np.float64(1)],
    ],
)
def test_told_apart(values):
    found = [described(value) for value in values]
    assert len({*found}) == len(found)
    assert found == [described(value) for value in values]


def test_equal_content_is_the_same_text():
    assert described({3, 1, 2}) == described({2, 3, 1})
    assert described({"b", "a", ("c", 1)}) == described({("c", 1), "a", "b"})
    assert described(torch.arange(6).view(2, 3).T) == described(torch.arange(6).view(2, 3).T.contiguous())
    assert described(nn.Parameter(torch.ones(2))) == described(torch.ones(2))
    assert "0x" not in described([nn.Linear, collections.Counter("a"), np.arange(3)])


@pytest.mark.parametrize("count", [255, 256, 3000])
@pytest.mark.parametrize("make", [int, str, float, lambda number: (str(number), number)])
def test_long_lists(count, make):
    values = [make(number) for number in range(count)]
    text = described(values)
    assert text == described(list(values))
    assert (len(text) < 70) == (count >= 256)
    assert text != described([*values[:-1], make(count)])
    assert text != described(values[::-1])
    assert text != described(values[:-1])
    odd = [*values[:-1], [1]]
    assert described(odd) != described([*values[:-1], [2]])


class Colour(Enum):
    RED = 1
    BLUE = 2


class Point:
    def __init__(self, x):
        self.x = x

    def far(self):
        return self.x


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Kept:
    """Tells pickle less than it has."""

    def __init__(self, shown, hidden):
        self.shown, self.hidden = shown, hidden

    def __getstate__(self):
        return {"shown": self.shown}


class Wrapper:
    def __init__(self, value):
        self.__wrapped__ = value

    def __reduce__(self):
        return Wrapper, (None,)


class Named:
    def __reduce__(self):
        return "the_one"


class Listed(list):
    pass


class Keyed(dict):
    pass


@pytest.mark.parametrize(
    "values",
    [
        [Colour.RED, Colour.BLUE],
        [Point(1), Point(2), Slotted(1), Slotted(2)],
        [Point(1).far, Point(2).far, Point(1)],
        [Kept(1, 1), Kept(1, 2), Kept(2, 1)],
        [Wrapper(1), Wrapper(2)],
        [Listed([1]), Listed([2]), Keyed(a=1), Keyed(a=2)],
        [classmethod(Point.far), staticmethod(Point.far), property(Point.far)],
        [Named(), Point],
    ],
)
def test_objects(values):
    found = [described(value) for value in values]
    assert len({*found}) == len(found)
    assert found == [described(value) for value in values]


def test_an_object_that_pickle_finds_by_name():
    assert described(Named()) == f"{__name__}.the_one;"


@pytest.mark.parametrize("value", [threading.Lock(), iter([]).__class__, (n for n in "a"), sys.stdout])
def test_what_does_not_show(value):
    if isinstance(value, type):
        assert described(value)
        return
    for given in (value, [value], {"a": value}, Point(value)):
        with pytest.raises(Unknown):
            described(given)


def test_circles_end_and_count():
    def ring(size, far):
        first = [far]
        now = first
        for number in range(size):
            now.append([number])
            now = now[-1]
        now.append(first)
        return first

    assert described(ring(3, 0)) == described(ring(3, 0))
    assert len({described(ring(*given)) for given in [(3, 0), (4, 0), (3, 1)]}) == 3
    one, other = [1], [1]
    assert described([one, one]) != described([one, other])
    assert described([one, other, one]) != described([one, other, other])


def test_tensor_bytes():
    values = torch.tensor([1.0, 2.0])
    assert described(values) == described(values.numpy()) == described(values.clone().requires_grad_())
    assert described(values) != described(torch.tensor([1.0, 3.0]))
    assert described(values.bfloat16()) != described(values.half())
    assert described(torch.tensor(3)) != described(torch.tensor([3]))
    assert described(torch.zeros(0)) != described(torch.zeros(0, 1))
