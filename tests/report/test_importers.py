"""OpenOOD's own folders: tables, scores, and the names in their paths."""

from __future__ import annotations

import io
import os
import pickle
import re

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import (
    CIFAR10,
    HEADER,
    IMAGENET,
    RESNET50,
    SETS,
    Hostile,
    authors,
    command,
    evaluator_scores,
    flat,
    imagenet_csv,
    main_csv,
    save_scores,
    seeds_csv,
)

from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import ResultError
from openood_adascale.report.importers import load, read_scores
from openood_adascale.report.names import LABELS, canonical_set, identify, method_of
from openood_adascale.report.tables import read_table, save_csv
from openood_adascale.report.unpickling import NumbersUnpickler

# Tables.


def test_tables_of_all_three_scripts_are_read(tmp_path):
    table = authors()
    plain = read_table(imagenet_csv(tmp_path / "a.csv", table))
    seeds = read_table(seeds_csv(tmp_path / "b.csv", table))
    main = read_table(main_csv(tmp_path / "ood.csv", table))
    for read in (plain, seeds, main):
        pd.testing.assert_frame_equal(read.mean, table.round(2), check_names=False)
        assert (read.near, read.far) == (IMAGENET[:2], IMAGENET[3:6])
    assert (seeds.std == 0.25).all(axis=None)
    assert plain.std is main.std is None


@pytest.mark.parametrize("several", [False, True])
def test_saved_table_is_as_openood_writes_it(tmp_path, several):
    table = authors()
    save_csv([table - 0.25, table + 0.25] if several else table, tmp_path / "new" / "ours.csv")
    theirs = (seeds_csv if several else imagenet_csv)(tmp_path / "theirs.csv", table)
    assert (tmp_path / "new" / "ours.csv").read_bytes() == theirs.read_bytes()
    with pytest.raises(ValueError, match=r"tables\[1\]: rows .* expected those of the first"):
        save_csv([table, table.iloc[1:]], tmp_path / "x.csv")


def test_main_pys_table_is_its_last_complete_run(tmp_path):
    path = tmp_path / "ood.csv"
    table = authors()
    for part in (table / 2, (table / 3).iloc[:5], table, (table / 3).iloc[:1]):
        main_csv(path, part)
    read = read_table(path)
    pd.testing.assert_frame_equal(read.mean, table.round(2), check_names=False)
    assert read.notes == (
        "2 complete run(s); the last one is used (lines 14–20); the unfinished run from line 21 on is ignored",
    )


def rows(*names: str) -> str:
    return HEADER + "".join(f"{name},1,2,3,4,5\n" for name in names)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header is ''; expected ',FPR@95"),
        (HEADER, "the rows are ''; expected near OOD sets"),
        (HEADER + "ssb,1,2,3,4\n", "line 2: 5 columns; expected 6"),
        (HEADER + "ssb,1,x,3,4,5\nnearood,1,1,1,1,1\n", "line 2, column AUROC: 'x'; expected a percentage"),
        (HEADER + "ssb,1,2,3,4,5\nnearood,nan,1,1,1,1\n", "line 3, column FPR@95: 'nan'"),
        (HEADER + "ssb,1,101,3,4,5\nnearood,1,1,1,1,1\n", "line 2, column AUROC: '101'"),
        (HEADER + "ssb,1,2 ± -3,3,4,5\nnearood,1,1,1,1,1\n", "line 2, column AUROC: '2 ± -3'"),
        (HEADER + f"ssb,{'1' * 100_000}x,2,3,4,5\n", r"column FPR@95: '1{40,80}…'"),
        (HEADER + f"ssb,{'1' * 200_000},2,3,4,5\n", "cannot be read as a UTF-8 CSV file: field larger"),
        (rows("ssb", "SSB", "nearood"), r"line 3: the row 'SSB' is there twice \('ssb'\)"),
        (rows("ssb", "nearood", "inat"), "the rows are 'ssb, nearood, inat'; expected near"),
        (rows("inat", "farood", "ssb", "nearood"), "the rows are 'inat, farood, ssb, nearood'"),
        (rows("nearood", "inat", "farood"), "the rows are 'nearood, inat, farood'"),
        (rows("ssb", "NearOOD", "inat", "farood"), "line 3: the row 'NearOOD'; expected"),
        (rows("ssb", "", "nearood"), "line 3: the row ''; expected"),
        (rows("id", "nearood"), "line 2: the row 'id'; expected"),
        ("dataset" + rows("ssb", "nearood"), "no complete run"),
    ],
)
def test_malformed_table_is_an_error_that_says_where(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(ResultError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 500 + len(str(path))


# Scores.


@pytest.mark.parametrize("csid", [False, True])
def test_saved_scores_are_read_as_pickle_would(tmp_path, csid):
    scores = evaluator_scores(csid=csid)
    read = read_scores(save_scores(tmp_path / "s.pkl", scores))
    assert set(read) == ({"ood", "fsood"} if csid else {"ood"})
    np.testing.assert_array_equal(read["ood"].id, scores["id"]["test"][1])
    for side, names in SETS.items():
        for name in names:
            np.testing.assert_array_equal(getattr(read["ood"], side)[name], scores["ood"][side][name][1])
    assert read["ood"].accuracy == 75
    if csid:
        assert len(read["fsood"].id) == 300
        assert read["fsood"].accuracy == pytest.approx((150 + 50) / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: scores.pop("ood"), "not the scores of OpenOOD's Evaluator .KeyError"),
        (
            lambda scores: scores["id"].update(test=[1, 2, 3]),
            r"id: expected \(prediction, confidence, label\)",
        ),
        (lambda scores: scores["id"].update(test=[np.array([np.nan])] * 3), "id: 1 of 1 scores are NaN"),
        (lambda scores: scores.update(id_preds=torch.zeros(3)), "predictions and labels do not match"),
        (lambda scores: scores.update(csid=["imagenet_v2"]), r"s\.pkl: "),
        (lambda scores: scores.update(ood=np.arange(3)), r"s\.pkl: "),
        *(
            (
                lambda scores, name=name: scores["ood"]["far"].update(
                    {name: scores["ood"]["far"]["textures"]}
                ),
                "OOD set",
            )
            for name in (3, None, ("a", 1), b"x", "", "a\nb", "nearood", "ninco", "id", "\ud800")
        ),
    ],
)
def test_other_pickle_is_an_error(tmp_path, change, message):
    scores = evaluator_scores()
    change(scores)
    with pytest.raises(ResultError, match=message):
        read_scores(save_scores(tmp_path / "s.pkl", scores))


def test_scores_of_an_unfinished_evaluation_are_those_that_are_there(tmp_path):
    scores = evaluator_scores()
    scores["ood"]["far"] = dict.fromkeys(SETS["far"])
    assert read_scores(save_scores(tmp_path / "s.pkl", scores))["ood"].far == {}
    scores["id"]["test"] = None
    assert read_scores(save_scores(tmp_path / "s.pkl", scores)) == {}


def test_pickles_of_numpy_1_are_read():
    data = pickle.dumps({"a": np.arange(3.0)}, 5).replace(
        b"\x13numpy._core.numeric", b"\x12numpy.core.numeric"
    )
    data = re.sub(rb"^(\x80.)\x95.{8}", rb"\1", data, flags=re.DOTALL)  # the length of the frame
    np.testing.assert_array_equal(NumbersUnpickler(io.BytesIO(data)).load()["a"], np.arange(3.0))


def test_tensors_are_read_as_arrays():
    whole = torch.arange(10)
    for tensor in (whole.reshape(2, 5), whole[3:7], torch.tensor([True, False]), torch.rand(3).double()):
        read = NumbersUnpickler(io.BytesIO(pickle.dumps(tensor, 5))).load()
        np.testing.assert_array_equal(read, tensor.numpy())


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda marker: Hostile(os.system, f"touch {marker}"), "system"),
        (lambda marker: Hostile(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (lambda marker: Hostile(np.save, str(marker), 1), "save"),
        (lambda marker: Hostile(getattr, np.ndarray, "tofile"), "getattr"),
        (lambda marker: Hostile(torch.load, str(marker)), "load"),
    ],
)
def test_hostile_pickle_executes_nothing(tmp_path, protocol, make, named):
    path = save_scores(tmp_path / RESNET50 / "scores" / "msp.pkl", [make(tmp_path / "marker")], protocol)
    with pytest.raises(ResultError, match=rf"msp\.pkl: not a score file .*{named}.*nothing was executed"):
        read_scores(path)
    assert command("report", tmp_path / RESNET50) == 2
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["msp.pkl"]


def test_hostile_tensor_executes_nothing(tmp_path):
    """A tensor's storage is bytes in which torch.load would find pickles of their own."""
    marker = tmp_path / "marker"
    storage = io.BytesIO()
    torch.save(Hostile(os.system, f"touch {marker}"), storage, _use_new_zipfile_serialization=False)

    class Tensor:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (storage.getvalue(),)

    with pytest.raises(ResultError, match="system"):
        read_scores(save_scores(tmp_path / "s.pkl", {**evaluator_scores(), "id_preds": Tensor()}))
    assert not marker.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cnumpy\nndarray.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"copenood_adascale.report.unpickling\nNumbersUnpickler\n.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\nndarray\n(I3\ntR.",
        b"cnumpy\ndtype\n}S'x'\nI1\nsb.",
        b"Pid\n.",
        # Python's own unpickler would allocate all places up to these.
        b"\x80\x02}r\xff\xff\xff\x7f.",
        b"\x80\x02}p2000000000\n.",
    ],
)
def test_pickle_by_the_back_door_is_an_error(tmp_path, payload):
    (tmp_path / "s.pkl").write_bytes(payload)
    with pytest.raises(ResultError, match=r"not a score file that can be read safely|not the scores of"):
        read_scores(tmp_path / "s.pkl")


# Paths.


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (f"{RESNET50}/ood/adascale.csv", ("imagenet", "resnet50", "AdaSCALE-A", "ood")),
        (f"{RESNET50}/fsood/adascale_l.csv", ("imagenet", "resnet50", "AdaSCALE-L", "fsood")),
        ("imagenet_regnet_tvsv1_base_default/ood/scale.csv", ("imagenet", "regnet-y-16gf", "SCALE", "ood")),
        ("imagenet_vit-b-16_tvsv1_base_default/ood/msp.csv", ("imagenet", "vit-b-16", "MSP", "ood")),
        (f"{CIFAR10}/s0/scores/adascale_logit.pkl", ("cifar10", "resnet18_32x32", "AdaSCALE-L", None)),
        (
            "imagenet200_resnet18_224x224_base_e90/ood/ash.csv",
            ("imagenet200", "resnet18_224x224", "ASH", "ood"),
        ),
        (
            "cifar10_resnet18_32x32_test_ood_ood_adascale_logit_my_mark/s0/ood/ood.csv",
            ("cifar10", "resnet18_32x32", "AdaSCALE-L", "ood"),
        ),
        (
            "cifar100_resnet18_32x32_test_ood_fsood_mls_0/ood.csv",
            ("cifar100", "resnet18_32x32", "MLS", "fsood"),
        ),
        ("ish/ood/adascale_a.csv", ("imagenet", "resnet50-ISH", "AdaSCALE-A", "ood")),
        ("imagenet_resnet50_ish_default/ood/react.csv", ("imagenet", "resnet50-ISH", "ReAct", "ood")),
        ("here/adascale_resnet50.csv", (None, "resnet50", "AdaSCALE-A", None)),
        ("here/adascale_logit_imagenet_vit_b_16.csv", ("imagenet", "vit-b-16", "AdaSCALE-L", None)),
        ("here/knn.csv", (None, None, None, None)),
        ("mine/fsood/adascale.csv", (None, None, "AdaSCALE-A", "fsood")),
        ("imagenet_project/results/mine/ood/msp.csv", (None, None, "MSP", "ood")),
        ("cifar10_mynet_base_default/s0/ood/msp.csv", ("cifar10", "mynet", "MSP", "ood")),
    ],
)
def test_path_says_dataset_network_method_and_scheme(tmp_path, path, expected):
    found = identify(tmp_path / path)
    assert (found.dataset, found.network, found.method, found.scheme) == expected
    assert found.training is None


def test_names_of_this_packages_methods_are_those_of_its_registry():
    for method in METHODS.values():
        assert LABELS[method.name] == method.label
        assert method_of(method.name) == (method.label, None, None)
    assert {canonical_set(name) for name in ("openimageo", "OpenImage-O")} == {"openimage_o"}


# Folders.


def test_folder_of_several_kinds_of_files_is_one_run_per_scheme(tmp_path):
    folder = tmp_path / RESNET50
    imagenet_csv(folder / "ood" / "msp.csv", flat(70))
    imagenet_csv(folder / "ood" / "knn.csv", flat(60))
    imagenet_csv(folder / "fsood" / "msp.csv", flat(50))
    save_scores(folder / "scores" / "adascale_a.pkl", evaluator_scores(csid=True))
    (folder / "evaluate.csv").write_text("a,b,c\n")
    ood, fsood = load(folder)
    assert [one.label for one in ood.methods] == ["KNN", "MSP", "AdaSCALE-A (OpenOOD)"]
    assert [one.label for one in fsood.methods] == ["MSP", "AdaSCALE-A (OpenOOD)"]
    assert (ood.id, ood.network, ood.near, ood.far) == ("imagenet", "resnet50", *SETS.values())
    method = ood.methods[2]
    assert 80 < method.value("nearood", "AUROC")[0] < 100
    assert method.value("nearood", "ACC")[0] == 75
    assert len(fsood.values(fsood.methods[1])["id"]) == 300


def test_scores_of_sets_that_no_table_has_are_left_out(tmp_path):
    table = flat(70).drop(index=["textures", "openimage_o"])
    imagenet_csv(tmp_path / "ood" / "msp.csv", table)
    save_scores(tmp_path / "scores" / "msp.pkl", evaluator_scores())
    (run,) = load(tmp_path)
    assert run.far == ("inaturalist",)
    assert list(run.values(run.methods[0])) == ["id", *SETS["near"], "inaturalist"]


def test_seeds_of_main_py_become_mean_and_standard_deviation(tmp_path):
    folder = tmp_path / "cifar10_resnet18_32x32_test_ood_ood_msp_default"
    for seed, value in enumerate((70, 72)):
        main_csv(folder / f"s{seed}" / "ood" / "ood.csv", flat(value))
    (run,) = load(folder)
    assert [one.label for one in run.methods] == ["MSP"]
    assert run.methods[0].value("nearood", "AUROC") == (71, 1)
    assert any("mean ± standard deviation over s0" in note for note in run.notes)


def test_unusable_files_are_left_out_and_named(tmp_path):
    imagenet_csv(tmp_path / "ood" / "msp.csv", flat(70))
    (tmp_path / "ood" / "bad.csv").write_text(HEADER + "x,1\n")
    (tmp_path / "ood" / "link.csv").symlink_to(tmp_path / "gone.csv")
    save_scores(tmp_path / "scores" / "evil.pkl", Hostile(print))
    (run,) = load(tmp_path)
    assert [one.name for one in run.methods] == ["msp"]
    for name in ("bad.csv, line 2", "link.csv", "evil.pkl"):
        assert any(name in note for note in run.notes)
    (tmp_path / "ood" / "msp.csv").unlink()
    with pytest.raises(ResultError, match=r"no results; expected run\.json.*left out: .*bad\.csv"):
        load(tmp_path)


def test_folder_of_several_runs_is_an_error(tmp_path):
    for name in (RESNET50, CIFAR10):
        imagenet_csv(tmp_path / name / "ood" / "msp.csv", flat(70))
    with pytest.raises(
        ResultError, match=r"several runs .cifar10 resnet18_32x32; imagenet resnet50.; expected"
    ):
        load(tmp_path)


def test_scores_that_do_not_fit_are_noted(tmp_path):
    imagenet_csv(tmp_path / "ood" / "msp.csv", flat(70))
    save_scores(tmp_path / "scores" / "msp.pkl", evaluator_scores())
    save_scores(tmp_path / "scores" / "ebo.pkl", evaluator_scores())
    shuffled = evaluator_scores()
    shuffled["id_labels"] = shuffled["id_labels"].flip(0)
    save_scores(tmp_path / "scores" / "scale.pkl", shuffled)
    fewer = evaluator_scores()
    fewer["id"]["test"] = [part[:50] for part in fewer["id"]["test"]]
    save_scores(tmp_path / "scores" / "lts.pkl", fewer)
    (run,) = load(tmp_path)
    notes = " ".join(run.notes)
    assert "MSP: AUROC in the table and of the saved scores differ by " in notes
    assert "images in different orders" in notes
    assert "LTS: scores left out; they are of other numbers of images" in notes
    assert [bool(run.values(one)) for one in run.methods] == [True, True, False, True]
