"""Images of the demo."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import ft2font, get_data_path

from openood_adascale.demo import data as demo_data
from openood_adascale.demo.figures import draw_story, typical_image
from openood_adascale.demo.network import SmallConvNet, train

SMALL = {"train": 260, "val": 52, "test": 52, "ood": 30}


@pytest.fixture(scope="module")
def small():
    return demo_data.load_data(seed=3, **SMALL)


def test_images_have_requested_counts_and_show_something(small):
    images = [small.train, small.val, small.test, small.ood_val, *small.near.values(), *small.far.values()]
    assert [len(part) for part in images] == [260, 52, 52, *[30] * 6]
    assert all(part.shape[1:] == (32, 32, 3) and part.dtype == np.uint8 for part in images)
    assert all(part.std((1, 2)).max(1).min() > 5 for part in images)
    assert all(part.std((1, 2)).mean(1).min() >= demo_data.TEXTURE for part in small.far.values())
    assert list(np.bincount(small.train_labels)) == [10] * len(small.classes) == [10] * 26


def test_same_seed_gives_same_images(small):
    again = demo_data.load_data(seed=3, **SMALL)
    other = demo_data.load_data(seed=4, **SMALL)
    np.testing.assert_array_equal(again.train, small.train)
    np.testing.assert_array_equal(again.far["photo_china"], small.far["photo_china"])
    assert (other.train != small.train).any()


def test_splits_share_no_image(small):
    seen = {image.tobytes() for image in small.train}
    assert not any(image.tobytes() in seen for image in np.concatenate([small.val, small.test]))


@pytest.mark.parametrize("characters", [demo_data.CYRILLIC, demo_data.MATHS, demo_data.SYMBOLS])
def test_validation_and_test_characters_are_disjoint(characters):
    test, validation = demo_data.split(characters)
    assert not {*validation} & {*test}
    assert {*validation, *test} == {*characters}
    assert not {*characters} & {*demo_data.LETTERS}


@pytest.mark.parametrize(
    ("characters", "fonts"),
    [
        (demo_data.LETTERS + demo_data.CYRILLIC + demo_data.MATHS, demo_data.FONTS),
        (demo_data.SYMBOLS, demo_data.SYMBOL_FONTS),
    ],
)
def test_fonts_have_every_character(characters, fonts):
    for font in fonts:
        charmap = ft2font.FT2Font(f"{get_data_path()}/fonts/ttf/{font}.ttf").get_charmap()
        assert not [character for character in characters if ord(character) not in charmap]


def test_normalized_training_images_have_zero_mean_and_unit_deviation(small):
    pixels = small.normalize(small.train)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (260, 3, 32, 32)
    torch.testing.assert_close(pixels.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(pixels.std((0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_training_is_reproducible_and_keeps_global_random_state(small):
    images, labels = small.normalize(small.train), torch.from_numpy(small.train_labels)
    before = torch.random.get_rng_state()
    first, second = (
        train(images, labels, 26, epochs=1, batch_size=16, seed=1, progress=False) for _ in range(2)
    )
    assert torch.equal(before, torch.random.get_rng_state())
    assert not first.training
    for name, value in first.state_dict().items():
        torch.testing.assert_close(value, second.state_dict()[name])


def test_network_ends_in_linear_layer_over_features():
    network = SmallConvNet(26).eval()
    features = []
    network.fc.register_forward_pre_hook(lambda module, inputs: features.append(inputs[0]))
    logits = network(torch.zeros(2, 3, 32, 32))
    assert logits.shape == (2, 26)
    assert features[0].shape == (2, 256)
    assert features[0].min() >= 0


def test_typical_image_is_median_in_both():
    assert typical_image(np.array([1.0, 3.0, 2.0, 5.0, 4.0]), np.array([10.0, 30.0, 20.0, 50.0, 40.0])) == 1


def test_story_has_images_and_two_histograms(small):
    sets = {"id": 52, **dict.fromkeys([*small.near, *small.far], 30)}
    values = {name: np.linspace(60, 80, count) for name, count in sets.items()}
    images = {
        name: SimpleNamespace(percentiles=values[name], predictions=np.zeros(count))
        for name, count in sets.items()
    }
    result = SimpleNamespace(scores=values, images=images, near=tuple(small.near), far=tuple(small.far))
    figure = draw_story(result, small)
    figure.canvas.draw()
    assert [axes.get_xlabel() for axes in figure.axes][2:] == [
        "percentile p (%)", "score (larger: more in-distribution)",
    ]  # fmt: skip
