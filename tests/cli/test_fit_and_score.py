"""``openood-adascale fit`` and ``score``: a detector as a file, and images scored with it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import COLOURS, call

from openood_adascale import AdaSCALE, load_network
from openood_adascale.data import files

NETWORK = ["--network", "net.py:network"]


def fit(folders, *more, network="net.py:network", check=True):
    arguments = ["--network", network, "--val", "val", "-o", "d.safetensors", "--workers", "0", "-q"]
    return call("fit", *arguments, *more, cwd=folders, check=check)


def score(folders, *more, check=True):
    return call("score", "d.safetensors", *more, "--workers", "0", "-q", cwd=folders, check=check)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def forget_network():
    for name in [name for name in sys.modules if name.partition("_")[0] == "net"]:
        del sys.modules[name]


def test_scores_are_those_of_the_detector(folders):
    assert "95 % of 24 validation images" in fit(folders).stdout
    score(folders, "near", "val", *NETWORK, "-o", "scores.csv")
    found = rows((folders / "scores.csv").read_text(encoding="utf-8"))
    loaded = load_network(f"{folders / 'net.py'}:network")
    detector = AdaSCALE.load(folders / "d.safetensors", loaded.network)
    images = torch.stack(
        [image for image, _ in files.find_images(folders / "near").with_transform(loaded.transform)]
    )
    predictions, scores = detector.predict(images)
    np.testing.assert_allclose([float(row["score"]) for row in found[:20]], scores, rtol=1e-6)
    assert [int(row["prediction"]) for row in found[:20]] == predictions.tolist()
    assert [row["path"] for row in found[:20]] == [f"near/picture {n:03}.png" for n in range(20)]
    threshold = detector.threshold(0.95)
    assert [int(row["ood"]) for row in found] == [int(float(row["score"]) < threshold) for row in found]
    assert sum(row["ood"] == "0" for row in found[20:]) == 23  # 95 % of 24, or more
    everything = rows(score(folders, "val", *NETWORK, "--tpr", "1").stdout)
    assert [row["ood"] for row in everything] == ["0"] * 24


@pytest.mark.parametrize("lacking", [None, "green"])
def test_class_names_are_the_networks_own_or_none(folders, lacking):
    shutil.rmtree(folders / "val")
    shutil.copytree(folders / "colours", folders / "val")
    if lacking:
        shutil.rmtree(folders / "val" / lacking)
        done = fit(folders, "--labels", "folders", network="net.py:colours", check=False)
        assert (done.returncode, "2 class folders (blue, red)" in done.stderr) == (2, True)
        (folders / "names.txt").write_text("\n".join(COLOURS))
        fit(folders, "--labels", "folders", "--classes", "names.txt", network="net.py:colours")
    else:
        fit(folders, "--labels", "folders", network="net.py:colours")
    found = rows(score(folders, "colours", "--network", "net.py:colours").stdout)
    assert [row["class"] for row in found] == [row["path"].split("/")[1] for row in found]


def test_search_and_settings(folders):
    assert "searched 36 candidates" in fit(folders, "--ood-val", "oodval", "--set", "k1=2", "lmbda=3").stdout
    assert "percentiles are in percent" in fit(folders, "--set", "percentile=[0.8,0.85]").stderr
    loaded = load_network(f"{folders / 'net.py'}:network")
    assert AdaSCALE.load(folders / "d.safetensors", loaded.network).settings.percentile == (0.8, 0.85)


@pytest.mark.parametrize("method", ["msp", "scale", "bfact", "optfs", "adascale_logit"])
def test_every_method_is_fitted(folders, method):
    fit(folders, "--method", method)
    assert len(rows(score(folders, "near", *NETWORK).stdout)) == 20
    done = fit(folders, "--method", method, "--train", "id", "--ood-val", "oodval")
    assert "validation images score" in done.stdout


def test_code_is_run_only_if_it_is_named(folders):
    fit(folders)
    forget_network()
    (folders / "net.py").write_text("raise SystemExit('was run')")
    done = score(folders, "near", check=False)
    assert done.returncode == 2
    assert "'net.py:network', which is code" in done.stderr


def test_network_of_a_library_is_found_again(folders):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    torch.save(mobilenet_v2(num_classes=3).state_dict(), folders / "w.pth")
    options = ["--weights", "w.pth", "--transform", "size=32", "--method", "msp"]
    fit(folders, *options, network="torchvision:mobilenet_v2")
    (folders / "elsewhere").mkdir()
    here = call("score", folders / "d.safetensors", folders / "near", "-q", cwd=folders / "elsewhere")
    assert len(rows(here.stdout)) == 20
    shutil.move(folders / "w.pth", folders / "elsewhere/w.pth")
    done = score(folders, "near", check=False)
    assert (done.returncode, "w.pth" in done.stderr) == (2, True)
    moved = score(folders, "near", "--weights", "elsewhere/w.pth")
    assert [row["score"] for row in rows(moved.stdout)] == [row["score"] for row in rows(here.stdout)]


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_formats_hold_the_same_rows(folders, form):
    fit(folders)
    want = rows(score(folders, "near", *NETWORK).stdout)
    output = folders / f"scores.{form}"
    score(folders, "near", *NETWORK, "-o", output.name)
    score(folders, "near", *NETWORK, "-o", "other", "--format", form)
    assert output.read_bytes() == (folders / "other").read_bytes()
    if form == "csv":
        found = rows(output.read_text())
    elif form == "jsonl":
        found = [json.loads(line) for line in output.read_text().splitlines()]
    else:
        found = pd.read_parquet(output).to_dict("records")
    assert [(row["path"], float(row["score"]), bool(int(row["ood"]))) for row in found] == [
        (row["path"], float(row["score"]), row["ood"] == "1") for row in want
    ]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_broken_images_are_listed_at_the_end(folders, workers):
    fit(folders)
    for number in (0, 4, 19):
        (folders / f"near/picture {number:03}.png").write_bytes(b"no picture" * (number > 0))
    shutil.copy(folders / "far/picture 000.png", folders / 'near/Ωmega, "quoted"\nline.png')
    more = ["near", *NETWORK, "--batch-size", "3", "--workers", workers]
    done = score(folders, *more, "-o", "scores.csv", check=False)
    assert done.returncode == 1
    told = done.stderr.strip().splitlines()
    assert told[-4:] == [
        "3 images could not be read:", "  near/picture 000.png: is empty",
        *(f"  near/picture {n:03}.png: is no image that Pillow can read" for n in (4, 19)),
    ]  # fmt: skip
    found = (folders / "scores.csv").read_text(encoding="utf-8")
    assert len(rows(found)) == 18
    assert sum(row["path"] == 'near/Ωmega, "quoted"\nline.png' for row in rows(found)) == 1
    done = score(folders, *more, "-o", "again.csv", "--skip-broken")
    assert (folders / "again.csv").read_text(encoding="utf-8") == found


def test_interrupted_run_goes_on(folders, monkeypatch):
    fit(folders)
    arguments = ["near", "far", *NETWORK, "--batch-size", "4", "-o", "scores.csv"]
    score(folders, *arguments)
    want, read, seen = (folders / "scores.csv").read_bytes(), files.read_image, []

    def interrupt(path):
        if path == "near/picture 009.png":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(files, "read_image", interrupt)
    done = score(folders, *arguments, check=False)
    assert (done.returncode, "goes on from scores.csv.partial" in done.stderr) == (130, True)
    with (folders / "scores.csv.partial").open("a") as file:
        file.write('{"path": "torn')
    monkeypatch.setattr(files, "read_image", lambda path: seen.append(path) or read(path))
    done = score(folders, *arguments)
    assert "8 of 40 are scored already" in done.stderr  # two batches
    assert len(seen) == 32
    assert (folders / "scores.csv").read_bytes() == want
    assert "of 40 images are OOD" in done.stderr
    assert not (folders / "scores.csv.partial").exists()
    # Of another threshold, or other images, it begins again.
    (folders / "scores.csv.partial").write_text('{"key": "other"}\n{"path": "near/picture 000.png"}\n')
    assert "begun again" in score(folders, *arguments).stderr
    assert (folders / "scores.csv").read_bytes() == want
