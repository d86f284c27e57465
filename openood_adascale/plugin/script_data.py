"""OpenOOD's ``eval_ood.py`` with data sets of one's own.

The script itself lists the ID data sets that it takes, the number of classes of each, and its network. The file is left as
it is; what is run has one's own beside those lists. Imports only the standard library until a network is built.
"""

from __future__ import annotations

import ast
import os
import shlex
import sys
from collections.abc import Callable, Container, Iterable
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import SettingError
from .process import say

if TYPE_CHECKING:
    from .own_data import OwnData

OPTION = "--id-data"
_PREFIX = "openood_adascale_"
_DICTS = {"NUM_CLASSES": f"{_PREFIX}classes", "MODEL": f"{_PREFIX}networks"}
"""The script's dicts by ID data set, and by which name what is added is known within it."""
_NAMES = f"{_PREFIX}names"


def asked_for(arguments: Iterable[str]) -> str | None:
    """The ID data set that a script's arguments choose."""
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if len(option) > 3 and OPTION.startswith(option):  # argparse takes beginnings, too
            return value if equals else next(words, None)
    return None


def say_how_to_run(names: Container[object]) -> None:
    """Where this process is OpenOOD's script and is asked for one of ``names``: it will refuse it, and what to do."""
    script = getattr(sys.modules.get("__main__"), "__file__", None) or ""
    name = asked_for(sys.argv[1:])
    if name in names and os.path.basename(script) == "eval_ood.py":
        command = f"python -m openood_adascale run {shlex.join(sys.argv)}"
        say(
            f"{OPTION} {name}: the script takes only those that it lists itself; have it take yours by {command}"
        )


def with_own_data(script: Path, own: OwnData) -> Callable[[], None]:
    """What runs a script of OpenOOD's as ``__main__``, with a data set of one's own among those that it lists.

    Raises:
        SettingError: the script has no such lists, or the data set names no network.
    """
    code = _compiled(script, own)
    added = {
        _NAMES: [own.name],
        _DICTS["NUM_CLASSES"]: {own.name: own.classes.count},
        _DICTS["MODEL"]: {own.name: _network_of(own)},
    }

    def run() -> None:
        module = ModuleType("__main__")
        vars(module).update(added, __file__=str(script), __cached__=None)
        before = sys.modules["__main__"]
        sys.modules["__main__"] = module
        try:
            exec(code, vars(module))
        finally:
            sys.modules["__main__"] = before

    return run


class _Lists(ast.NodeTransformer):
    """Adds to the lists; the rest of the script stays as it is, line by line."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if any(isinstance(value, ast.Constant) and value.value == OPTION for value in node.args):
            for keyword in node.keywords:
                if keyword.arg == "choices":
                    self.found.add(OPTION)
                    keyword.value = _read(f"[*X, *{_NAMES}]", keyword.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        target = node.targets[0]
        if isinstance(target, ast.Name) and target.id in _DICTS and isinstance(node.value, ast.Dict):
            self.found.add(target.id)
            node.value = _read(f"{{**X, **{_DICTS[target.id]}}}", node.value)
        return node


def _read(text: str, there: ast.expr) -> ast.expr:
    """An expression, with ``there`` in place of X."""

    class _Filled(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return there if node.id == "X" else node

    found = _Filled().visit(ast.parse(text, mode="eval").body)
    return ast.fix_missing_locations(ast.copy_location(found, there))


def _compiled(script: Path, own: OwnData) -> CodeType:
    lists = _Lists()
    tree = lists.visit(ast.parse(script.read_bytes(), str(script)))
    lacking = [name for name in (OPTION, *_DICTS) if name not in lists.found]
    if lacking:
        allowed = f"a script that lists its ID data sets as OpenOOD's eval_ood.py does; {', '.join(lacking)} is not there"
        raise SettingError(f"{OPTION} {own.name}: script", str(script), allowed)
    code: CodeType = compile(tree, str(script), "exec", dont_inherit=True)
    return code


def _network_of(own: OwnData) -> Callable[..., Any]:
    """What builds the network, as the script calls it: with ``num_classes=``.

    Raises:
        SettingError: the data set names none.
    """
    spec, place = own.network, f"{own.place}: network"
    if spec is None:
        raise SettingError(place, None, f"one, which {OPTION} {own.name} needs, such as ResNet18_32x32")

    def build(num_classes: int) -> Any:
        from .own_network import build_network

        return build_network(spec, place, num_classes)

    return build
