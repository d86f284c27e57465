"""``openood-adascale doctor``: versions, devices, OpenOOD and the cache."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from openood_adascale import __version__
from openood_adascale.cli import doctor, main


def lines(text):
    return [(line[:14].strip(), line[15:]) for line in text.splitlines()]


@pytest.fixture
def without_openood(monkeypatch):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)


def test_doctor_prints_versions_devices_and_settings(without_openood, monkeypatch, capsys):
    monkeypatch.delenv("OPENOOD_ADASCALE_CACHE_DIR", raising=False)
    monkeypatch.setenv("OPENOOD_ADASCALE_DISABLE", "memory")
    assert main(["doctor"]) == 0
    told = lines(capsys.readouterr().out)
    assert ("environment", "OPENOOD_ADASCALE_DISABLE=memory") in told
    told = dict(reversed(told))
    assert told["package"].startswith(f"openood-adascale {__version__}, ")
    assert told["Python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert f"torch {torch.__version__.partition('+')[0]}" in told["needed"]
    assert f"numpy {np.__version__}" in told["needed"]
    assert "not found: neither here nor in sys.path; " in told["OpenOOD"]
    assert told["device"].startswith(f"cpu, {torch.get_num_threads()} threads; precision auto is ")
    assert told["cache"].startswith("none")


def test_unusable_cache_is_the_exit_status(without_openood, monkeypatch, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setenv("OPENOOD_ADASCALE_CACHE_DIR", str(tmp_path))
    assert main(["doctor"]) == 1
    assert dict(lines(capsys.readouterr().out))["cache"].startswith("FAILS: cache_dir: ")
    monkeypatch.setenv("OPENOOD_ADASCALE_CACHE_DIR", str(tmp_path / "new"))
    assert main(["doctor"]) == 0
    assert "not there yet" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


def start(arguments, folder, **more):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **more}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    return done, [told for name, told in lines(done.stdout) if name == "OpenOOD"]


def checkout(folder, content):
    (folder / "openood/evaluation_api").mkdir(parents=True)
    for name in ("__init__.py", "evaluation_api/__init__.py"):
        (folder / "openood" / name).write_text("")
    (folder / "openood/evaluation_api/postprocessor.py").write_text(content)


def test_openood_that_cannot_be_imported_is_the_exit_status(tmp_path):
    checkout(tmp_path, "raise ImportError('no json5')")
    done, found = start(["-m", "openood_adascale", "doctor"], tmp_path)
    assert done.returncode == 1
    assert found[0].startswith(str(tmp_path.resolve()))
    assert "FAILS to be imported: ImportError: no json5" in found[1]


@pytest.mark.parametrize("by", ["folder", "variable"])
def test_checkout_is_found_in_the_folder_or_by_openood_root(tmp_path, by):
    checkout(tmp_path, "postprocessors = {}")
    code = (
        "import sys; from openood_adascale.cli import main; before = [*sys.path]; status = main(['doctor'])"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/command").write_text(f"{code}; assert sys.path == before; sys.exit(status)")
    root = str(tmp_path) if by == "variable" else ""
    folder = tmp_path if by == "folder" else tmp_path / "bin"
    done, found = start([tmp_path / "bin/command"], folder, OPENOOD_ROOT=root, OPENOOD_ADASCALE_DISABLE="1")
    assert done.returncode == 0, done.stderr
    assert found == [f"{tmp_path.resolve()}, not a git checkout"]
