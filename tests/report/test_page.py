"""The page and its Markdown, drawn as users get them."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import CIFAR10, RESNET50, Page, authors, command, flat, imagenet_csv, numbered, sample_run
from PIL import Image

from openood_adascale.demo.data import load_data
from openood_adascale.demo.run import make_benchmark
from openood_adascale.errors import ResultError
from openood_adascale.report.importers import load
from openood_adascale.report.render import check_options, markdown, observation, write_report
from openood_adascale.report.run import MethodResult, Run, write_run

pytestmark = pytest.mark.drawn
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def sample(tmp_path_factory) -> Path:
    """Return the folder of the sample run with its report."""
    folder = tmp_path_factory.mktemp("run")
    write_run(sample_run(folder / "pictures", ("msp", "ebo", "scale", "adascale")), folder)
    assert command("report", folder) == 0
    return folder


@pytest.fixture(scope="module")
def page(sample) -> Page:
    return Page(sample / "report" / "index.html")


def check_golden(folder: Path, name: str) -> None:
    """Compare a report with the stored one, without its figures; UPDATE_GOLDEN=1 stores it."""
    html = (folder / "index.html").read_text(encoding="utf-8")
    html = re.sub(r"<svg.*?</svg>", "<svg></svg>", html, flags=re.DOTALL)
    html = re.sub(r"<(style|script)>.*?</\1>|sha256-[^']*|(?<=src=\")data:[^\"]*", "", html, flags=re.DOTALL)
    texts = {"html": html, "md": (folder / "report.md").read_text(encoding="utf-8")}
    for kind, text in texts.items():
        text = re.sub(r"openood-adascale \d[\w.+]*", "openood-adascale VERSION", text)
        path = GOLDEN / f"{name}.{kind}"
        if os.environ.get("UPDATE_GOLDEN"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")


def test_report_of_the_authors_results_is_the_stored_one(tmp_path):
    """Their result files, as they published them: both variants, both schemes."""
    folder = tmp_path / RESNET50
    for scheme in ("ood", "fsood"):
        for name, method in (("adascale_a", "AdaSCALE-A"), ("adascale_l", "AdaSCALE-L")):
            imagenet_csv(folder / scheme / f"{name}.csv", authors(method=method, scheme=scheme))
    assert command("report", folder) == 0
    check_golden(folder / "report", "authors_imagenet_resnet50")


def test_report_of_the_demo_is_the_stored_one(tmp_path):
    """Results of a demo on fewer test images, since training differs between processors."""
    folder = tmp_path / "demo"
    shutil.copytree(GOLDEN / "demo_run", folder)
    make_benchmark(load_data(train=52, val=26, test=120, ood=40), folder=folder / "images")
    assert command("report", folder) == 0
    check_golden(folder / "report", "demo")


def check_no_request(page: Page) -> None:
    assert all(source.startswith(("data:image/", "#")) for source in page.sources)
    assert not any(name.startswith("on") for _, attributes in page.attributes for name in attributes)


def test_page_requests_nothing(page):
    policies = [a["content"] for _, a in page.attributes if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(page.script.encode()).digest()).decode()
    assert policies == [
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    ]
    assert page.tags.count("script") == 1
    assert not {"link", "iframe", "object", "embed", "base", "form", "image"} & set(page.tags)
    assert page.sources
    check_no_request(page)
    assert not re.search(r"url\((?!#)|@import", page.html)


def test_every_picture_has_an_alternative_text(page):
    pictures = [attributes for tag, attributes in page.attributes if tag == "img"]
    assert pictures
    assert all(attributes["alt"] for attributes in pictures)
    drawings = [a for _, a in page.attributes if a.get("role") == "img"]
    assert page.tags.count("svg") == len(drawings) > 5
    assert all(attributes["aria-label"] for attributes in drawings)


def test_methods_that_chance_could_order_are_marked_equal(tmp_path):
    run = sample_run(count=300)
    run.methods.append(MethodResult("twin", (run.methods[1].table - 0.01).assign(ACC=90.0)))
    noise = np.random.default_rng(1).normal(0, 0.01, len(run.images))
    run.images["score_twin"] = run.images["score_adascale"] + noise
    write_report(run, tmp_path, max_images=0)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    lines = text[: text.index("**AUROC per OOD set")].splitlines()
    rows = {line.split(" | ")[0][2:]: line for line in lines if line.startswith("| ")}
    assert "Not distinguishable from twin: the difference can be chance." in text
    assert "| **" in rows["AdaSCALE-A"]
    assert "| ≈ " in rows["twin"]
    assert not set("*≈") & set(rows["MSP"])


def test_report_of_a_folder_is_that_of_the_run_in_memory(sample, tmp_path):
    write_report(load(sample), tmp_path)
    for name in ("index.html", "report.md"):
        assert (tmp_path / name).read_bytes() == (sample / "report" / name).read_bytes()
    assert len(list(tmp_path.glob("figures/*.svg"))) == 1 + 1 + 2 + 1 + 1  # all, ROC, scores, Q', search


def test_observation_says_in_a_sentence_where_it_holds(sample, page):
    (run,) = load(sample)
    method, images = run.methods[3], run.images
    found = observation(run, method)
    assert found["holds"] == {"cats": True, "dogs": True, "exotic": False}
    good, bad = found["sentences"]
    assert "observation holds for cats and dogs: under the perturbation ID images move less" in good
    assert "does not hold for exotic" in bad
    assert "AdaSCALE-A does not help there" in bad
    assert f"{good}{bad}" in page.text
    run.images = images[images["set"] != "exotic"].assign(percentile_adascale=80.0)
    first, last = observation(run, method)["sentences"]
    assert "holds for every OOD set" in first
    assert "fixed at 80 (p_min = p_max)" in last
    assert observation(run, run.methods[0]) is None


# Images.


def number_in(source: str) -> int:
    """Return the number that a thumbnail shows."""
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        grey = np.asarray(image.convert("L"))
    across, down = grey.shape[1] / 4, grey.shape[0] / 3
    bits = [grey[int((bit // 4 + 0.5) * down), int((bit % 4 + 0.5) * across)] > 127 for bit in range(12)]
    return sum(int(bit) << place for place, bit in enumerate(bits))


def test_thumbnails_are_of_the_images_that_are_named(page):
    first = {"id": 0, "cats": 100, "dogs": 200, "exotic": 300}
    pictures = [attributes for tag, attributes in page.attributes if tag == "img"]
    for attributes in pictures:
        folder, _, file = attributes["alt"].partition("/")
        assert number_in(attributes["src"]) == first[folder] + int(file.removesuffix(".png"))


def test_gallery_shows_what_fooled_the_best_method_and_a_pair(tmp_path):
    run = sample_run(tmp_path / "pictures", ("msp", "ebo", "adascale"), count=30)
    write_report(run, tmp_path, compare_methods=("MSP", "ebo"), max_images=3)
    html = Page(tmp_path / "index.html").html
    assert "<h3>MSP against EBO</h3>" in html
    assert re.findall(r"<summary>(.*?)</summary>", html)[:3] == ["AdaSCALE-A", "MSP", "EBO"]
    scores = run.values(run.methods[0])
    threshold = np.sort(scores["id"])[1]  # accepts 29 of 30
    wrong = int((scores["cats"] >= threshold).sum())
    part = html[html.index("<summary>MSP</summary>") : html.index("<summary>EBO</summary>")]
    assert f"cats (near-OOD): {wrong} of 30 are accepted" in part
    cards = part[part.index("cats (near-OOD)") : part.index("dogs (near-OOD)")]
    shown = [int(number) for number in re.findall(r'alt="cats/(\d+)\.png"', cards)]
    assert shown == np.argsort(-scores["cats"])[:3].tolist()
    write_report(run, tmp_path, max_images=0)
    assert "<img" not in Page(tmp_path / "index.html").html


def test_images_that_cannot_be_read_are_named_and_hang_nothing(tmp_path):
    run = sample_run(tmp_path / "pictures", ("msp", "adascale"), count=10)
    paths = [Path(path) for path in run.images.loc[run.images["set"] == "exotic", "path"]]
    for path in paths[1:]:
        path.unlink()
    paths[1].write_bytes(b"\x89PNG\r\n\x1a\n broken")
    paths[2].write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")  # Pillow would run Ghostscript
    if hasattr(os, "mkfifo"):
        os.mkfifo(paths[3])
    page = Page(write_report(run, tmp_path / "a", max_images=20))
    assert "image(s) cannot be read, such as" in page.text
    shutil.rmtree(tmp_path / "pictures")
    page = Page(write_report(run, tmp_path / "b"))
    assert "No images: their files cannot be read: " in page.text
    assert "img" not in page.tags
    page = Page(write_report(sample_run(), tmp_path / "c"))
    assert "No images: the run has no table of images" in page.text


# Names.

EVIL = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(1)</script>',
    "a|b",
    "**b**",
    "$x_$",
    "{{ 7*7 }}",
    "]]>-->",
)


def test_names_of_anything_stay_text(tmp_path):
    run = sample_run(count=20)
    evil = dict(zip(("cats", "dogs", "exotic"), EVIL[:3], strict=True))
    methods = []
    for name, method in zip(EVIL[3:5], run.methods, strict=True):
        search = pd.DataFrame({EVIL[0]: [EVIL[2], EVIL[3]], "auroc": [70, 80]})
        table, settings = method.table.rename(index=evil), {EVIL[1]: EVIL[5]}
        methods.append(MethodResult(name, table, EVIL[6] + name, search=search, settings=settings))
    images = run.images.replace({"set": evil})
    images.columns = images.columns.str.replace("msp", EVIL[3]).str.replace("adascale", EVIL[4])
    images["path"] = numbered(tmp_path / "x'\"<b>&.png", 5)
    bad = Run(
        methods, (evil["cats"], evil["dogs"]), (evil["exotic"],), images=images, classes=EVIL[:1], id=EVIL[1],
        network=EVIL[0], title=EVIL[6], notes=list(EVIL),
    )  # fmt: skip
    folder = tmp_path / "run"
    write_run(bad, folder)
    assert command("report", folder) == 0
    page = Page(folder / "report" / "index.html")
    assert page.tags.count("script") == 1
    assert "b" not in page.tags
    check_no_request(page)
    for name in EVIL:
        assert name in page.text
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert "<" not in text
    for block in re.findall(r"(?:^\|.*\n)+", text.replace(r"\|", ""), re.MULTILINE):
        assert all(line.endswith("|") for line in block.splitlines())
        assert len({line.count("|") for line in block.splitlines()}) == 1
    names = [path.name for path in (folder / "report" / "figures").iterdir()]
    assert all(re.fullmatch(r"[\w.-]+\.svg", name) for name in names)


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b*c", r"a\_b\*c"),
        ("1. x", r"1\. x"),
        ("- x", r"\- x"),
        ("<b>", "&lt;b&gt;"),
        ("a\nb", r"a\\nb"),
        ("#", r"\#"),
    ],
)
def test_markdown_escapes_text(text, escaped):
    assert markdown(text) == escaped


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_file_names_that_no_page_can_hold_are_escaped(tmp_path):
    folder = tmp_path / os.fsdecode(b"run\xff\nx")
    for name in (b"a\xff", b"a\nb", b"a\x1bb", b"x" * 240):
        imagenet_csv(folder / "ood" / (os.fsdecode(name) + ".csv"), flat(70))
    assert command("report", folder) == 0
    text = (folder / "report" / "report.md").read_text(encoding="utf-8")
    assert r"a\\udcff" in text
    assert r"a\\nb" in text
    assert "\x1b" not in text


# Parts, options and files.


@pytest.mark.parametrize("part", ["tables", "near only", "many methods", "one image", "extreme"])
def test_report_of_a_partial_or_odd_run_is_written(tmp_path, part):
    run = sample_run(count=1 if part == "one image" else 20)
    if part == "tables":
        run.methods = [MethodResult("msp", run.methods[0].table, std=run.methods[0].table * 0 + 0.5)]
    elif part == "near only":
        for method in run.methods:
            method.table = method.table.drop(index=["exotic", "farood"])
        run = Run(run.methods, run.near, images=run.images[run.images["set"] != "exotic"])
    elif part == "many methods":
        run.methods += [replace(run.methods[0], name=f"m{i}", label=f"m{i}") for i in range(12)]
    elif part == "extreme":
        extreme = np.where(np.arange(len(run.images)) % 3, 5e-324, 1e300)
        run.images[["score_msp", "score_adascale"]] += extreme[:, None]
    with np.errstate(all="raise", under="ignore"):
        write_report(run, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert ("± 0.50" in text) == (part == "tables")


def test_search_that_is_no_heat_map_is_a_table_or_left_out(tmp_path):
    run = sample_run(count=5)
    tables = (
        pd.DataFrame([{"p_min": i, "p_max": j, "auroc": 50} for i in range(70) for j in range(70)]),
        pd.DataFrame({"o": [[1], [2]], "auroc": [1, 2]}),
        pd.DataFrame({"auroc": ["x"]}),
        pd.DataFrame({"p_min": [60, 65], "p_max": 70, "auroc": [50, np.inf]}),
        pd.DataFrame(),
    )
    run.methods = [
        replace(run.methods[0], name=f"m{i}", label="", search=one) for i, one in enumerate(tables)
    ]
    write_report(run, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "the best 20 of 4900 candidates" in text
    assert "| \\[2\\] | **2.00** |" in text
    assert text.count("search left out") == 3


def test_published_results_stand_beside_the_measured_ones(tmp_path):
    folder = tmp_path / CIFAR10
    imagenet_csv(folder / "ood" / "msp.csv", authors("cifar10", "resnet18_32x32") * 0 + 50)
    assert command("report", folder) == 0
    lines = (folder / "report" / "report.md").read_text(encoding="utf-8").splitlines()
    value = authors("cifar10", "resnet18_32x32").loc["nearood", "AUROC"]
    assert any(
        line.startswith("| *AdaSCALE-A (published)* | ") and f"*{value:.2f}*" in line for line in lines
    )
    assert not any("**" in line and "published" in line for line in lines)  # best is what was measured
    assert Page(folder / "report" / "index.html").html.count('<tr class="published">') == 6
    assert command("report", folder, "--reference", "none", "-o", tmp_path / "out") == 0
    assert "published" not in (tmp_path / "out" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare-methods", "msp,knn"], "compare-methods: 'msp, knn'; expected two different ones of MSP"),
        (["--compare-methods", "msp,MSP"], "compare-methods: 'msp, MSP'; expected two different"),
        (["--compare-methods", "msp"], "--compare-methods: 'msp'"),
        (["--max-images", "-1"], "--max-images: -1"),
        (
            ["--reference", "cifar10:resnet50"],
            "reference: 'cifar10:resnet50'; expected none, or DATASET:NETWORK",
        ),
    ],
)
def test_option_that_is_not_allowed_is_an_error(sample, tmp_path, capsys, options, message):
    assert command("report", sample, "-o", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_options_are_checked_before_there_are_results():
    pair = check_options(["msp", "openood:knn"], ["MSP", "KNN (OpenOOD)"], 0, "imagenet:resnet50")
    assert pair == ("MSP", "KNN (OpenOOD)")
    for wrong in ({"compare_methods": ["msp", "knn"]}, {"max_images": -1}, {"reference": "x"}):
        with pytest.raises(ResultError, match=next(iter(wrong)).replace("_", "-")):
            check_options(["msp", "ebo"], **wrong)


def test_report_follows_no_link_in_place_of_its_files(tmp_path):
    folder, outside = tmp_path / RESNET50, tmp_path / "outside"
    outside.mkdir()
    imagenet_csv(folder / "ood" / "msp.csv", flat(70))
    assert command("report", folder) == 0
    files = [path for path in (folder / "report").rglob("*") if path.is_file()]
    for index, path in enumerate(files):
        path.unlink()
        (outside / str(index)).write_text("mine")
        path.symlink_to(outside / str(index))
    assert command("report", folder) == 0
    assert {path.read_text() for path in outside.iterdir()} == {"mine"}
    assert not any(path.is_symlink() for path in files)


def test_report_changes_no_setting_of_matplotlib(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(sample_run(count=5), tmp_path)
    assert dict(matplotlib.rcParams) == before
