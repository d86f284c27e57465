"""The command line in fresh processes, the demo included."""

import subprocess
import sys

import pandas as pd
import pytest

from openood_adascale import __version__


def call(*arguments, cwd=None, check=True):
    return subprocess.run(
        [sys.executable, "-m", "openood_adascale", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=check,
    )


def test_version():
    assert call("--version").stdout.strip() == __version__


def test_configs_are_printed_and_there():
    folder, *files = call("configs").stdout.splitlines()
    assert {line.rpartition("/")[2] for line in files} >= {"adascale.yml", "adascale_logit.yml"}
    assert all(line.startswith(folder) for line in files)


def test_presets_are_listed():
    lines = call("presets").stdout.splitlines()
    assert len(lines) == 1 + 24
    assert any(line.split()[:4] == ["adascale_resnet50", "A", "imagenet", "resnet50"] for line in lines)


def test_folders_without_results_are_named(tmp_path):
    done = call("report", tmp_path, check=False)
    assert done.returncode == 2
    assert str(tmp_path) in done.stderr
    assert call("compare", tmp_path / "no.csv", check=False).returncode == 2


def test_run_is_as_if_python_ran_the_script(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/beside.py").write_text("VALUE = 7\n")
    (tmp_path / "folder/script.py").write_text(
        "import sys, beside\n"
        "if __name__ == '__main__':\n"
        "    print(sys.argv, beside.VALUE, 'openood_adascale' in sys.modules)\n"
        "    raise SystemExit(3)\n"
    )
    done = call("run", "folder/script.py", "--root", "x", "-h", cwd=tmp_path, check=False)
    assert done.stdout == "['folder/script.py', '--root', 'x', '-h'] 7 True\n"
    assert done.returncode == 3


def test_run_names_a_script_that_is_not_there():
    done = call("run", "nowhere.py", check=False)
    assert done.returncode == 2
    assert "'nowhere.py' is not a file" in done.stderr


@pytest.mark.filterwarnings("ignore")
def test_demo(tmp_path):
    done = call("demo", "--output", tmp_path / "out", "--quiet")
    assert done.stderr == ""
    summary = pd.read_csv(tmp_path / "out/summary.csv", index_col=0)
    assert list(summary.index)[:3] == ["MSP", "Energy", "SCALE"]
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
