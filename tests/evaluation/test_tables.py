"""Tables in OpenOOD's format."""

import pandas as pd
import pytest

from openood_adascale.evaluation.tables import save_csv


def test_csv(tmp_path):
    tables = [
        pd.DataFrame([[10.0, 90.126], [20.0, 80.0]], index=["nearood", "farood"], columns=["FPR@95", "AUROC"])
    ]
    save_csv(tables[0], tmp_path / "ood/one.csv")
    assert (
        tmp_path / "ood/one.csv"
    ).read_text() == ",FPR@95,AUROC\nnearood,10.00,90.13\nfarood,20.00,80.00\n"
    save_csv([tables[0], tables[0] + 2], tmp_path / "ood/two.csv")
    text = (tmp_path / "ood/two.csv").read_text(encoding="utf-8")
    assert text == ",FPR@95,AUROC\nnearood,11.00 ± 1.00,91.13 ± 1.00\nfarood,21.00 ± 1.00,81.00 ± 1.00\n"


def test_runs_are_averaged_by_name(tmp_path):
    first = pd.DataFrame(
        [[10.0, 90.0], [20.0, 80.0], [15.0, 85.0]],
        index=["a", "b", "nearood"],
        columns=["FPR@95", "AUROC"],
    )
    other = first.loc[["b", "a", "nearood"], ["AUROC", "FPR@95"]]
    text = save_csv([first, other], tmp_path / "runs.csv")
    assert list(text["AUROC"]) == ["90.00 ± 0.00", "80.00 ± 0.00", "85.00 ± 0.00"]
    with pytest.raises(ValueError, match=r"tables: number 1 .*\['a', 'b'\]"):
        save_csv([first, first.loc[["a", "b"]]], tmp_path / "runs.csv")
    with pytest.raises(ValueError, match="tables: there are none"):
        save_csv([], tmp_path / "runs.csv")
