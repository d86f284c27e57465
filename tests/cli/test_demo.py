"""The demo, in a fresh process."""

from __future__ import annotations

import pandas as pd
import pytest
from command_line import call


@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path):
    done = call("demo", "--output", tmp_path / "out", "--quiet")
    assert done.stderr == ""
    summary = pd.read_csv(tmp_path / "out/summary.csv", index_col=0)
    assert list(summary.index)[:3] == ["MSP", "EBO", "SCALE"]
    assert {"AdaSCALE-A", "AdaSCALE-L"} <= set(summary.index)
    assert summary["near AUROC"].min() > 80
    assert (tmp_path / "out/demo.png").stat().st_size > 10_000
    table = pd.read_csv(tmp_path / "out/ood/adascale.csv", index_col=0)
    assert list(table.index) == [
        "digits_6_7",
        "digits_8_9",
        "nearood",
        "photo_china",
        "photo_flower",
        "farood",
    ]
    assert table["ACC"].min() > 95
    assert len(pd.read_csv(tmp_path / "out/search_adascale.csv")) == 36
    for name in summary.index:
        assert f"{name} (" in done.stdout
    call("report", tmp_path / "out")
    page = (tmp_path / "out/report/report.html").read_text(encoding="utf-8")
    assert "AdaSCALE-A" in page
