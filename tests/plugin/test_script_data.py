"""A script that itself lists its ID data sets, as OpenOOD's eval_ood.py does, with data sets of one's own."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from own_data import description, write_images, write_yml

from openood_adascale.errors import SettingError
from openood_adascale.plugin import script_data
from openood_adascale.plugin.own_data import read
from openood_adascale.plugin.own_network import build_network
from openood_adascale.plugin.registration import OWN_NAMES
from openood_adascale.plugin.script import ready_to_run, run_script
from openood_adascale.plugin.script_data import asked_for, say_how_to_run

pytest.importorskip("PIL")

SCRIPT = '''
"""It lists what it takes."""
import argparse, sys
def inner(x: int): return later
parser = argparse.ArgumentParser()
parser.add_argument("--root", choices=["here"])
parser.add_argument("--id-data", type=str, default="cifar10", choices=["cifar10", "cub"])
args = parser.parse_args()
NUM_CLASSES = {"cifar10": 10}
MODEL = {
    "cifar10": None,
}
later = NUM_CLASSES[args.id_data], MODEL[args.id_data]
print(inner(0), __name__, __file__, __doc__, sys.argv, inner.__annotations__)
net = later[1] and later[1](num_classes=later[0])
print(type(net).__name__, sys.modules["__main__"].later is later)
if args.root: raise ValueError("line 19")
'''


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "eval_ood.py"
    path.write_text(SCRIPT)
    return path


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A data set whose network is in a file beside it; the plugin otherwise as it is."""
    write_images(tmp_path)
    (tmp_path / "own_net.py").write_text(
        "import torch\ndef build(num_classes):\n    net = torch.nn.Linear(2, num_classes)\n    return net, None\n"
        "def fixed(): return torch.nn.Identity()\ndef wrong(): return 3\ndef failing(**options): raise KeyError('x')\n"
    )
    own = read(write_yml(tmp_path / "mine.yml", {**description(), "network": "own_net.py:build"}))
    monkeypatch.setitem(OWN_NAMES._sets, "mine", own)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return own


@pytest.mark.parametrize("arguments", [["--id-data", "mine"], ["--id-data=mine"], ["--id-d", "mine"]])
def test_it_takes_ones_own(script, mine, capsys, arguments):
    before = sys.argv, list(sys.path), sys.modules["__main__"]
    run_script(script, arguments)
    assert (sys.argv, sys.path[: len(before[1])], sys.modules["__main__"]) == before
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("(3, <function")
    assert f"__main__ {script} It lists what it takes. {[str(script), *arguments]!r}" in first
    assert "{'x': <class 'int'>}" in first  # this package's own __future__ does not reach into it
    assert second == "Linear True"


def test_its_own_are_as_ever(script, mine, capsys):
    run_script(script, ["--id-data", "cifar10"])
    assert capsys.readouterr().out.startswith("(10, None) __main__")
    with pytest.raises(SystemExit):
        run_script(script, ["--id-data", "other"])
    assert "invalid choice: 'other' (choose from" in capsys.readouterr().err


def test_errors_name_its_lines(script, mine):
    with pytest.raises(ValueError, match="line 19") as error:
        run_script(script, ["--id-data", "mine", "--root", "here"])
    last = error.traceback[-1]
    assert (str(last.path), last.lineno + 1) == (
        str(script),
        SCRIPT.splitlines().index('if args.root: raise ValueError("line 19")') + 1,
    )


@pytest.mark.parametrize(
    ("old", "new", "lacking"),
    [
        ('choices=["cifar10", "cub"]', "", "--id-data is not there"),
        ("NUM_CLASSES = {", "COUNTS = NUM = {", "NUM_CLASSES is not there"),
        ("MODEL = {", "MODEL, OTHER = {", "MODEL is not there"),
    ],
)
def test_a_script_without_such_lists(script, mine, old, new, lacking):
    script.write_text(script.read_text().replace(old, new))
    with pytest.raises(SettingError, match=f"--id-data mine: script: .*{lacking}"):
        ready_to_run(script, ["--id-data", "mine"])


def test_a_network_is_needed(script, mine, tmp_path, monkeypatch):
    content = description()
    del content["network"]
    monkeypatch.setitem(OWN_NAMES._sets, "mine", read(write_yml(tmp_path / "mine.yml", content)))
    with pytest.raises(SettingError, match=r"mine.yml: network: None .* --id-data mine needs"):
        ready_to_run(script, ["--id-data", "mine"])


def test_what_is_asked_for():
    assert asked_for(["--root", "x", "--id-data", "mine", "--fsood"]) == "mine"
    assert asked_for(["--root=--id-data", "--id-data"]) is None
    assert asked_for(["--", "--i", "mine"]) is None
    assert asked_for([]) is None


def test_the_hint(monkeypatch, capsys):
    main = ModuleType("__main__")
    main.__file__ = "scripts/eval_ood.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    monkeypatch.setattr(sys, "argv", ["scripts/eval_ood.py", "--id-data", "mine"])
    monkeypatch.setattr(script_data, "say", lambda line: print(line))
    say_how_to_run(["other"])
    assert capsys.readouterr().out == ""
    say_how_to_run(["mine"])
    assert "python -m openood_adascale run scripts/eval_ood.py --id-data mine" in capsys.readouterr().out
    main.__file__ = "own.py"
    say_how_to_run(["mine"])
    assert capsys.readouterr().out == ""


# The network.


def test_networks_of_ones_own(mine, tmp_path):
    def build(name):
        return build_network(f"{tmp_path}/own_net.py:{name}", "mine.yml: network", 5)

    assert build("build").out_features == 5
    assert isinstance(build("fixed"), torch.nn.Identity)
    for name, told in (
        ("wrong", "it returned int"),
        ("failing", "raised KeyError: 'x'"),
        ("none", "a function that"),
    ):
        with pytest.raises(SettingError, match=f"^mine.yml: network: .*{told}"):
            build(name)


def test_networks_of_libraries():
    pytest.importorskip("torchvision")
    assert build_network("torchvision:resnet18", "", 7).fc.out_features == 7
    pytest.importorskip("timm")
    assert build_network("timm:resnet10t", "", 7).fc.out_features == 7
    with pytest.raises(SettingError, match=r"^mine.yml: network: 'torchvision:resnet1' .* resnet18"):
        build_network("torchvision:resnet1", "mine.yml: network", 7)
