"""``openood-adascale evaluate``: networks and folders of pictures to tables, scores and a report."""

from __future__ import annotations

import shutil

import pandas as pd
import pytest
import yaml
from helpers import COLOURS, call
from sklearn.metrics import roc_auc_score

pytest.importorskip("openood_adascale.report.run")


def evaluate(folders, *more, network="network", check=True):
    arguments = [
        "evaluate", "--network", f"net.py:{network}", "--id", "id", "--near", "n=near", "--far", "f=far", "-o", "out",
        "--workers", "0", "--max-images", "0", "-q", *more,
    ]  # fmt: skip
    return call(*arguments, cwd=folders, check=check)


def table_of(folders, name="msp", output="out"):
    return pd.read_csv(folders / output / "ood" / f"{name}.csv", index_col=0)


def images_of(folders, output="out"):
    files = list((folders / output).glob("images.*"))
    return pd.read_csv(files[0]) if files[0].suffix == ".csv" else pd.read_parquet(files[0])


def test_all_methods_with_a_search_and_again(folders):
    more = ["--val", "val", "--ood-val", "oodval", "--labels", "folders"]
    done = evaluate(folders, *more, "--cache-dir", "cache", "--cache-tag", "1")
    assert "id: 30 images" in done.stdout
    names = {path.stem for path in (folders / "out/ood").glob("*.csv")}
    assert names == {"msp", "ebo", "scale", "lts", "bfact", "optfs", "adascale", "adascale_logit"}
    table = table_of(folders, "adascale")
    assert list(table.index) == ["n", "nearood", "f", "farood"]
    assert table.notna().all(axis=None)
    assert len(pd.read_csv(folders / "out/search/adascale.csv")) == 36
    assert list((folders / "out/report").glob("*.html"))
    images = images_of(folders)
    assert images["set"].value_counts().to_dict() == {"id": 30, "n": 20, "f": 20}
    assert images["label"][[0, 10, 20]].tolist() == [0, 1, 2]
    near = images[images["set"].isin(["id", "n"])]
    auroc = 100 * roc_auc_score(near["set"] == "id", near["score_adascale"])
    assert auroc == pytest.approx(table.loc["n", "AUROC"], abs=0.006)
    call("evaluate", "--config", "out/evaluate.yml", "-o", "again", cwd=folders)
    pd.testing.assert_frame_equal(table_of(folders, "adascale", "again"), table)
    assert "entries" in call("cache", "list", "--cache-dir", "cache", cwd=folders).stdout
    assert "removed" in call("cache", "clear", "--cache-dir", "cache", cwd=folders).stdout
    assert "0 entries" in call("cache", "list", "--cache-dir", "cache", cwd=folders).stdout


def test_accuracy_without_labels_is_left_out_and_said(folders):
    done = evaluate(folders, "--methods", "msp,adascale", "--val", "val")
    assert "without a search" in done.stdout
    assert "ACC is left out: the ID test images have no labels" in done.stdout
    assert table_of(folders)["ACC"].isna().all()


@pytest.mark.parametrize("names", ["--val", "--train", "--classes", None])
def test_missing_class_folder_does_not_shift_the_others(folders, names):
    shutil.copytree(folders / "colours", folders / "test")
    shutil.rmtree(folders / "test/green")
    (folders / "names.txt").write_text("\n".join(COLOURS))
    more = [] if names is None else [names, "names.txt" if names == "--classes" else "colours"]
    given = ["--id", "test", "--labels", "folders", "--methods", "msp", *more]
    done = evaluate(folders, *given, network="colours", check=False)
    if names is None:
        assert done.returncode == 2
        assert "2 class folders (blue, red)" in done.stderr
        assert "3 classes" in done.stderr
        assert not (folders / "out/run.json").exists()
        return
    assert done.returncode == 0, done.stderr
    assert table_of(folders)["ACC"].iloc[0] == 100
    assert set(images_of(folders).query("set == 'id'")["label"]) == {0, 2}


def test_broken_images_are_named_or_left_out(folders):
    (folders / "near" / "broken.png").write_bytes(b"no picture")
    done = evaluate(folders, "--methods", "msp", check=False)
    assert (done.returncode, "broken.png" in done.stderr) == (2, True)
    done = evaluate(folders, "--methods", "msp", "--skip-broken")
    assert "near: left out" in done.stdout or "n: left out" in done.stdout
    assert "n: 20 images" in done.stdout


def test_failed_run_leaves_an_earlier_one_as_it_was(folders):
    evaluate(folders, "--methods", "msp")
    before = {path: path.read_bytes() for path in (folders / "out").rglob("*") if path.is_file()}
    (folders / "far" / "broken.png").write_bytes(b"no picture")
    for more in (["--near", "f=near"], ["--id", "nowhere"], ["--methods", "ebo"]):
        assert evaluate(folders, *more, check=False).returncode == 2
    assert {path: path.read_bytes() for path in (folders / "out").rglob("*") if path.is_file()} == before


def test_command_line_has_precedence_over_the_config(folders):
    text = "network: net.py:network\nid: id\nfar: [f=far]\nmethods: [msp, ebo]\nworkers: 0\nsearch: true"
    (folders / "run.yml").write_text(text)
    more = ("-o", "out", "-q", "--no-search", "--far", "g=near")
    call("evaluate", "--config", "run.yml", *more, cwd=folders)
    assert list(table_of(folders).index) == ["g", "farood"]
    kept = yaml.safe_load((folders / "out/evaluate.yml").read_text())
    found = [kept[name] for name in ("workers", "search", "far", "methods")]
    assert found == [0, False, {"g": "near"}, "msp,ebo"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"near: 5", "near: 5 is not allowed; expected a section of NAME: DIR"),
        (b"search: maybe", "search"),
        (b"workers: a", "--workers: invalid int value: 'a'"),
        (b"id: 2001-99-99", "a YAML file that can be read"),
        (b"\xff", "a YAML"),
        (b"weights:", "missing required options: --network, --id, --near or --far"),
        (None, "a file that can be read"),
        (b"nonsense: 1", "nonsense: 1 is not allowed; expected an option: "),
        (b"ray: local", "ray: 'local' is not allowed; expected an option: "),
        (b"- a", "a YAML file of options by name"),
    ],
)
def test_config_that_cannot_be_used_is_named(tmp_path, text, told):
    if text is not None:
        (tmp_path / "a.yml").write_bytes(text)
    done = call("evaluate", "--config", tmp_path / "a.yml", "-o", tmp_path / "out", check=False)
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert told in done.stderr
