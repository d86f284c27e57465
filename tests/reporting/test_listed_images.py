"""The images of a report on OpenOOD's own runs, found by its image lists."""

from __future__ import annotations

import os

import numpy as np
import pytest
from gallery_page import Cards
from listed_run import (
    FIRST,
    LABELS,
    images_of,
    lines_of,
    save_data,
    save_run,
    saved,
    write_list,
)
from report_files import report, save_scores

from openood_adascale.reporting.gather import collect


@pytest.fixture
def data(tmp_path):
    return save_data(tmp_path)


@pytest.fixture
def run(data):
    return save_run(data)


def test_names_in_another_encoding(run, data):
    """A list in Latin-1, as its files are: they are found and shown."""
    folder = os.fsencode(data / "images_classic" / "tin" / "test")
    name = "\N{LATIN SMALL LETTER E WITH ACUTE}0.png".encode("latin-1")
    os.rename(os.path.join(folder, b"0.png"), os.path.join(folder, name))
    path = write_list(data, "cifar10/test_tin.txt", lines_of("tin"))
    path.write_bytes(path.read_bytes().replace(b"/0.png", b"/" + name, 1))
    os.utime(path, (1e9, 1e9))
    scores = saved()
    scores["ood"]["near"]["tin"][1][0] = 9999  # the highest, so that it is shown
    save_scores(run / "s0" / "scores" / "msp.pkl", scores)
    paths = images_of(run)["tin"].paths
    assert os.fsencode(paths[0]) == os.path.join(folder, name)
    assert all(map(os.path.isfile, paths))
    assert report(run) == 0
    card = next(card for card in Cards(run / "report/report.html").cards if card.row.startswith("tin "))
    assert card.number == FIRST["tin"]
    assert "score 9999" in card.lines


def test_of_several_runs_that_whose_files_are_known(run, data):
    """The second is in the lists' order, the first is not: pictures and scores are the second's."""
    shuffled = saved(order="shuffled")
    for triple in (
        shuffled["id"]["test"],
        *shuffled["ood"]["near"].values(),
        *shuffled["ood"]["far"].values(),
    ):
        triple[1] += 7000
    save_scores(run / "s0" / "scores" / "msp.pkl", shuffled)
    save_scores(run / "s1" / "scores" / "msp.pkl", saved())
    (method,) = collect(run).methods["ood"]
    assert [bool(saved.images["tin"].paths) for saved in method.scores] == [False, True]
    assert report(run) == 0
    cards = Cards(run / "report" / "report.html").cards
    assert {card.row.partition(" (")[0] for card in cards} >= {"cifar100", "tin", "mnist", "texture"}
    for card in cards:
        assert f"score {card.number:.4g}" in card.lines


def test_a_pair_of_methods_of_one_run(run, data):
    """The images whose ranks differ most, found in the lists by either method's scores."""
    for name, high in (("msp", 7), ("ebo", 13)):
        scores = saved()
        scores["id"]["test"][1] = np.linspace(0, 100, 60).astype(np.float32)
        scores["ood"]["near"]["tin"][1] = np.full(20, 50.0, np.float32)
        scores["ood"]["near"]["tin"][1][high] = 90.5
        save_scores(run / "s0" / "scores" / f"{name}.pkl", scores)
    assert report(run, "--pair", "ebo,msp", "--images", "2") == 0
    cards = [card for card in Cards(run / "report/report.html").cards if card.panel == "tin (near-OOD)"]
    found = [(card.row.partition(" ranks")[0], card.number - FIRST["tin"]) for card in cards]
    assert found == 2 * [("EBO", 13), ("MSP", 7)]  # once for each scheme


def test_full_spectrum_shows_refused_shifted_images(run, data):
    """Known images of a shifted set have their own list, and their class."""
    scores = saved()
    scores["csid"]["cifar10c"][1] = -np.arange(24, dtype=np.float32) - 1
    save_scores(run / "s0" / "scores" / "msp.pkl", scores)
    assert report(run) == 0
    refused = [card for card in Cards(run / "report/report.html").cards if "are refused" in card.row]
    shifted = [card for card in refused if card.number >= FIRST["cifar10c"]]
    # Of 84 known images 4 are below the threshold that keeps 95 %: the shifted ones with the least scores.
    assert [card.number - FIRST["cifar10c"] for card in shifted] == [23, 22, 21, 20]
    for card in shifted:
        place = card.number - FIRST["cifar10c"]
        assert f"score {-place - 1}" in card.lines
        assert f"is class {LABELS[place]}" in card.lines
        assert card.wrong


def test_shuffled_scores_show_no_image(run, data):
    save_scores(run / "s0" / "scores" / "msp.pkl", saved(order="shuffled"))
    for known in images_of(run).values():
        assert known.paths == ()
        assert "eval_ood_imagenet.py's loaders shuffle" in known.unknown
    assert report(run) == 0
    assert not Cards(run / "report" / "report.html").cards
    text = (run / "report" / "report.md").read_text()
    assert text.count("shuffle") == 2  # once for each scheme
