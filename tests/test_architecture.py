"""The package's layers, as the design has them: a package knows only those below it."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "openood_adascale"
MODULES = sorted(PACKAGE.rglob("*.py"))
# From the bottom up; a package may import those before it, and itself.
LAYERS = [
    "_version", "errors", "io", "memory", "functional", "metrics", "parallel", "features", "detectors", "data", "models",
    "evaluation", "published", "report", "integrations", "plugin", "demo", "cli", "__main__",
]  # fmt: skip


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


KNOWN = {name_of(path): path for path in MODULES}


@functools.cache
def imports(path):
    """Return the modules that a module imports, wherever in it, for annotations, too."""
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {full if (full := f"{module}.{alias.name}") in KNOWN else module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return frozenset(found)


def layer_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "openood_adascale" and len(parts) > 1 else None


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_imports_only_lower_layers(path):
    own = layer_of(name_of(path))
    if own is None:  # the package's __init__ gives names on demand
        return
    assert own in LAYERS
    for module in imports(path):
        other = layer_of(module)
        if other is not None:
            allowed = LAYERS[: LAYERS.index(own) + 1]
            assert other in allowed, f"{name_of(path)} imports {module}"


def test_no_modules_import_each_other():
    """No circle, imports for annotations included; the package's __init__ imports on demand."""
    graph = {
        name: imports(path) & set(KNOWN) - {name}
        for name, path in KNOWN.items()
        if name != "openood_adascale"
    }
    done, trail = set(), []

    def visit(module):
        assert module not in trail, f"a circle: {[*trail[trail.index(module) :], module]}"
        if module in done or module not in graph:
            return
        trail.append(module)
        for other in graph[module]:
            visit(other)
        trail.pop()
        done.add(module)

    for module in graph:
        visit(module)


def test_only_the_plugin_imports_openood():
    for name, path in KNOWN.items():
        if layer_of(name) != "plugin":
            assert not {m for m in imports(path) if m.split(".")[0] == "openood"}, name


def test_no_type_ignores_and_no_asserts():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "type: ignore" not in text, path
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), path


def test_only_the_integration_imports_pytorch_ood():
    for name, path in KNOWN.items():
        if layer_of(name) != "integrations":
            assert not {m for m in imports(path) if m.split(".")[0] == "pytorch_ood"}, name


def test_imports_load_no_more_than_they_need():
    steps = [  # what is absent after a later step was so after those before
        ("import openood_adascale", {"torch", "numpy", "openood", "pandas", "pytorch_ood"}),
        (
            "from openood_adascale import AdaSCALE",
            {"openood", "pandas", "sklearn", "matplotlib", "scipy", "ray"},
        ),
        ("from openood_adascale import evaluate", {"openood", "pytorch_ood", "matplotlib", "ray"}),
    ]
    there = "print(*sorted({m.split('.')[0] for m in sys.modules}))"
    code = "import sys\n" + "\n".join(f"{imported}\n{there}" for imported, _ in steps)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for (imported, absent), line in zip(steps, done.stdout.splitlines(), strict=True):
        assert not absent & set(line.split()), imported


def test_importing_the_package_changes_nothing():
    code = """
import sys, torch
def state():
    finders = [f for f in sys.meta_path if type(f).__module__.startswith("openood_adascale")]
    return finders, torch.Tensor.cuda, torch.nn.Module.cuda, torch.get_default_dtype(), torch.is_grad_enabled()
before = state()
import openood_adascale
from openood_adascale import AdaSCALE, Benchmark, evaluate
assert before == state() and not before[0], state()
"""
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
