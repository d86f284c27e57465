"""What ARCHITECTURE.md promises: a room knows only those above it, and nothing grows too large."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "openood_adascale"
# From the bottom up; a room may import those before it, and itself.
ROOMS = [
    "openood_adascale_autoload", "_version", "errors", "files", "memory", "equations", "metrics", "distributed", "evidence",
    "detectors", "evaluation", "published", "reporting", "integrations", "plugin", "demo", "cli", "__main__",
]  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imports(path):
    """The modules that a module imports, wherever in it, but for annotations' sake."""
    return set(_imports(path))


def _imports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in list(ast.walk(tree)):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    known = {name_of(module) for module in MODULES}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{module}.{alias.name}"
                yield full if full in known else module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def room(module):
    if module.startswith("openood_adascale_autoload"):
        return "openood_adascale_autoload"
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def ours(path):
    return {module for module in imports(path) if module.split(".")[0].startswith("openood_adascale")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_arrow_runs_upwards(path):
    own = room(name_of(path))
    if own is None:  # the package's __init__ gives names on demand
        return
    assert own in ROOMS
    for module in ours(path):
        other = room(module)
        if other is not None:
            assert ROOMS.index(other) <= ROOMS.index(own), f"{name_of(path)} imports {module}"


def test_no_circle():
    graph = {name_of(path): {m for m in ours(path) if m != name_of(path)} for path in MODULES}
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


@pytest.mark.parametrize("folder", ["openood_adascale", "tests", "benchmarks", "examples"])
def test_nothing_grows_too_large(folder):
    for path in (ROOT / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, f"{path.relative_to(ROOT)}: {len(text.splitlines())} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                first = node.body[0]
                documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                start = first.end_lineno if documented else node.lineno
                assert node.end_lineno - start <= 60, f"{path.relative_to(ROOT)}: {node.name}"


def test_no_shortcuts():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert "type: ignore" not in text, path
        assert not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))), path


def test_only_the_plugin_knows_openood():
    for path in MODULES:
        if room(name_of(path)) != "plugin":
            assert not any(module.split(".")[0] == "openood" for module in imports(path)), path


def test_only_the_integration_knows_pytorch_ood():
    for path in MODULES:
        if room(name_of(path)) != "integrations":
            assert not any(module.split(".")[0] == "pytorch_ood" for module in imports(path)), path


@pytest.mark.parametrize(
    "steps",
    [
        [  # what is absent after a later step was so after those before
            ("import openood_adascale", {"torch", "numpy", "openood", "pandas", "pytorch_ood"}),
            ("import openood_adascale.detectors.registry", {"torch", "pandas"}),
            ("import openood_adascale.cli", {"torch", "openood", "pandas", "sklearn", "matplotlib"}),
            (
                "from openood_adascale import AdaSCALE",
                {"openood", "pandas", "sklearn", "matplotlib", "scipy"},
            ),
            ("from openood_adascale import AdaSCALE, evaluate", {"openood", "pytorch_ood"}),
        ],
        [("import openood_adascale.reporting.report", {"torch", "openood"})],
    ],
    ids=["the package", "the report"],
)
def test_imports_bring_no_more_than_they_need(steps):
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
