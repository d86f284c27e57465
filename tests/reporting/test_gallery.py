"""The images of a report: the right ones, each beside its own score, and in their order."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from gallery_page import LABELS, NAMES, SETS, Cards, of_number, results_of, save_all
from PIL import Image
from report_files import Page, report

from openood_adascale.evaluation.per_image import PerImage
from openood_adascale.evaluation.result import Result
from openood_adascale.metrics import COLUMNS
from openood_adascale.reporting.gather import from_results
from openood_adascale.reporting.image_table import write as write_table
from openood_adascale.reporting.report import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("pictures"))


def check_fooled(cards, found, most=8):
    """Every card of the methods' panels says what is true of the image that it shows, and none is missing."""
    for name, result in found.items():
        mine = [card for card in cards if card.panel.startswith(f"{LABELS[name]}: threshold")]
        known = result.scores["id"]
        # The largest threshold that at least 95 % of the known images reach, tried one by one.
        least = max(value for value in known if np.mean(known >= value) >= 0.95)
        assert {card.panel for card in mine} == {f"{LABELS[name]}: threshold {least:.4g}"}
        for key in SETS:
            scores = result.scores[key]
            order = sorted(range(len(scores)), key=lambda place, s=scores: -s[place])[:most]
            if key == "id":
                order = sorted(range(len(scores)), key=scores.__getitem__)[:most]
                order = [place for place in order if scores[place] < least]
            here = [card for card in mine if of_number(card.number)[0] == key]
            assert [of_number(card.number)[1] for card in here] == order
            kept = int(sum(scores >= least))
            title = (
                f"Known images: {len(scores) - kept} of 40"
                if key == "id"
                else f": {kept} of {len(scores)} are kept"
            )
            for card in here:
                assert title in card.row
                assert key == "id" or card.row.startswith(key)
                place = of_number(card.number)[1]
                check_card(card, result, key, place)
                assert card.wrong == (key == "id" or scores[place] >= least)


def check_card(card, result, key, place):
    score, images = result.scores[key][place], result.images[key]
    rank = 100 * (np.mean(result.scores["id"] < score) + np.mean(result.scores["id"] == score) / 2)
    assert f"score {score:.4g}" in card.lines
    (line,) = [line for line in card.lines if line.startswith("rank ")]
    assert float(line.split()[1]) == pytest.approx(rank, abs=0.51)
    number = images.predictions[place]
    assert card.lines[0] == f"as {NAMES[number] if number < 7 else f'class {number}'}"
    assert (f"is {NAMES[images.labels[place]]}" in card.lines) == (key == "id")
    if images.percentiles is None:
        assert not any(line.startswith("p =") for line in card.lines)
    else:
        assert f"p = {images.percentiles[place]:.2f}" in card.lines
    assert card.lines[-1] == f"{key}/{place}.png"


def check_pair(cards, found, one, other, most=8):
    def ranks(result, key):
        known = result.scores["id"]  # of 40, so that halves of a fortieth are what floats can hold
        return np.array([1.25 * (2 * sum(known < s) + sum(known == s)) for s in result.scores[key]])

    for key in SETS:
        panel = "Known images" if key == "id" else f"{key} ({'near' if key == 'near one' else 'far'}-OOD)"
        above = ranks(found[one], key) - ranks(found[other], key)
        for high, low, sign in ((one, other, 1), (other, one, -1)):
            title = f"{LABELS[high]} ranks them higher than {LABELS[low]} does"
            mine = [card for card in cards if card.panel == panel and card.row.startswith(title)]
            order = sorted(range(len(above)), key=lambda place, a=sign * above: -a[place])[:most]
            want = [place for place in order if sign * above[place] > 0]
            assert [of_number(card.number) for card in mine] == [(key, place) for place in want]
            better = high if key == "id" else low
            assert all(card.row.endswith(f"here {LABELS[better]} does better") for card in mine)
            for card in mine:
                place = of_number(card.number)[1]
                for name in (one, other):
                    at = card.lines.index(next(x for x in card.lines if x.startswith(f"{LABELS[name]}: ")))
                    rank = ranks(found[name], key)[place]
                    assert float(card.lines[at].split()[-2]) == pytest.approx(rank, abs=0.51)
                    assert card.lines[at + 1].startswith("kept" if rank > 5.1 else "refused") or 4 < rank < 6
                    if name == "adascale":
                        p = found[name].images[key].percentiles[place]
                        assert card.lines[at + 1].endswith(f"p = {p:.2f}")


@pytest.mark.drawn
def test_every_score_stands_beside_its_image(folder, tmp_path):
    found = results_of(folder)
    page = write(from_results(found), tmp_path)
    cards = Cards(page).cards
    check_fooled(cards, found)
    check_pair(cards, found, "adascale", "msp")  # the best other
    assert (tmp_path / "pair_ood.png").is_file()
    text = page.read_text(encoding="utf-8")
    assert text.count("<class>") == 0
    assert "&lt;class&gt;" in text
    assert str(folder) not in text
    assert {"small"} < set(Page(page).tags)
    assert all(source.startswith("data:image/") for source in Page(page).sources)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_from_the_table_it_is_the_same(folder, tmp_path, seed):
    found = results_of(folder, seed)
    write_table(found, tmp_path / "images.csv")
    assert report(tmp_path, "--pair", "optfs,AdaSCALE-A", "--images", "3") == 0
    cards = Cards(tmp_path / "report" / "report.html").cards
    check_fooled(cards, found, 3)
    check_pair(cards, found, "optfs", "adascale", 3)


def test_none_are_shown_where_none_are_wanted(folder, tmp_path):
    page = write(from_results(results_of(folder)), tmp_path, images=0)
    assert not Cards(page).cards
    assert "Images" not in Page(page).text.replace("Images wrongly", "")


def test_pictures_are_small_and_say_nothing_else(tmp_path):
    """A photo with comment and place becomes a small JPEG with neither; a small one stays itself, to the pixel."""
    photo = Image.effect_noise((1200, 500), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x010E] = "SECRET place"
    photo.save(tmp_path / "photo.jpg", exif=exif, comment=b"SECRET comment")
    pixels = np.random.default_rng(0).integers(0, 255, (32, 20, 3), dtype=np.uint8)
    info = Image.fromarray(pixels)
    info.save(tmp_path / "small.png")
    paths = tuple(str(tmp_path / name) for name in ("photo.jpg", "small.png"))
    known = {key: PerImage(np.array([-1, -1]), np.array([0, 0]), paths) for key in ("id", "n", "f")}
    scores = {"id": np.array([2.0, 3.0]), "n": np.array([1.0, 0.0]), "f": np.array([1.0, 0.0])}
    table = pd.DataFrame(50.0, index=["n", "nearood", "f", "farood"], columns=list(COLUMNS))
    result = Result(table, scores, None, ("n",), ("f",), "ood", known)
    cards = Cards(write(from_results({"msp": result}), tmp_path / "out")).cards
    large, small = cards[0].content, cards[1].content
    assert b"SECRET" not in large
    with Image.open(io.BytesIO(large)) as copy:
        assert (copy.format, copy.size) == ("JPEG", (144, 60))
    assert len(large) < 10_000
    with Image.open(io.BytesIO(small)) as copy:
        assert copy.format == "PNG"
        np.testing.assert_array_equal(np.asarray(copy), pixels)


def test_broken_and_missing_images_are_left_grey(folder, tmp_path):
    found = results_of(folder)
    places = np.argsort(-found["adascale"].scores["far"], kind="stable")[:3]
    gone = [str(tmp_path / name) for name in ("gone.png", "broken.png", "folder.png")]
    (tmp_path / "broken.png").write_bytes(b"\x89PNG no picture")
    (tmp_path / "folder.png").mkdir()
    images = found["adascale"].images["far"]
    paths = list(images.paths)
    for place, path in zip(places, gone, strict=True):
        paths[place] = path
    for name, result in found.items():
        own = replace(result.images["far"], paths=tuple(paths))
        found[name] = replace(result, images={**result.images, "far": own})
    page = write(from_results(found), tmp_path / "out")
    cards = Cards(page).cards
    assert [card.number is None for card in cards if card.panel.startswith("AdaSCALE-A: t") and "far" in card.row] == [
        True, True, True, False, False, False, False, False,
    ]  # fmt: skip
    grey = [card for card in cards if card.number is None]
    assert {card.lines[-1].rpartition("/")[2] for card in grey} == {"gone.png", "broken.png", "folder.png"}
    assert "3 image(s) cannot be read and are left grey, such as" in Page(page).text


def test_where_the_images_are_gone_the_report_says_so(folder, tmp_path):
    found = results_of(tmp_path / "elsewhere")
    page = write(from_results(found), tmp_path / "out")
    assert not Cards(page).cards
    assert "no images: they are needed where they were, such as" in Page(page).text
    assert (tmp_path / "out" / "pair_ood.png").exists() is False
    assert "they are needed where they were" in (tmp_path / "out" / "report.md").read_text()
