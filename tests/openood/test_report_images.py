"""A report on OpenOOD's own runs: the images beside their scores, where the order of these is known."""

from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from gallery_page import Cards
from PIL import Image
from report_files import Page, report

from openood_adascale.evaluation.which_files import files_of
from openood_adascale.reporting.gather import collect


def confidences(network, paths):
    """MSP of image files, as OpenOOD prepares CIFAR-10's."""
    mean, std = np.array([[0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]], np.float32)
    images = np.stack([(np.asarray(Image.open(path), np.float32) / 255 - mean) / std for path in paths])
    with torch.no_grad():
        return network(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(1).max(1)


@pytest.mark.parametrize("run_root", [("s0",)], indirect=True)
def test_eval_ood(run_script, run_root, checkout, digits_net):
    args = ["scripts/eval_ood.py", "--root", run_root, "--save-score", "--save-csv", "--fsood"]
    run_script(["-m", "openood_adascale", "run", "--postprocessors", "msp,ebo", *args])
    msp = next(method for method in collect(run_root).methods["fsood"] if method.label == "MSP")
    (scores,) = msp.scores
    for key, known in scores.images.items():
        assert known.paths, known.unknown
        assert all(path.startswith(str(checkout / "data" / "images_classic")) for path in known.paths)
        found = confidences(digits_net(), known.paths)
        np.testing.assert_allclose(scores.of(key), found.values, rtol=1e-4)
        np.testing.assert_array_equal(known.predictions, found.indices)
    assert {"id", "cifar100", "tin", "mnist", "svhn", "texture", "places365"} == set(scores.images)
    assert len(scores.images["id"].paths) == 72 + 36

    assert report(run_root, "--pair", "ebo,msp") == 0
    cards = Cards(run_root / "report" / "report.html").cards
    for card in (card for card in cards if card.panel.startswith("MSP: threshold")):
        key = "id" if card.row.startswith("Known") else card.row.partition(" (")[0]
        # The picture is the file's, to the pixel, and its score is that of this file.
        score = next(line for line in card.lines if line.startswith("score ")).removeprefix("score ")
        places = [
            place
            for place, path in enumerate(scores.images[key].paths)
            if "/".join(path.split(os.sep)[-2:]) == card.lines[-1] and f"{scores.of(key)[place]:.4g}" == score
        ]
        with Image.open(io.BytesIO(card.content)) as shown:
            pixels = np.asarray(shown)
        assert any(
            np.array_equal(pixels, np.asarray(Image.open(scores.images[key].paths[place]).convert("RGB")))
            for place in places
        )
    assert len([card for card in cards if card.panel.startswith("MSP: threshold")]) >= 6 * 8
    assert any(card.row.startswith("EBO ranks them higher than MSP") for card in cards)


def test_eval_ood_imagenet_shuffles(run_script, imagenet_checkpoint):
    run_script(
        ["scripts/eval_ood_imagenet.py", "--ckpt-path", imagenet_checkpoint, "--postprocessor", "msp", "--save-score",
         "--batch-size", "8"]
    )  # fmt: skip
    folder = imagenet_checkpoint.parent
    (method,) = [one for one in collect(folder).methods["ood"] if one.label == "MSP"]
    for known in method.scores[0].images.values():
        assert known.paths == ()
        assert "eval_ood_imagenet.py's loaders shuffle" in known.unknown
    assert report(folder) == 0
    assert not Cards(folder / "report" / "report.html").cards
    assert "another order than the image lists" in Page(folder / "report" / "report.html").text


def test_the_evaluators_own_loaders(make_evaluator, checkout):
    """By OpenOOD's image list, of OpenOOD's data set; not where it is shuffled, or puts in other images."""
    evaluator = make_evaluator("msp")
    loader = evaluator.dataloader_dict["ood"]["near"]["tin"]
    paths, unknown = files_of(loader)
    assert unknown == ""
    for place, path in enumerate(paths):
        assert path == os.path.join(loader.dataset.data_dir, loader.dataset[place]["image_name"])
        assert os.path.isfile(path)
    shuffled = make_evaluator("msp", shuffle=True).dataloader_dict["ood"]["near"]["tin"]
    assert files_of(shuffled) == ((), "its loader is shuffled")
    loader.dataset.maxlen = 5
    short = torch.utils.data.DataLoader(loader.dataset, batch_size=2)
    assert files_of(short)[0] == paths[:5]
    loader.dataset.skip_broken = True
    assert files_of(short)[0] == ()
