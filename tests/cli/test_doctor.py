"""What ``openood-adascale doctor`` says of this machine."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import quick_process
import torch
from command_line import call

from openood_adascale import __version__
from openood_adascale.cli import doctor, main


def lines(text):
    return [(line[:14].strip(), line[15:]) for line in text.splitlines()]


@pytest.fixture
def without_openood(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)


def test_a_line_for_each_thing(without_openood, monkeypatch, capsys):
    monkeypatch.delenv("OPENOOD_ADASCALE_STORE", raising=False)
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "memory")
    assert main(["doctor"]) == 0
    told = lines(capsys.readouterr().out)
    assert ("environment", "OPENOOD_ADASCALE_DISABLE=memory") in told
    told = dict(reversed(told))
    assert told["package"].startswith(f"openood-adascale {__version__}, ")
    assert told["Python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert f"torch {torch.__version__.partition('+')[0]}" in told["needed"]
    assert f"numpy {np.__version__}" in told["needed"]
    assert "not found: it is neither here nor in a folder of sys.path; " in told["OpenOOD"]
    assert told["device"].startswith(f"cpu, {torch.get_num_threads()} threads; precision auto is ")
    assert "none on disk" in told["store"]


def test_what_does_not_work_is_the_exit_status(without_openood, monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE", str(tmp_path))
    assert main(["doctor"]) == 1
    assert dict(lines(capsys.readouterr().out))["store"].startswith("FAILS: store: ")
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE", "off")
    assert main(["doctor"]) == 0
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE", str(tmp_path / "new"))
    assert main(["doctor"]) == 0
    assert "not there yet" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def test_an_openood_that_cannot_be_imported(tmp_path):
    (tmp_path / "openood/evaluation_api").mkdir(parents=True)
    for name in ("openood/__init__.py", "openood/evaluation_api/__init__.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "openood/evaluation_api/postprocessor.py").write_text("raise ImportError('no json5')")
    done = call("doctor", cwd=tmp_path, check=False)
    assert done.returncode == 1
    found = [told for name, told in lines(done.stdout) if name == "OpenOOD"]
    assert found[0].startswith(str(tmp_path.resolve()))
    assert "FAILS to be imported: ImportError: no json5" in found[1]


@pytest.mark.parametrize("by", ["folder", "variable"])
def test_a_checkout_is_found_as_its_scripts_find_it(tmp_path, by):
    """By the command, too, which unlike ``python -m`` does not look into the folder that it is called in."""
    (tmp_path / "openood/evaluation_api").mkdir(parents=True)
    for name in ("__init__.py", "evaluation_api/__init__.py"):
        (tmp_path / "openood" / name).write_text("")
    (tmp_path / "openood/evaluation_api/postprocessor.py").write_text("postprocessors = {}")
    code = (
        "import sys; from openood_adascale.cli import main; before = [*sys.path]; status = main(['doctor'])"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/command").write_text(f"{code}; assert sys.path == before; sys.exit(status)")
    env = {
        **os.environ,
        "OPENOOD_ROOT": str(tmp_path) if by == "variable" else "",
        "OPENOOD_ADASCALE_DISABLE": "1",
    }
    env["PYTHONPATH"] = str(Path(__file__).parents[2])
    folder = tmp_path if by == "folder" else tmp_path / "bin"
    done = quick_process.run([tmp_path / "bin/command"], folder, env)
    assert done.returncode == 0, done.stderr
    told = [told for name, told in lines(done.stdout) if name == "OpenOOD"]
    assert told == [f"{tmp_path.resolve()}, no git checkout"]
