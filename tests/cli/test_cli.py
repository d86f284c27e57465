"""The command line as a whole: help, missing options, output streams, imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import call

from openood_adascale import __version__
from openood_adascale.cli import COMMANDS
from openood_adascale.detectors.registry import METHODS

ROOT = Path(__file__).parents[2]


def start(arguments, cwd=None, **more):
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, check=False, text=True, env=environment, **more
    )


def test_version_and_configs_and_presets():
    assert call("--version").stdout.strip() == __version__
    folder, *files = call("configs").stdout.splitlines()
    assert {line.rpartition("/")[2] for line in files} >= {"adascale.yml", "adascale_logit.yml"}
    assert all(line.startswith(folder) for line in files)
    lines = call("presets").stdout.splitlines()
    assert len(lines) == 1 + 24
    assert any(line.split()[:4] == ["adascale_resnet50", "A", "imagenet", "resnet50"] for line in lines)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_defaults_an_example_and_80_columns(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pytest.importorskip("jinja2", reason="needs the extra plots")
    text = call(command, "--help").stdout
    assert max(map(len, text.splitlines())) <= 80
    assert f"openood-adascale {command}" in text[text.index("example") :]
    options = text[text.index("options:") : text.rindex("example")].split("\n  -")[1:]
    told = [option for option in options if "default:" not in option and "required" not in option]
    assert [option.split()[0] for option in told] == ["h,"]


@pytest.mark.parametrize("command", ["evaluate", "fit"])
def test_help_names_all_methods(command):
    words = call(command, "--help").stdout.replace(",", " ").replace(";", " ").split()
    assert {*METHODS} - {*words} == set()


def test_missing_required_options_are_named_together():
    for arguments, told in [
        (["fit"], "missing required options: --network, --val, --output"),
        (["fit", "--network", "a:b", "--val", "c"], "missing required option: --output"),
        (["evaluate"], "missing required options: --network, --id, --near or --far, --output"),
        (["evaluate", "--far", "a=b", "-o", "c"], "missing required options: --network, --id"),
        (["score"], "the following arguments are required: DETECTOR, PATH"),
    ]:
        done = call(*arguments, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert told in done.stderr
        assert done.stderr.endswith(f"(see openood-adascale {arguments[0]} --help)\n")


def test_errors_of_the_package_are_one_line(monkeypatch):
    from openood_adascale.cli import configs

    for kind in (ValueError, RuntimeError, OSError, ImportError, MemoryError, TypeError):

        def fail(options, kind=kind):
            raise kind("a\nb")

        monkeypatch.setattr(configs, "execute", fail)
        done = call("configs", check=False)
        assert (done.returncode, done.stderr) == (2, "openood-adascale configs: a b\n")
    worker = "Caught ValueError in DataLoader worker process 0.\nOriginal Traceback (most recent):\n  x\nValueError: bad"
    monkeypatch.setattr(configs, "execute", lambda options: (_ for _ in ()).throw(ValueError(worker)))
    assert call("configs", check=False).stderr == "openood-adascale configs: ValueError: bad\n"
    monkeypatch.setattr(configs, "execute", lambda options: {}["a bug"])
    with pytest.raises(KeyError):
        call("configs")


@pytest.mark.parametrize("command", [["configs"], ["--help"]])
def test_closed_output_ends_quietly(command):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = start(["-m", "openood_adascale", *command], stdout=writing, stderr=subprocess.PIPE)
    finally:
        os.close(writing)
    assert done.stderr == ""
    # As SIGPIPE ends a program; argparse itself forgives a failed write.
    assert done.returncode == 141 or ("--help" in command and done.returncode == 0)


def test_no_standard_output_at_all():
    done = start(
        ["-c", "import sys; sys.stdout = None; from openood_adascale.cli import main; main(['configs'])"],
        capture_output=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [["--version"], ["configs"], ["--help"], ["fit"], ["evaluate", "--help"]]
)
def test_simple_commands_import_nothing_heavy(arguments):
    heavy = ("torch", "pandas", "sklearn", "matplotlib")
    script = (
        "import sys\n"
        "from openood_adascale.cli import main\n"
        "try:\n"
        f"    main({arguments!r})\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print([name for name in {heavy} if name in sys.modules])\n"
    )
    done = start(["-c", script], capture_output=True)
    assert done.stdout.strip().splitlines()[-1] == "[]", done.stderr


def test_commands_have_a_file_each():
    files = {path.stem for path in (ROOT / "openood_adascale/cli").glob("*.py")}
    assert files == {*COMMANDS, "__init__", "options", "output"}
