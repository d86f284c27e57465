"""Labels and class folders held against a network."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openood_adascale.data.files import ImageFiles
from openood_adascale.data.labels import check_labels, match_folders, read_class_names, with_classes
from openood_adascale.errors import SettingError
from openood_adascale.features.loading import plain_labels, unpack

IMAGES = torch.zeros(3, 1)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2], [0, 1, 2]),
        (np.array([0, -1, 2], np.int8), [0, -1, 2]),
        (torch.tensor([[0], [1], [2]]), [0, 1, 2]),
        (torch.tensor([True, False, True]), [1, 0, 1]),
        (torch.tensor([0.0, 2.0, -1.0]), [0, 2, -1]),
        (None, [-1, -1, -1]),
        ([None, None, None], [-1, -1, -1]),
    ],
)
def test_labels_of_a_batch_are_integers(labels, expected):
    assert unpack((IMAGES, labels))[1].tolist() == expected
    assert check_labels(unpack((IMAGES, labels))[1], 3).tolist() == [label != -1 for label in expected]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (torch.eye(3), "one-hot"),
        (("cat", "dog", "eel"), "words"),
        ([0.5, 1.0, 2.0], "fractions"),
        ([float("nan")] * 3, "fractions"),
        ([1e300] * 3, "fractions"),
        ([1, 2], "another number"),
        ([{}, {}, {}], "neither numbers"),
        (np.array([1j, 2, 3]), "neither numbers"),
    ],
)
def test_other_labels_are_named_only_if_they_are_needed(labels, told):
    found = unpack((IMAGES, labels))[1]
    with pytest.raises(SettingError, match=f"id: .*{told}.*integers from 0 to 4.* 5 classes"):
        check_labels(found, 5, "id")
    assert (plain_labels(found) >= -1).all()


@pytest.mark.parametrize("value", [5, 255, -2, 2**40])
def test_label_beyond_the_classes_is_an_error(value):
    with pytest.raises(SettingError, match=rf"labels: {value} .*0 to 4.* 5 classes.*1 of 3"):
        check_labels(np.array([0, value, 1]), 5)


@pytest.mark.parametrize("images", ["data", "image", "images", "img", "pixel_values"])
@pytest.mark.parametrize("labels", ["label", "labels"])
def test_mappings_of_hugging_face_datasets_are_batches(images, labels):
    found = unpack({images: IMAGES, labels: torch.tensor([1, 2, 3]), "more": 1})
    assert found[0] is IMAGES
    assert found[1].tolist() == [1, 2, 3]
    with pytest.raises(TypeError, match="expected one of data, image"):
        unpack({"picture": IMAGES})


@given(st.permutations(["a", "b", "c", "d"]), st.integers(1, 4))
def test_folders_are_matched_by_name(names, count):
    folders = sorted(names)[:count]
    assert [names[number] for number in match_folders(folders, 4, names)] == folders


def test_folders_without_names_need_one_for_each_class():
    assert match_folders(["x", "y"], 2) == [0, 1]
    assert match_folders(["n01", "n02"], 2, ["tench", "shark"]) == [0, 1]  # ImageNet's folders have ids
    for folders, names, told in [
        (["x"], (), "1 class folders .*2, one for each"),
        (["x", "y", "z"], (), "3 class folders .* 2 classes"),
        (["tench", "sharc"], ["tench", "shark"], "'sharc' .*tench, shark"),
        (["x", "y"], ["a", "b", "c"], "3 names .*expected 2"),
        (["crane"], ["crane", "crane"], "different names"),
    ]:
        with pytest.raises(SettingError, match=told):
            match_folders(folders, 2, names)


def test_images_get_the_networks_classes():
    files = ImageFiles(["a/1", "c/1"], [0, 1], classes=["a", "c", "empty"])
    assert with_classes(files, 3, ["a", "b", "c"]).labels == [0, 2]
    assert with_classes(files, 3).classes == ["a", "c", "empty"]
    assert with_classes(ImageFiles(["1", "2"], [-1, 2]), 3).labels == [-1, 2]
    for bad, more, told in [
        (files, {}, "3 class folders"),
        (ImageFiles(["1", "2"], [1, 4]), {}, "'2' has 4"),
        (ImageFiles(["1"], [-1]), {"unlabelled": False}, "'1' has none"),
    ]:
        with pytest.raises(SettingError, match=told):
            with_classes(bad, 4 if bad is not files else 2, setting="--id", **more)


def test_class_names_are_a_text_file(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("née\nb\n".encode("utf-16"))
    assert read_class_names(path) == ("née", "b")
    for content in (b"", b"a\n\nb\n", b"a\0b", b"\xff\xfeabc"):
        path.write_bytes(content)
        with pytest.raises(SettingError, match="classes: "):
            read_class_names(path)
