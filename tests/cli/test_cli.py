"""The command line in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from command_line import call

from openood_adascale import __version__


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


RESULT = ",FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\nssb_hard,60,70,1,1,1\nnearood,60,70,1,1,1\n"


def closed_early(arguments, cwd):
    """A command whose standard output nobody reads any more, as behind ``| head``."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
        )
    finally:
        os.close(writing)


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
@pytest.mark.parametrize(
    "command", [["configs"], ["presets"], ["compare", "."], ["report", "."], ["--help"], ["run", "--help"]]
)
def test_a_closed_output_ends_quietly(tmp_path, command, unbuffered):
    folder = tmp_path / "imagenet_resnet50_tvsv1_base_default"
    (folder / "ood").mkdir(parents=True)
    (folder / "ood" / "adascale.csv").write_text(RESULT)
    done = closed_early([*unbuffered, "-m", "openood_adascale", *command], folder)
    assert done.stderr == ""
    # As where SIGPIPE ends a program, and not compare's "1 outside"; argparse itself forgives a failed write.
    assert done.returncode == 141 or ("--help" in command and done.returncode == 0)


def test_a_script_meets_a_closed_output_as_under_python(tmp_path):
    for text in ("print('x')", "print('x' * 100_000)", "import sys; print('x'); sys.exit(4)"):
        (tmp_path / "script.py").write_text(text)
        python, run = (
            closed_early([*words, "script.py"], tmp_path) for words in ([], ["-m", "openood_adascale", "run"])
        )
        assert run.returncode == python.returncode
        assert run.stderr.splitlines()[-1] == python.stderr.splitlines()[-1]


def test_no_standard_output_at_all(tmp_path):
    """``>&-``: sys.stdout is None."""
    command = f"'{sys.executable}' -m openood_adascale configs >&-"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_output_without_these_letters(tmp_path):
    """A terminal or file whose encoding lacks ± and Greek."""
    folder = tmp_path / "imagenet_resnet50_tvsv1_base_default" / "ood"
    folder.mkdir(parents=True)
    (folder / "adascale.csv").write_text(RESULT)
    done = call("compare", folder, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 1
    assert "OUTSIDE" in done.stdout


@pytest.mark.parametrize("command", ["--version", "configs", "--help"])
def test_simple_commands_import_nothing_heavy(command):
    heavy = ("torch", "pandas", "sklearn", "matplotlib")
    script = (
        "import sys\n"
        "from openood_adascale.cli import main\n"
        "try:\n"
        f"    main([{command!r}])\n"
        "except SystemExit:\n"
        "    pass\n"
        f"print([name for name in {heavy} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize("command", [["report", "."], ["demo"]])
def test_without_matplotlib(tmp_path, command):
    """It is an extra: what draws says how to get it, at once."""
    (tmp_path / "ood").mkdir()
    (tmp_path / "ood" / "adascale.csv").write_text(RESULT)
    script = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"
        "from openood_adascale.cli import main\n"
        f"status = main({command!r})\n"
        "print(*sorted({'torch', 'sklearn'} & {*sys.modules}))\n"
        "raise SystemExit(status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: pictures need Matplotlib: pip install 'openood-adascale[plots]'\n"
    assert done.stdout == "\n"  # nothing that takes seconds to import
    assert [path.name for path in tmp_path.iterdir()] == ["ood"]
