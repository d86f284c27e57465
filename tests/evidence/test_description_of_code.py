"""What code consists of: functions, classes and modules of one's own by all that they name, a library's by their names."""

from __future__ import annotations

import importlib
import re
import sys
import types

import pytest
from torch import nn

from openood_adascale.evidence import description
from openood_adascale.evidence.description import described, described_classes


def made(code, name="thing", module="__main__"):
    """What a cell of a notebook makes, or a module of one's own."""
    cell = {"__name__": module}
    exec(code, cell)
    return cell[name]


class Point:
    def __init__(self, x):
        self.x = x


class Slotted:
    __slots__ = ("x",)


CODE = """
import torch
FACTOR = {factor}
def helper(x): return x * FACTOR
def unused(x): return {unused}
def thing(x, y={default}, *, z={keyword}):
    def inner(v): return helper(v) + {inner}
    return [inner(w) for w in x if w in {{1, 2, {member}}}]
thing.tag = {tag}
"""
GIVEN = {
    "factor": 2,
    "unused": 0,
    "default": 1,
    "keyword": 1,
    "inner": 1,
    "member": 3,
    "tag": 1,
}


@pytest.mark.parametrize("changed", sorted(GIVEN))
def test_functions_by_all_that_they_name(changed):
    one, again, other = (
        described(made(CODE.format(**given))) for given in (GIVEN, GIVEN, {**GIVEN, changed: 9})
    )
    assert one == again
    assert (one == other) == (changed == "unused")


def test_closures():
    def maker(value):
        def inner(x):
            return x + value

        return inner

    assert described(maker(1)) == described(maker(1)) != described(maker(2))

    def unfilled():
        def inner():
            return later

        text = described(inner)
        later = 1
        return text, described(inner)

    before, after = unfilled()
    assert before != after


CLASS = """
from functools import cached_property
class Base:
    size = {base}
class thing(Base):
    "{doc}"
    __slots__ = ("slot",)
    level: {annotation} = {level}
    def run(self): return {run}
    @classmethod
    def of(cls): return {of}
    @staticmethod
    def by(): return {by}
    @property
    def it(self): return {it}
    class Inner:
        depth = {depth}
"""
MEMBERS = dict.fromkeys(("base", "level", "run", "of", "by", "it", "depth", "doc"), 1) | {"annotation": "int"}


@pytest.mark.parametrize("changed", sorted(MEMBERS))
def test_classes_by_all_that_they_have(changed):
    change = "float" if changed == "annotation" else 9
    one, again, other = (
        described(made(CLASS.format(**given))) for given in (MEMBERS, MEMBERS, {**MEMBERS, changed: change})
    )
    assert one == again
    assert (one == other) == (changed in ("doc", "annotation"))


def test_the_class_of_an_object_that_a_function_makes():
    """Its code counts, though pickle names the function alone."""
    code = """
class thing:
    def __call__(self, x): return x + {}
    def __reduce__(self): return int, ("3",)
"""
    one, again, other = (described(made(code.format(step))()) for step in (1, 1, 2))
    assert one == again != other


def test_classes_in_their_order():
    assert described_classes([Point, Slotted]) != described_classes([Slotted, Point])
    assert described_classes([Point]) == described(Point)
    assert described_classes([Point, Point]) != described_classes([Point])


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """Modules of one's own, by their code."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def make(**codes):
        for name, code in codes.items():
            (tmp_path / f"{name}.py").write_text(code)
            sys.modules.pop(name, None)
            names.append(name)
        importlib.invalidate_caches()
        sys.dont_write_bytecode = True
        return [importlib.import_module(name) for name in codes]

    writes = sys.dont_write_bytecode
    yield make
    sys.dont_write_bytecode = writes
    for name in names:
        sys.modules.pop(name, None)


def test_what_code_takes_from_modules_of_ones_own(modules):
    """As far as it names it, modules of modules included; what it does not name may change."""
    user = "import of_mine_b\ndef thing(x): return of_mine_b.of_mine_a.far(x) + of_mine_b.NEAR"
    inner = "def far(x): return x * {0}\nOTHER = {1}"
    outer = "import of_mine_a\nNEAR = {0}\nOTHER = {1}"

    def text(*given):
        *_, used = modules(
            of_mine_a=inner.format(*given[:2]), of_mine_b=outer.format(*given[2:]), of_mine_c=user
        )
        return described(used.thing)

    one = text(1, 1, 1, 1)
    assert one == text(1, 1, 1, 1) == text(1, 9, 1, 9)
    assert len({one, text(9, 1, 1, 1), text(1, 1, 9, 1)}) == 3


def test_modules_that_name_each_other(modules):
    first = "import of_mine_b\ndef thing(x): return of_mine_b.thing(x)\nVALUE = 1"
    second = "import of_mine_a\ndef thing(x): return of_mine_a.VALUE + of_mine_a.thing(x)"
    one, _ = modules(of_mine_a=first, of_mine_b=second)
    text = described(one.thing)
    one.VALUE = 2
    assert described(one.thing) != text


def test_a_librarys_code_counts_by_its_name():
    """And this package's, which may be a checkout that somebody edits, by its file, too."""
    from openood_adascale import equations

    assert "openood_adascale" not in described(nn.functional.relu)
    module = types.ModuleType("torch.of_mine")
    text = described(nn.functional.relu)
    assert text.startswith("torch.nn.functional.relu;")
    assert described(module) == "torch.of_mine;"
    ours = described(equations.oodness)
    # Of this package's, name, code and file.
    assert re.match(r"openood_adascale\.equations\.oodness;[0-9a-f]{16};[0-9a-f]{16};", ours)
    of_class = described(nn.Linear)
    assert of_class.startswith("torch.nn.modules.linear.Linear;")
    assert "forward" not in of_class


@pytest.mark.parametrize(
    "library",
    ["torch", "torchvision", "timm", "PIL", "numpy", "cv2", "openood", "openood_adascale", "scipy", "skimage",
     "albumentations", "collections", "mine", "__main__"],
)  # fmt: skip
def test_known_libraries(library, monkeypatch):
    """Wherever they are installed, their code counts by its name, and what it names is not followed."""
    monkeypatch.setattr(description, "_is_installed", lambda top: False)
    one, other = (
        described(made(f"FACTOR = {factor}\ndef thing(x): return x * FACTOR", module=f"{library}.part"))
        for factor in (1, 2)
    )
    known = library not in ("mine", "__main__")
    assert (one == other) == known
    assert one.startswith(f"{library}.part.thing;") == known


def test_a_file_that_was_edited_is_another(modules, monkeypatch, tmp_path):
    """Of OpenOOD's checkout the file counts; of a known library it does not."""
    code = "def thing(x):\n    return x\n"
    for name, counts in (("openood", True), ("scipy", False)):
        module = types.ModuleType(name)
        module.__file__ = str(tmp_path / f"{name}_like.py")
        (tmp_path / f"{name}_like.py").write_text(code)
        exec(code, vars(module))
        monkeypatch.setitem(sys.modules, name, module)
        before = described(module.thing)
        assert before == described(module.thing)
        (tmp_path / f"{name}_like.py").write_text(code + "# more\n")
        assert (described(module.thing) != before) == counts
        (tmp_path / f"{name}_like.py").unlink()
        assert ("no file;" in described(module.thing)) == counts


@pytest.mark.parametrize("place", ["site-packages", "target/others-1.0.dist-info", "project/others.egg-info"])
@pytest.mark.parametrize("file", ["of_others.py", "of_others/__init__.py"])
def test_installed_packages_count_by_their_files(monkeypatch, tmp_path, place, file):
    """Also those of ``pip install --target``; what is installed as an editable checkout is somebody's own code."""
    (tmp_path / place).mkdir(parents=True)
    folder = tmp_path / place.partition("/")[0]
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("BIAS = 1\ndef thing(x): return x + BIAS\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "of_others", raising=False)
    module = importlib.import_module("of_others")
    text = described(module.thing)
    installed = "project" not in place
    assert text.startswith("of_others.thing;") == installed
    module.BIAS = 2  # of a library's code what it names is not followed
    assert (described(module.thing) == text) == installed
    (folder / file).write_text("BIAS = 1\ndef thing(x): return x + BIAS\n# edited\n")
    assert described(module.thing) != text
    monkeypatch.delitem(sys.modules, "of_others")


def test_what_was_put_into_a_librarys_class(monkeypatch):
    before = described(nn.Linear)
    monkeypatch.setattr(nn.Linear, "of_mine", lambda self: 1, raising=False)
    one = described(nn.Linear)
    monkeypatch.setattr(nn.Linear, "of_mine", lambda self: 2, raising=False)
    other = described(nn.Linear)
    assert len({before, one, other}) == 3
    monkeypatch.setattr(nn.Linear, "of_mine", 3, raising=False)  # no function, nothing that it does
    assert described(nn.Linear) == before
    shown = {"__name__": "openood_adascale.of_ours"}
    exec("def cuda(self): return 1", shown)
    monkeypatch.setattr(nn.Linear, "of_mine", shown["cuda"], raising=False)
    assert described(nn.Linear) == before
