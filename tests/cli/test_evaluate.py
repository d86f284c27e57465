"""``openood-adascale evaluate`` on folders of small pictures, from networks to tables and report."""

from __future__ import annotations

import re

import pandas as pd
import pytest
import torch
import yaml
from command_line import call_here as call
from sklearn.metrics import roc_auc_score


def arguments(folders, *more):
    return [
        "evaluate", "--network", folders / "net.py:network", "--id", folders / "id", "--val", folders / "val",
        "--near", f"n={folders / 'near'}", "--far", f"f={folders / 'far'}", "--out", folders / "out", "--workers", "0",
        "--quiet", *more,
    ]  # fmt: skip


def test_all_methods_with_a_search(folders):
    more = ["--ood-val", folders / "oodval", "--labels", "folders", "--store", folders / "store"]
    done = call(*arguments(folders, *more))
    assert done.returncode == 0, done.stderr
    assert "id: 30 images" in done.stdout
    names = {path.stem for path in (folders / "out/ood").glob("*.csv")}
    assert names == {"msp", "ebo", "scale", "lts", "bfact", "optfs", "adascale", "adascale_logit"}
    table = pd.read_csv(folders / "out/ood/adascale.csv", index_col=0)
    assert list(table.index) == ["n", "nearood", "f", "farood"]
    assert table.notna().all(axis=None)
    assert len(pd.read_csv(folders / "out/search/adascale.csv")) == 36
    assert (folders / "out/report/report.html").stat().st_size > 1000
    images = pd.read_csv(folders / "out/images.csv")
    assert images["set"].value_counts().to_dict() == {"id": 30, "n": 20, "f": 20}
    known = images[images["set"] == "id"]
    assert list(known["path"].iloc[[0, 10]]) == [
        str(folders / f"id/{p}.png") for p in ("a/picture 000", "b/picture 001")
    ]
    assert list(known["label"].iloc[[0, 10, 20]]) == [0, 1, 2]
    assert set(known["class"]) <= {"a", "b", "c"}
    assert known["percentile_adascale"].between(60, 99).all()
    near = images[images["set"].isin(["id", "n"])]
    auroc = 100 * roc_auc_score(near["set"] == "id", near["score_adascale"])
    assert auroc == pytest.approx(table.loc["n", "AUROC"], abs=0.006)
    first = table
    # What was run can be run again, from what was written and what was stored.
    done = call("evaluate", "--config", folders / "out/evaluate.yml", "--out", folders / "again")
    assert done.returncode == 0, done.stderr
    pd.testing.assert_frame_equal(pd.read_csv(folders / "again/ood/adascale.csv", index_col=0), first)
    config = {**yaml.safe_load((folders / "out/evaluate.yml").read_text()), "nonsense": 1}
    (folders / "mine.yml").write_text(yaml.safe_dump(config))
    done = call("evaluate", "--config", folders / "mine.yml", check=False)
    assert (done.returncode, "nonsense" in done.stderr) == (2, True)


def test_without_labels_or_ood_validation_images(folders):
    done = call(*arguments(folders, "--methods", "msp,adascale"))
    assert done.returncode == 0, done.stderr
    assert "without a search" in done.stdout
    table = pd.read_csv(folders / "out/ood/msp.csv", index_col=0)
    assert table["ACC"].isna().all()
    assert table["AUROC"].notna().all()


def test_the_labels_of_an_image_list_count(folders):
    images = sorted((folders / "id").rglob("*.png"))
    lines = [f"{path.relative_to(folders).as_posix()} {number % 3}" for number, path in enumerate(images)]
    (folders / "id.txt").write_text("\n".join(lines))
    (folders / "classes.txt").write_text("0\n1\n2\n")
    named = ["--classes", folders / "classes.txt"]
    done = call(*arguments(folders, "--id", folders / "id.txt", "--methods", "msp", *named))
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(folders / "out/ood/msp.csv", index_col=0)
    found = pd.read_csv(folders / "out/images.csv").query("set == 'id'")
    hits = found["class"].astype(int) == found["label"]
    assert table["ACC"].tolist() == pytest.approx([100 * hits.mean()] * len(table), abs=0.006)
    (folders / "id.txt").write_text("\n".join([*lines[1:], lines[0].removesuffix("0") + "-1"]))
    done = call(*arguments(folders, "--id", folders / "id.txt", "--methods", "msp"))
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(folders / "out/ood/msp.csv", index_col=0)["ACC"].isna().all()


def test_broken_images(folders):
    (folders / "near" / "broken.png").write_bytes(b"no picture")
    done = call(*arguments(folders, "--methods", "msp"), check=False)
    assert done.returncode == 2
    assert "broken.png" in done.stderr
    assert "Traceback" not in done.stderr
    done = call(*arguments(folders, "--methods", "msp", "--skip-broken"))
    assert done.returncode == 0, done.stderr
    assert "left out" in done.stdout
    assert "n: 20 images" in done.stdout


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--methods", "nonsense"], "--methods"),
        (["--near", "n"], "--near"),
        (["--batch-size", "0"], "--batch-size"),
        (["--precision", "int8"], "precision"),
        (["--network", "torchvision:nonsense"], "nonsense"),
        (["--network", "timm:resnet18"], "weights"),
        (["--val", "nowhere"], "nowhere"),
        (["--search"], "ood_val"),
        (["--pair", "msp"], "--pair"),
        (["--pair", "msp,optfs", "--methods", "msp,adascale"], "--pair"),
        (["--images", "-1"], "--images"),
        (["--published", "imagenet:nonsense"], "imagenet:resnet50"),
        (["--classes", "nowhere.txt"], "classes"),
    ],
)
def test_what_cannot_be_used(folders, more, told):
    done = call(*arguments(folders, *more), check=False)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_torchvision_with_weights_from_a_file(folders):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    network = mobilenet_v2(num_classes=3)
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, folders / "w.pth")
    more = ["--network", "torchvision:mobilenet_v2", "--weights", folders / "w.pth", "--transform", "size=32"]
    done = call(*arguments(folders, *more, "--methods", "msp"))
    assert done.returncode == 0, done.stderr


def test_images_in_the_report(folders):
    (folders / "classes.txt").write_text("the first\nthe second\nthe third\n")
    more = [
        "--methods",
        "msp,adascale,ebo",
        "--pair",
        "ebo,AdaSCALE-A",
        "--images",
        "2",
        "--published",
        "none",
    ]
    done = call(*arguments(folders, *more, "--classes", folders / "classes.txt"))
    assert done.returncode == 0, done.stderr
    page = (folders / "out/report/report.html").read_text()
    assert "EBO against AdaSCALE-A" in page
    cards = re.findall(r"<figcaption>as ([^<]*)<br>score ([^<]*)<br>.*?<small [^>]*>([^<]*)</small>", page)
    assert len(cards) >= 3 * 2 * 2
    table = pd.read_csv(folders / "out/images.csv")
    assert set(table["class"]) <= {"the first", "the second", "the third"}
    for name, score, path in cards:
        rows = table[table["path"].str.endswith(f"/{path}")]
        assert name in set(rows["class"])
        given = [
            f"{value:.4g}"
            for column in ("score_msp", "score_adascale", "score_ebo")
            for value in rows[column]
        ]
        assert score in given


@pytest.mark.parametrize(("side", "other"), [("near", "far"), ("far", "near")])
def test_one_split_alone(folders, side, other):
    """The figures are those of both splits' run; in tables, pictures and a report of the folder nothing is missed."""
    both = [*map(str, arguments(folders, "--methods", "msp,ebo", "--labels", "folders"))]
    assert call(*both).returncode == 0
    want = pd.read_csv(folders / "out/ood/msp.csv", index_col=0)
    assert list(want.index) == ["n", "nearood", "f", "farood"]
    one = [*both]
    del one[one.index(f"--{other}") : one.index(f"--{other}") + 2]
    one[one.index("--out") + 1] = str(folders / "one")
    done = call(*one, "--published", "imagenet:resnet50")
    assert done.returncode == 0, done.stderr
    assert f"{side} AUROC" in done.stdout
    assert f"{other} AUROC" not in done.stdout
    table = pd.read_csv(folders / "one/ood/msp.csv", index_col=0)
    pd.testing.assert_frame_equal(table, want.loc[[side[0], f"{side}ood"]])
    done = call("report", folders / "one", "--out", folders / "again")
    assert done.returncode == 0, done.stderr
    for page in (folders / "one/report/report.html", folders / "again/report.html"):
        text = page.read_text()
        assert f"{side.capitalize()} AUROC" in text
        # The paper's averages, of both, are a table of their own.
        assert text.count(f"{other.capitalize()} AUROC") == text.count("Published averages (%)")
        # The best of the split that is there comes first.
        aurocs = {
            n: pd.read_csv(folders / f"one/ood/{n}.csv", index_col=0).loc[f"{side}ood", "AUROC"]
            for n in ("msp", "ebo")
        }
        best, worst = sorted(aurocs, key=aurocs.__getitem__, reverse=True)
        labels = {"msp": ">MSP<", "ebo": ">EBO<"}
        assert text.index(labels[best]) < text.index(labels[worst])


def test_no_ood_images_at_all(folders):
    given = [*map(str, arguments(folders, "--methods", "msp"))]
    for option in ("--near", "--far"):
        del given[given.index(option) : given.index(option) + 2]
    done = call(*given, check=False)
    assert done.returncode == 2
    assert "--near, --far: None is not allowed" in done.stderr


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"id: 5", "id: 5 is not allowed; expected a text"), (b"id: [a]", "id: ['a'] is not allowed; expected a text"),
        (b"near: 5", "near: 5 is not allowed; expected a section of NAME: DIR"), (b"methods: 5", "methods: 5 is not"),
        (b"search: maybe", "search: 'maybe' is not allowed; expected true or false"), (b"workers: a", "workers: 'a' is not"),
        (b"id: 2001-99-99", "a yml that can be read (ValueError: month"), (b"\xff", "a yml that can be read ('utf-8'"),
        (b"weights:", "--near, --far: None"), (None, "a yml that can be read ([Errno"),
    ],
)  # fmt: skip
def test_a_yml_that_cannot_be_used(tmp_path, text, told):
    if text is not None:
        (tmp_path / "a.yml").write_bytes(text)
    done = call("evaluate", "--config", tmp_path / "a.yml", "--out", tmp_path / "out", check=False)
    assert done.returncode == 2
    assert told in done.stderr
