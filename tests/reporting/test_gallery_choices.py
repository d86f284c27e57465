"""Which images and methods a report chooses to show, and what it says where it shows none."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gallery_page import METHODS, SETS, results_of, save_all
from report_files import report

from openood_adascale.errors import ResultError
from openood_adascale.reporting.gallery import gallery
from openood_adascale.reporting.gather import from_results
from openood_adascale.reporting.image_table import write as write_table
from openood_adascale.reporting.report import write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_all(tmp_path_factory.mktemp("pictures"))


def shown(found, pair=None):
    return gallery(from_results(found).methods["ood"], pair)


def test_what_would_be_needed(folder):
    found = results_of(folder)

    def without(result, keys, why):
        images = {
            key: replace(known, paths=(), unknown=why) if key in keys else known
            for key, known in result.images.items()
        }
        return replace(result, images=images)

    everything = {name: without(result, SETS, "it is shuffled") for name, result in found.items()}
    made = shown(everything)
    assert (made.lines, made.methods, made.disagreement) == (["no images: it is shuffled"], [], [])
    made = shown({name: without(result, ["far"], "it is shuffled") for name, result in found.items()})
    assert made.lines == ["no images of far: it is shuffled"]
    rows = [row.title for panel in made.methods for row in panel.rows]
    assert {row.partition(":")[0] for row in rows} == {"near one (near-OOD)", "Known images"}
    assert [panel.title for panel in made.disagreement] == ["near one (near-OOD)", "Known images"]
    made = shown({**found, "msp": everything["msp"], "optfs": replace(found["optfs"], images={})})
    assert made.lines == [
        "no images of MSP: it is shuffled",
        "no images of OptFS: scores of each image are needed, as eval_ood.py --save-score or openood-adascale evaluate "
        "saves them",
    ]
    assert [panel.title.partition(":")[0] for panel in made.methods] == ["AdaSCALE-A", "AdaSCALE-L"]


def test_methods_of_other_images_are_not_held_against_each_other(folder):
    """Of other paths there is no disagreement, whatever the scores are."""
    found = results_of(folder)
    other = found["msp"].images
    moved = {key: replace(known, paths=known.paths[::-1]) for key, known in other.items()}
    found["msp"] = replace(found["msp"], images=moved)
    made = shown(found, ("AdaSCALE-A", "MSP"))
    assert made.methods
    assert not made.disagreement


def test_scores_of_other_runs_are_not_held_against_each_other(folder):
    methods = from_results(results_of(folder)).methods["ood"]
    sources = {"AdaSCALE-A": ("s0", "s1"), "MSP": ("s1", "s2"), "OptFS": ("s2",), "AdaSCALE-L": ("s0",)}
    several = [
        replace(method, scores=tuple(replace(method.scores[0], source=of) for of in sources[method.label]))
        for method in methods
    ]
    assert gallery(several, ("AdaSCALE-A", "MSP")).disagreement
    made = gallery(several, ("AdaSCALE-A", "OptFS"))
    assert not made.disagreement
    assert made.lines == [
        "AdaSCALE-A and OptFS are not held against each other: their scores are not of one run"
    ]


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (
            ("adascale", "nonsense"),
            "pair: 'nonsense' is none of the methods; expected two of them: AdaSCALE-A, ",
        ),
        (("adascale",), "expected two different methods"),
        (("adascale", "AdaSCALE-A"), "expected two different methods"),
        (("adascale", "msp", "optfs"), "expected two different methods"),
    ],
)
def test_pairs_that_are_none(folder, tmp_path, pair, message):
    with pytest.raises(ResultError, match=message):
        write(from_results(results_of(folder)), tmp_path, pair=pair)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("methods", "pair"),
    [
        (METHODS, ("AdaSCALE-A", "MSP")),
        (("optfs", "msp", "adascale"), ("AdaSCALE-A", "OptFS")),
        (("adascale_logit", "adascale"), ("AdaSCALE-A", "AdaSCALE-L")),
        (("optfs", "msp"), ("OptFS", "MSP")),
        (("optfs",), None),
    ],
)
def test_the_usual_pair(folder, methods, pair):
    made = shown(results_of(folder, methods=methods))
    assert made.pair == pair
    assert bool(made.disagreement) == (pair is not None)


def test_bad_numbers_of_images(folder, tmp_path, capsys):
    for bad in (-1, 2.5, True):
        with pytest.raises(ResultError, match="images: "):
            write(from_results(results_of(folder)), tmp_path, images=bad)
    write_table(results_of(folder), tmp_path / "images.csv")
    assert report(tmp_path, "--images", "-3") == 2
    assert "--images: -3 is not allowed" in capsys.readouterr().err
    assert report(tmp_path, "--pair", "msp") == 2
    assert "--pair: 'msp' is not allowed" in capsys.readouterr().err
    assert report(tmp_path, "--pair", "msp,foo") == 2
    assert "'foo' is none of the methods" in capsys.readouterr().err


def test_not_more_methods_than_a_page_holds(folder):
    made = shown(results_of(folder, methods=[f"m{number}" for number in range(9)]), ("m8", "m7"))
    assert [panel.title.partition(":")[0] for panel in made.methods][:2] == ["m8", "m7"]
    assert len(made.methods) == 6
    assert "those of 6 methods are shown" in made.lines[0]
