"""Image files as a data set: workers, broken ones, and what the store knows of them."""

import os
import pickle
import traceback

import numpy as np
import pytest
import torch
from tiny import TinyNet
from torch.utils.data import DataLoader

from openood_adascale import AdaSCALE, using_store
from openood_adascale.errors import ImageError, SettingError
from openood_adascale.evaluation.folders import ImageFiles, find_broken, find_images

Image = pytest.importorskip("PIL.Image")


def picture(path, shade=100, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 255 - shade, shade // 2)).save(path)
    return path


# As a data set.


def test_workers_and_pickles(tmp_path):
    for shade in range(5):
        picture(tmp_path / f"{shade % 2}/{shade}.png", shade * 20)
    files = find_images(tmp_path, "folders")
    again = pickle.loads(pickle.dumps(files))
    assert again.paths == files.paths
    assert again.classes == ["0", "1"]
    alone = [image for image, _ in DataLoader(files, batch_size=2)]
    with_workers = [image for image, _ in DataLoader(files, batch_size=2, num_workers=2)]
    assert all(map(torch.equal, alone, with_workers))
    assert [label for _, labels in DataLoader(files, batch_size=2) for label in labels] == [0, 0, 0, 1, 1]
    with pytest.raises(SettingError, match=r"labels: '1 of them'.*5 images"):
        ImageFiles(files.paths, [1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_and_can_be_left_out(tmp_path, workers):
    for number in range(4):
        picture(tmp_path / f"{number}.png")
    wrong = tmp_path / 'it\'s: "2"\n.png'
    os.replace(tmp_path / "2.png", wrong)
    wrong.write_bytes(b"nothing")
    files = find_images(tmp_path)
    with pytest.raises(ImageError, match="no image that Pillow can read") as caught:
        list(DataLoader(files, num_workers=workers))
    assert caught.value.path == str(wrong)
    assert str(caught.value) == f"{str(wrong)!r}: is no image that Pillow can read"
    # Workers of an iterator that is in a circle with its error leave after seconds only.
    traceback.clear_frames(caught.tb)
    broken = find_broken(files, workers, False)
    assert broken == [(str(wrong), "is no image that Pillow can read")]
    kept = files.without(broken)
    assert len(kept) == len(list(DataLoader(kept))) == 3
    assert find_broken(ImageFiles([]), workers, False) == []


def too_small(image):
    if image.size[0] < 5:
        raise ValueError("too small")
    return torch.zeros(3, 4, 4)


def test_an_image_that_the_transform_cannot_take(tmp_path):
    picture(tmp_path / "1.png")
    picture(tmp_path / "2.png", size=(2, 2))
    files = find_images(tmp_path).with_transform(too_small)
    with pytest.raises(ImageError, match=r"2\.png.*transform failed \(ValueError: too small\)"):
        files[1]
    assert [path for path, _ in find_broken(files, progress=False)] == [files.paths[1]]


# In the store.


def shrunk(image):
    return torch.from_numpy(np.array(image.resize((8, 8)))).permute(2, 0, 1).float() / 255


def test_the_store_knows_the_images(tmp_path):
    for shade in range(12):
        picture(tmp_path / f"images/{shade}.png", shade * 20)
    network = TinyNet().eval()

    def images_run(**changed):
        files = find_images(tmp_path / "images").with_transform(changed.get("transform", shrunk))
        files.labels = changed.get("labels", files.labels)
        network.calls.clear()
        loader = DataLoader(files, batch_size=4)
        AdaSCALE(network, percentile=(60, 80), k1=5, k2=20).fit(loader)
        return sum(network.calls)

    with using_store(tmp_path / "store"):
        whole = images_run()
        assert whole > 12
        assert images_run() == 0
        assert images_run(labels=[1] * 12) > 12
        assert images_run(transform=lambda image: shrunk(image) * 2) > 12
        assert images_run() == 0
        os.utime(tmp_path / "images/3.png", ns=(1, 1))
        assert images_run() > 12
        assert images_run() == 0
        picture(tmp_path / "images/more.png")
        assert images_run() > 12
