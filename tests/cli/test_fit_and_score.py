"""``openood-adascale fit`` and ``score``: a detector as a file, and images scored with it."""

from __future__ import annotations

import csv
import io
import shutil
import sys

import numpy as np
import pytest
import torch
from command_line import call, call_here

from openood_adascale import AdaSCALE
from openood_adascale.evaluation.folders import find_images
from openood_adascale.evaluation.networks import load_network


def fit(folders, *more, network="net.py:network", check=True, call=call_here):
    return call(
        "fit", "--network", network, "--val", "val", "-o", "d.safetensors", "--workers", "0", "-q", *more,
        cwd=folders, check=check,
    )  # fmt: skip


def score(folders, *more, check=True, call=call_here):
    return call("score", "d.safetensors", *more, "--workers", "0", "-q", cwd=folders, check=check)


def rows(text):
    return list(csv.DictReader(io.StringIO(text)))


def in_python(folders):
    """The detector as a Python user has it."""
    sys.path.insert(0, str(folders))
    try:
        loaded = load_network(f"{folders / 'net.py'}:network")
        return AdaSCALE.load(folders / "d.safetensors", loaded.network), loaded
    finally:
        sys.path.remove(str(folders))


def test_scores_are_those_of_the_detector(folders):
    done = fit(folders)
    assert "95 % of 24 validation images" in done.stdout
    score(folders, "near", "val", "--network", "net.py:network", "-o", "scores.csv")
    found = rows((folders / "scores.csv").read_text(encoding="utf-8"))
    detector, loaded = in_python(folders)
    files = find_images(folders / "near").with_transform(loaded.transform)
    images = torch.stack([image for image, _ in files])
    predictions, scores = detector.predict(images)
    np.testing.assert_allclose([float(row["score"]) for row in found[:20]], scores, rtol=1e-6)
    assert [int(row["prediction"]) for row in found[:20]] == predictions.tolist()
    assert [row["path"] for row in found[:20]] == [f"near/picture {n:03}.png" for n in range(20)]
    least = detector.threshold(0.95)
    assert [int(row["ood"]) for row in found] == [int(float(row["score"]) < least) for row in found]
    kept = [row for row in found[20:] if row["ood"] == "0"]
    assert len(kept) == 23  # 95 % of 24, or more
    everything = rows(score(folders, "val", "--network", "net.py:network", "--tpr", "1").stdout)
    assert [row["ood"] for row in everything] == ["0"] * 24


def test_a_search_and_settings_and_names_of_classes(folders):
    for number, path in enumerate(sorted((folders / "val").glob("*.png"))):
        where = folders / "val" / ("cat", "eel, common")[number % 2]
        where.mkdir(exist_ok=True)
        shutil.move(path, where)
    more = ["--ood-val", "oodval", "--labels", "folders", "--set", "k1=2", "lmbda=3"]
    done = fit(folders, *more)
    assert "searched 36 candidates" in done.stdout
    detector, _ = in_python(folders)
    assert (detector.settings.k1, detector.settings.lmbda) == (2, 3)
    found = rows(score(folders, "far", "--network", "net.py:network").stdout)
    names = {"0": "cat", "1": "eel, common", "2": ""}
    assert [row["class"] for row in found] == [names[row["prediction"]] for row in found]


@pytest.mark.parametrize("method", ["msp", "scale", "bfact", "optfs", "adascale_logit"])
def test_every_method(folders, method):
    fit(folders, "--method", method)
    assert len(rows(score(folders, "near", "--network", "net.py:network").stdout)) == 20
    done = fit(folders, "--method", method, "--train", "id", "--ood-val", "oodval")
    assert "validation images score" in done.stdout


def test_code_is_run_only_if_it_is_named(folders):
    fit(folders)
    text = (folders / "net.py").read_text()
    (folders / "net.py").write_text(f"open({str(folders / 'ran')!r}, 'w').close()\n{text}")
    done = score(folders, "near", check=False, call=call)
    assert done.returncode == 2
    assert "net.py:network" in done.stderr
    assert not (folders / "ran").exists()
    score(folders, "near", "--network", "net.py:network", call=call)
    assert (folders / "ran").exists()


def test_a_librarys_network_is_found_again(folders):
    from torchvision.models import mobilenet_v2

    torch.manual_seed(0)
    torch.save(mobilenet_v2(num_classes=3).state_dict(), folders / "w.pth")
    options = ["--weights", "w.pth", "--transform", "size=32", "--method", "msp"]
    fit(folders, *options, network="torchvision:mobilenet_v2")
    (folders / "elsewhere").mkdir()
    here = call_here("score", folders / "d.safetensors", folders / "near", "-q", cwd=folders / "elsewhere")
    assert len(rows(here.stdout)) == 20
    shutil.move(folders / "w.pth", folders / "elsewhere/w.pth")
    done = score(folders, "near", check=False)
    assert (done.returncode, "w.pth" in done.stderr) == (2, True)
    moved = score(folders, "near", "--weights", "elsewhere/w.pth")
    assert [row["score"] for row in rows(moved.stdout)] == [row["score"] for row in rows(here.stdout)]


def test_another_network_is_refused(folders):
    fit(folders)
    text = (folders / "net.py").read_text()
    (folders / "net.py").write_text(text.replace("manual_seed(0)", "manual_seed(1)"))
    done = score(folders, "near", "--network", "net.py:network", check=False, call=call)
    assert done.returncode == 2
    assert "other layers or weights" in done.stderr


def test_broken_images_and_odd_names(folders):
    fit(folders)
    (folders / "near/picture 004.png").write_bytes(b"no picture")
    shutil.copy(folders / "far/picture 000.png", folders / 'near/Ωmega, "quoted"\nline.png')
    (folders / "scores.csv").write_text("mine")
    network = ["--network", "net.py:network"]
    done = score(folders, "near", *network, "-o", "scores.csv", check=False)
    assert done.returncode == 2
    assert "picture 004.png" in done.stderr
    assert (folders / "scores.csv").read_text() == "mine"
    assert [path.name for path in folders.glob(".*")] == []
    done = score(folders, "near", *network, "-o", "scores.csv", "--skip-broken")
    assert "left out 1 of 21 images" in done.stderr
    found = rows((folders / "scores.csv").read_text(encoding="utf-8"))
    assert len(found) == 20
    assert sum(row["path"] == 'near/Ωmega, "quoted"\nline.png' for row in found) == 1


@pytest.mark.parametrize(
    ("command", "more", "told"),
    [
        ("fit", ["--method", "nonsense"], "nonsense"),
        ("fit", ["--set", "k1"], "--set"),
        ("fit", ["--set", "k1=-1"], "k1"),
        ("fit", ["--set", "percentile=[80"], "percentile"),
        ("fit", ["--method", "optfs", "--set", "learn_from=train"], "--train"),
        ("fit", ["--device", "nonsense"], "--device"),
        ("fit", ["--out", "nowhere/d.safetensors"], "nowhere"),
        ("score", ["--tpr", "0"], "tpr"),
        ("score", ["nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_used(folders, command, more, told):
    if command == "score":
        fit(folders)
        done = score(folders, "near", *more, "--network", "net.py:network", check=False)
    else:
        done = fit(folders, *more, check=False)
    assert done.returncode == 2
    assert told in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
