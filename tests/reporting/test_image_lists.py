"""OpenOOD's image lists: the right file for every saved score, or none, and why."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from gallery_page import Cards
from listed_run import (
    COUNTS,
    FIRST,
    LABELS,
    images_of,
    labels_of,
    lines_of,
    save_data,
    save_run,
    saved,
    write_list,
)
from report_files import CIFAR10, Page, report, save_scores

from openood_adascale.errors import ResultError
from openood_adascale.reporting.gather import collect
from openood_adascale.reporting.image_lists import NEEDED, ImageLists
from openood_adascale.reporting.scores import read_pickle


@pytest.fixture
def data(tmp_path):
    return save_data(tmp_path)


@pytest.fixture
def run(data):
    return save_run(data)


def check(images, scores):
    for key, known in images.items():
        assert len(known.paths) == len(scores.of(key)) > 0
        for path, score in zip(known.paths, scores.of(key), strict=True):
            place = int(os.path.basename(path).removesuffix(".png"))
            assert FIRST[path.split(os.sep)[-3]] + place == score


def test_each_score_has_its_file(run, data):
    for where in (None, data):
        found = collect(run, where).methods
        for scheme in ("ood", "fsood"):
            scores = found[scheme][0].scores[0]
            check(scores.images, scores)
        assert len(found["fsood"][0].scores[0].images["id"].paths) == 84
    assert report(run) == 0
    cards = Cards(run / "report" / "report.html").cards
    shown = {key for key in COUNTS for card in cards if FIRST[key] <= card.number < FIRST[key] + 500}
    assert shown == {*COUNTS} - {"cifar10c"}  # which is never refused, with the highest scores
    for card in cards:
        assert f"score {card.number:.4g}" in card.lines
        assert card.lines[0].startswith("as class ")


def test_from_elsewhere_it_needs_the_data(run, data, tmp_path, capsys):
    moved = tmp_path / "moved" / CIFAR10
    shutil.move(run, moved)
    assert images_of(moved)["id"].unknown == f"{NEEDED} are needed"
    assert report(moved) == 0
    assert f"no images: {NEEDED} are needed" in Page(moved / "report" / "report.html").text
    assert report(moved, "--data-root", data) == 0
    assert Cards(moved / "report" / "report.html").cards
    assert report(moved, "--data-root", tmp_path) == 2
    assert "has no folder benchmark_imglist; expected OpenOOD's data folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lines: lines[:-1], "it lists 29 images, and the scores are of 30"),
        (lambda lines: [*lines, lines[0]], "it lists 31 images"),
        (lambda lines: [lines[0].replace("-1", "3"), *lines[1:]], "its labels are others, or in another order"),
        (lambda lines: ["../" + lines[0], *lines[1:]], "it names files outside its folder"),
        (lambda lines: ["/etc/passwd -1", *lines[1:]], "it names files outside its folder"),
        (lambda lines: [line.replace("test", "gone") for line in lines], "such as cifar100/gone/0.png, which are not in"),
        (lambda lines: ["one-word", *lines[1:]], "cannot be read"),
        (lambda lines: [], "cannot be read"),
    ],
)  # fmt: skip
def test_a_list_that_is_not_the_one(run, data, change, why):
    write_list(data, "cifar10/test_cifar100.txt", change(lines_of("cifar100")))
    images = images_of(run)
    assert images["cifar100"].paths == ()
    assert why in images["cifar100"].unknown
    assert "test_cifar100.txt" in images["cifar100"].unknown
    assert len(images["tin"].paths) == 20


def test_names_that_no_file_can_have(run, data):
    """The system's errors about them are no reason to stop."""
    long = "x" * 300
    write_list(data, "cifar10/test_cifar100.txt", [f"{long}.png -1", *lines_of("cifar100")[1:]])
    scores = saved()
    scores["ood"]["far"][f"imagenet_{long}"] = scores["ood"]["far"].pop("texture")
    save_scores(run / "s0" / "scores" / "msp.pkl", scores)
    images = images_of(run)
    assert f"such as {long}.png, which are not in" in images["cifar100"].unknown
    assert "is needed, which cannot be read" in images[f"imagenet_{long}"].unknown
    assert len(images["tin"].paths) == 20
    assert report(run) == 0
    for root in ("y" * 5000, "a\0b"):
        with pytest.raises(ResultError, match="has no folder benchmark_imglist"):
            ImageLists(root)
    assert ImageLists.beside("/" + "y" * 5000 + "/results/run") is None


def test_a_list_that_was_changed_since(run, data):
    path = write_list(data, "cifar10/test_tin.txt", lines_of("tin")[::-1])
    os.utime(path)
    os.utime(run / "s0" / "scores" / "msp.pkl", (1.5e9, 1.5e9))
    images = images_of(run)
    assert "it was changed after the scores were saved" in images["tin"].unknown
    assert len(images["cifar100"].paths) == 30


def test_a_missing_list(run, data):
    (data / "benchmark_imglist/cifar10/test_tin.txt").unlink()
    assert "test_tin.txt is needed, which cannot be read" in images_of(run)["tin"].unknown
    (data / "benchmark_imglist/cifar10/test_cifar10.txt").unlink()
    for known in images_of(run).values():
        assert "test_cifar10.txt is needed, which cannot be read" in known.unknown


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        (np.r_[LABELS, 1], "it lists 61 images, and the scores are of 60"),
        (np.r_[LABELS[:-1], 3], "its labels are others"),
        (LABELS[::-1], "in another order than the image lists"),
    ],
)
def test_another_list_of_the_known_images(run, data, labels, why):
    write_list(
        data, "cifar10/test_cifar10.txt", [f"id/test/{i}.png {label}" for i, label in enumerate(labels)]
    )
    for known in images_of(run).values():
        assert known.paths == ()
        assert why in known.unknown


def test_labels_that_do_not_tell_the_order(run, data):
    """Of one class, or of few images: a shuffled loader would not show."""
    scores = saved()
    scores["id"]["test"][2] = np.zeros(60, int)
    save_scores(run / "s0" / "scores" / "msp.pkl", scores)
    write_list(data, "cifar10/test_cifar10.txt", [f"id/test/{i}.png 0" for i in range(60)])
    assert "do not tell whether the scores are in the image lists' order" in images_of(run)["tin"].unknown
    lists = ImageLists(data)
    for count in (5, 12, 60):
        write_list(data, "cifar10/test_cifar10.txt", lines_of("id")[:count])
        files, _ = ImageLists(data).of_run("cifar10", LABELS[:count], 2e9)
        # 5! and 12! / (2! 2!) orders; of the latter one in 120 million has these labels.
        assert bool(files("id", LABELS[:count])[0]) == (count > 5)
    assert lists.of_run("cifar10", np.full(60, -1), 2e9)[0]("id", LABELS)[0] == ()


def test_a_run_whose_name_tells_no_data_set(run, data):
    """The list with its labels is found; two of them are one too many."""
    other = run.with_name("my_network")
    run.rename(other)
    check(images_of(other), collect(other).methods["ood"][0].scores[0])
    write_list(data, "cifar100/test_cifar100.txt", [f"x/{i}.png 5" for i in range(60)])
    assert images_of(other)["id"].paths
    shutil.copytree(data / "benchmark_imglist" / "cifar10", data / "benchmark_imglist" / "mine")
    (data / "benchmark_imglist/mine/test_cifar10.txt").rename(data / "benchmark_imglist/mine/test_mine.txt")
    assert "cifar10 and mine both fit" in images_of(other)["id"].unknown
    shutil.rmtree(data / "benchmark_imglist" / "cifar10")
    shutil.rmtree(data / "benchmark_imglist" / "mine")
    assert "none of the image lists in" in images_of(other)["id"].unknown


def test_images_are_looked_for_where_openood_has_them(run, data):
    """ImageNet's textures are among the classic images; of a folder that nobody knows, where they are."""
    copies = data / "images_largescale" / "tin"
    shutil.copytree(data / "images_classic" / "tin", copies)
    assert images_of(run)["tin"].paths[0].startswith(str(data / "images_classic"))
    lists = ImageLists(data)
    for name, key, store in (
        ("imagenet/test_textures.txt", "textures", "images_classic"),
        ("imagenet/test_ninco.txt", "ninco", "images_largescale"),
        ("imagenet200/test_imagenet200_v2.txt", "imagenet_v2", "images_largescale"),
        ("imagenet/test_imagenet_v2.txt", "imagenet_v2", "images_largescale"),
    ):
        write_list(data, name, lines_of("tin"))
        dataset = name.partition("/")[0]
        write_list(data, f"{dataset}/test_{dataset}.txt", lines_of("id"))
        files, _ = lists.of_run(dataset, LABELS, 2e9)
        assert files(key, labels_of("tin")) == (
            tuple(str(data / store / "tin" / "test" / f"{i}.png") for i in range(20)),
            "",
        )
    write_list(data, "mine/test_mine.txt", lines_of("id"))
    write_list(data, "mine/test_tin.txt", lines_of("tin"))
    files, _ = lists.of_run("mine", LABELS, 2e9)
    assert files("tin", labels_of("tin"))[0] == ()  # they are in both
    assert files("../tin", labels_of("tin"))[0] == ()
    shutil.rmtree(copies)
    assert len(files("tin", labels_of("tin"))[0]) == 20


def test_dicts_beside_paths_are_class_0_as_openood_has_it(data):
    write_list(data, "cifar10/test_tin.txt", ["tin/test/0.png {'a': 1}", "tin/test/1.png -1"])
    files, _ = ImageLists(data).of_run("cifar10", LABELS, 2e9)
    assert len(files("tin", np.array([0, -1]))[0]) == 2
    assert files("tin", np.array([-1, -1]))[0] == ()


def test_folders_that_name_classes(data):
    names = ["cat", "dog", "<b>", "x y"]
    lines = [f"id/{names[i % 4]}/{i}.png {i % 4}" for i in range(60)]
    lines = [line.replace("x y", "xy") for line in lines]
    write_list(data, "cifar10/test_cifar10.txt", lines)
    _, classes = ImageLists(data).of_run("cifar10", np.arange(60) % 4, 2e9)
    assert classes == {0: "cat", 1: "dog", 2: "<b>", 3: "xy"}
    write_list(data, "cifar10/test_cifar10.txt", [lines[0].replace("cat", "dog"), *lines[1:]])
    _, classes = ImageLists(data).of_run("cifar10", np.arange(60) % 4, 2e9)
    assert classes == {}


def test_labels_that_are_no_numbers(run, data):
    for bad in (None, LABELS[:-1], LABELS.astype(float), np.array(3)):
        scores = saved()
        scores["id"]["test"][2] = bad
        path = save_scores(run / "s0" / "scores" / "msp.pkl", scores)
        read = read_pickle(path, ImageLists(data), "cifar10")["ood"]
        assert all(known.paths == () for known in read.images.values())
        scores = saved()
        scores["ood"]["near"]["tin"][0] = bad
        read = read_pickle(save_scores(path, scores), ImageLists(data), "cifar10")["ood"]
        assert read.images["tin"].predictions.tolist() == [-1] * 20
        assert len(read.images["tin"].paths) == 20


def test_a_folder_that_is_no_data_folder(tmp_path):
    with pytest.raises(ResultError, match=r"data root: .* has no folder benchmark_imglist"):
        ImageLists(tmp_path)
    assert ImageLists.beside(tmp_path) is None
