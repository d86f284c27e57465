"""A loader's data set: how its batches are made anew, and whether its images stay what they are."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from tiny import make_images, make_loader
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from openood_adascale.evidence.dataset import (
    batches_of,
    image_of,
    in_words,
    is_deterministic,
    random_states,
    recipe_of,
    some_images,
    undisturbed,
)


def drawn():
    return random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002


def test_nobody_is_disturbed():
    put_back = random_states()
    want = drawn()
    put_back()
    with undisturbed():
        drawn()
    assert drawn() == want
    put_back()

    def draw_and_fail():
        drawn()
        raise KeyError

    with pytest.raises(KeyError), undisturbed():
        draw_and_fail()
    assert drawn() == want


class Own(Dataset):
    """Images that ``read`` makes of a place."""

    def __init__(self, read, count=20):
        self.read, self.count, self.memory = read, count, []

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.read(self, index)


def grows(dataset, index):
    dataset.memory.append(index)
    return torch.zeros(3, 8, 8), 0


def grey(dataset, index):
    return torch.full((3, 8, 8), float(index)), 0


def varies_in_size(dataset, index):
    size = 8 + int(torch.initial_seed()) % 2
    return torch.zeros(3, size, 8), 0


def sometimes_another(dataset, index):
    return torch.zeros(3, 8, 8) + torch.initial_seed() % 2, 0


def draws_without_use(dataset, index):
    drawn()
    return torch.zeros(3, 8, 8), 0


@pytest.mark.parametrize(
    ("read", "want"),
    [
        (grey, True),
        (grows, False),
        (varies_in_size, False),
        (sometimes_another, False),
        (draws_without_use, False),
    ],
)
def test_whether_images_stay(read, want):
    before = random_states()
    first = drawn()
    before()
    assert is_deterministic(Own(read), image_of) is want
    assert drawn() == first


def test_gpus_draw_what_they_would_have_drawn(monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)  # torch.manual_seed calls it
    torch.manual_seed(3)
    assert is_deterministic(Own(grey), image_of)
    assert seeds == [3]


def test_the_places_that_are_looked_at():
    """The first, the last and some between, or all where there are few; a random one is found at any of them."""
    seen = set()

    def looked_at(sample):
        seen.add(int(sample[1]))
        return image_of(sample)

    numbered = Own(lambda _, index: (torch.zeros(2), index), 1000)
    assert is_deterministic(numbered, looked_at)
    assert len(seen) == 8
    assert {0, 999} <= seen
    for odd in seen:
        one = Own(lambda _, index, odd=odd: (torch.zeros(2) + (index == odd) * torch.rand(2), 0), 1000)
        assert not is_deterministic(one, image_of)
    seen.clear()
    numbered.count = 3
    assert is_deterministic(numbered, looked_at)
    assert seen == {0, 1, 2}


def test_a_data_set_that_does_not_show_its_content():
    class Locked(Own):
        def __init__(self):
            super().__init__(grey)
            self.file = iter([])

    assert is_deterministic(Locked(), image_of)


def test_some_images():
    assert some_images(Own(grey)).flatten(1)[:, 0].tolist() == [0, 19]
    uneven = Own(lambda _, index: (torch.ones(3, 8, 8 + index), 0))
    assert some_images(uneven).shape == (1, 3, 8, 8)


def test_one_image_of_each_kind_of_sample():
    image = make_images(1, 0)[0]
    for sample in (image, (image, 3), {"data": image, "label": 3}):
        assert torch.equal(image_of(sample), image[None])


class Described(Dataset):
    def __len__(self):
        return 3


@pytest.mark.parametrize(
    ("attributes", "want"),
    [
        ({}, "Described"),
        ({"name": "mine"}, "Described mine"),
        ({"root": "a", "name": "mine"}, "Described a"),
        ({"imglist_pth": "list", "root": "a"}, "Described list"),
        ({"imglist": ["b/c.png 4", "d.png 5"], "root": "a"}, "Described a b/c.png"),
    ],
)
def test_in_words(attributes, want):
    dataset = Described()
    vars(dataset).update(attributes)
    assert in_words(dataset) == want
    assert in_words(Subset(Subset(dataset, [0]), [0])) == want


def twice(samples):
    images, labels = torch.utils.data.default_collate(samples)
    return 2 * images, labels


def begin(worker):
    torch.manual_seed(worker)


class TestRecipe:
    @pytest.fixture
    def dataset(self):
        return TensorDataset(make_images(20, 1), torch.arange(20))

    def test_what_has_none(self, dataset):
        class Mine(DataLoader):
            pass

        class Stream(IterableDataset):
            def __iter__(self):
                return iter(range(3))

        for loader in (
            Mine(dataset),
            DataLoader(dataset, batch_size=None),
            DataLoader(Stream()),
            [dataset],
            None,
        ):
            assert recipe_of(loader) is None

    def test_the_loaders_parts(self, dataset):
        context = torch.multiprocessing.get_context("spawn")
        loader = DataLoader(
            dataset,
            3,
            collate_fn=twice,
            num_workers=2,
            timeout=7,
            worker_init_fn=begin,
            multiprocessing_context=context,
        )
        recipe = recipe_of(loader)
        assert recipe.dataset is dataset
        made = recipe.loader([[1, 2], [3]], 2)
        for name in ("collate_fn", "worker_init_fn", "timeout", "multiprocessing_context", "pin_memory"):
            assert getattr(made, name) == getattr(loader, name), name
        assert (made.num_workers, list(made.batch_sampler)) == (2, [[1, 2], [3]])
        assert recipe.loader([[1, 2], [3]], 5).num_workers == 2  # no more than there are batches
        assert recipe.loader([[1], [2], [3]], 2).num_workers == 2
        alone = recipe.loader([[1, 2, 3]], 2)  # which is read sooner than a process starts
        assert (alone.num_workers, alone.timeout, alone.multiprocessing_context) == (0, 0, None)
        none = recipe.loader([[1, 2], [3]], 0)
        assert (none.num_workers, none.timeout, none.multiprocessing_context) == (0, 0, None)
        sent = pickle.loads(pickle.dumps(recipe))
        assert sent.context is None
        assert sent.collate_fn is twice
        assert sent.timeout == 7
        assert len(sent.dataset) == 20

    def test_its_batches(self, dataset):
        recipe = recipe_of(DataLoader(dataset, 3, collate_fn=twice, shuffle=True))
        before = torch.get_rng_state()
        ((images, labels), (more, of_more)) = recipe.loader([[4, 2], [19]], 0)
        assert torch.equal(images, 2 * dataset.tensors[0][[4, 2]])
        assert torch.equal(more, 2 * dataset.tensors[0][19:])
        assert [*labels.tolist(), *of_more.tolist()] == [4, 2, 19]
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("more", [{}, {"shuffle": True}, {"drop_last": True}])
def test_batches_are_drawn_as_the_loader_draws(more, own):
    def found(way):
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(1) if own else None
        loader = DataLoader(TensorDataset(torch.zeros(20), torch.arange(20)), 6, generator=generator, **more)
        return list(way(loader)), torch.rand(())

    rows, drawn_after = found(batches_of)
    batches, want = found(lambda loader: [labels.tolist() for _, labels in loader])
    assert rows == batches
    assert drawn_after == want


def test_make_loader_has_a_recipe():
    assert recipe_of(make_loader(make_images(3, 0))) is not None
