"""Names from files are only text: they mark nothing up, collide with nothing, lead nowhere."""

from __future__ import annotations

import os
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from gallery_page import Cards, save_numbered
from report_files import (
    HEADER,
    RESNET50,
    SETS,
    Page,
    evaluator_scores,
    report,
    save_scores,
    save_search,
    save_table,
)

from openood_adascale.evaluation.per_image import PerImage
from openood_adascale.evaluation.result import Result
from openood_adascale.metrics import COLUMNS
from openood_adascale.reporting import image_table

COMPLAINTS = "error:.*(constrained_layout|Glyph)"
DRAWN = [pytest.mark.drawn, pytest.mark.filterwarnings(COMPLAINTS)]


@pytest.mark.drawn
def test_names_from_files_are_only_text(tmp_path):
    folder = tmp_path / RESNET50
    save_table(folder / "ood" / "<b>$x_$|&.csv", 70)
    save_scores(folder / "scores" / "<b>$x_$|&.pkl", evaluator_scores())
    assert report(folder) == 0
    assert "b" not in Page(folder / "report" / "report.html").tags
    assert r"&lt;b&gt;\$x\_\$\|&amp;" in (folder / "report" / "report.md").read_text(encoding="utf-8")


HOSTILE_NAMES = ("<img src=x onerror=alert(1)>", "a|b", "**b**", "_i_", "`c`", "[l](http:x)", "~~s~~", "\\d")


def test_markdown_has_no_markup_from_names(tmp_path):
    folder = tmp_path / "# <img src=x> `t`"
    for name in HOSTILE_NAMES:
        save_table(folder / "ood" / f"{name}.csv", 70)
        save_search(folder / f"search_{name}.csv")
        (folder / f"search_k{name}.csv").write_text(f'"{name}",auroc\n"{name}",70\n')
    table = save_table(folder / "fsood" / "sets.csv", 70).read_text()
    for name, other in zip(SETS["near"] + SETS["far"], HOSTILE_NAMES, strict=False):
        table = table.replace(f"{name},", f'"{other}",')
    (folder / "fsood" / "sets.csv").write_text(table)
    (folder / "ood" / "<b>.csv").write_text(HEADER + "<u>_x_</u>,1,2\n")
    near_only = save_table(folder / "ood" / "<q>.csv", 60)
    near_only.write_text("\n".join(near_only.read_text().splitlines()[:4]) + "\n")  # its note has its name
    assert report(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "&lt;q&gt; (ood): no leaderboard entry" in text
    assert not re.search(r"<(?!/?sup)", text)
    assert text.startswith(r"# \# &lt;img src=x&gt; \`t\`" + "\n")
    # What is left after taking out what is escaped, and what is meant as markup.
    plain = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)
    plain = re.sub(r"\*\*(?:[\d.]+(?: ± [\d.]+)?|[\w @↑↓()%:,;&=.-]+)\*\*", "", plain)
    assert not re.findall(r"[`*_\[\]~]", plain)
    for block in re.findall(r"(?:^\|.*\n)+", re.sub(r"\\\|", "", text), re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    page = Page(folder / "report" / "report.html")
    assert not {"b", "u", "q"} & set(page.tags)
    assert "alert" in page.text
    assert all(source.startswith("data:") for source in page.sources)


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_names_of_images_sets_and_classes_are_only_text(tmp_path):
    names = [
        b"<img src=x onerror=alert(1)>.png",
        b'"><script>.png',
        b"a\nb.png",
        b"a\xff.png",
        b"**b**.png",
        b"x" * 240,
    ]
    paths = tuple(
        str(save_numbered(tmp_path / os.fsdecode(name + b".png"), place)) for place, name in enumerate(names)
    )
    evil = '<b onclick="x">_$|`'
    count = len(paths)
    known = PerImage(np.arange(count), np.arange(count), paths, "", np.full(count, 80.0))
    images = dict.fromkeys(("id", evil, "f"), known)
    scores = {key: np.arange(count) / 2 for key in images}
    table = pd.DataFrame(50.0, index=[evil, "nearood", "f", "farood"], columns=list(COLUMNS))
    result = Result(table, scores, None, (evil,), ("f",), "ood", images, (evil,) * count)
    results = {"adascale": result, evil: replace(result, scores={k: -v for k, v in scores.items()})}
    out = tmp_path / "out"
    image_table.write(results, out / "images.csv")
    assert report(out) == 0
    page = Page(out / "report" / "report.html")
    assert not {"b", "script"} & set(page.tags)
    assert set(page.tags) >= {"img", "figure", "small"}
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "\x1b" not in page.text
    cards = Cards(out / "report" / "report.html").cards
    assert {card.number for card in cards} == set(range(count))
    for card in cards:
        assert card.lines[0] == f"as {evil}"
        end = os.fsdecode(names[card.number]).replace("\n", "\\n").replace("\udcff", "\\udcff")
        assert card.lines[-1].partition("/")[2][:20] == (end + ".png")[:20]
    text = (out / "report" / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"<(?!/?sup)", text)


@pytest.mark.drawn
@pytest.mark.filterwarnings(COMPLAINTS)
@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_names_that_no_page_can_hold(tmp_path):
    """Invalid UTF-8, line ends and other control characters in file names are shown escaped."""
    folder = tmp_path / os.fsdecode(b"run\xff\nx")
    for name in (b"a\xff", b"a\nb", b"a\x1bb", b"x" * 240):
        save_table(folder / "ood" / (os.fsdecode(name) + ".csv"), 70)
        save_scores(folder / "scores" / (os.fsdecode(name) + ".pkl"), evaluator_scores())
        save_search(folder / ("search_" + os.fsdecode(name[:200]) + ".csv"))
    assert report(folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert r"a\\udcff" in text
    assert r"a\\nb" in text
    assert len(list((folder / "report" / "leaderboard" / "ood").iterdir())) == 4
    assert len(list((folder / "report").glob("scores_*.png"))) == 4


@pytest.mark.parametrize(
    "names",
    [("α", "β"), ("a b", "a_b", "a+b"), ("KNN", "knn"), ("Mine", "mine"), ("_", "__"), ("x_2", "x", "X"),
     pytest.param(("日本", "中国"), marks=DRAWN), ("..", "...")],
)  # fmt: skip
def test_every_method_has_files_of_its_own(tmp_path, names):
    folder = tmp_path / RESNET50
    for value, name in enumerate(names):
        save_table(folder / "ood" / f"{name}.csv", 60 + value)
        save_search(folder / f"search_{name}.csv")
    save_scores(folder / "scores" / "A b.pkl", evaluator_scores(0))
    save_scores(folder / "scores" / "a_b.pkl", evaluator_scores(1))
    assert report(folder) == 0
    out = folder / "report"
    copies = list((out / "leaderboard" / "ood").iterdir())
    assert {path.read_bytes() for path in copies} == {p.read_bytes() for p in (folder / "ood").iterdir()}
    for files in (copies, list(out.iterdir())):
        assert len({path.name.casefold() for path in files}) == len(files)
    assert len(list(out.glob("search_*.png"))) == len(names)
    assert len(list(out.glob("scores_ood_*.png"))) == 2
    if names == ("α", "β"):
        assert {path.name for path in copies} == {"α.csv", "β.csv"}


def test_nothing_is_written_outside(tmp_path):
    """Links that wait in the output folder are replaced, not followed."""
    folder, outside = tmp_path / RESNET50, tmp_path / "outside"
    outside.mkdir()
    save_table(folder / "ood" / "msp.csv", 70)
    assert report(folder) == 0
    files = [path for path in (folder / "report").rglob("*") if path.is_file()]
    for index, path in enumerate(files):
        path.unlink()
        (outside / str(index)).write_text("mine")
        path.symlink_to(outside / str(index))
    assert report(folder) == 0
    assert {path.read_text() for path in outside.iterdir()} == {"mine"}
    assert not any(path.is_symlink() for path in files)
    leaderboard = folder / "report" / "leaderboard"
    leaderboard.rename(tmp_path / "moved")
    leaderboard.symlink_to(outside)
    before = sorted(outside.rglob("*"))
    assert report(folder) == 2
    assert sorted(outside.rglob("*")) == before
