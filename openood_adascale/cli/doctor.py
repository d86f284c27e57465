"""``openood-adascale doctor``: print versions, devices and settings for a bug report."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .. import __version__
from ..errors import CacheError
from .options import describe

NEEDED = ("torch", "numpy", "pandas", "scikit-learn", "pyyaml", "safetensors", "tqdm")
OPTIONAL = (
    "torchvision",
    "timm",
    "transformers",
    "pillow",
    "matplotlib",
    "jinja2",
    "pyarrow",
    "pytorch-ood",
    "ray",
)
_PREFIX = "openood-adascale: "
_VARIABLES = ("OPENOOD_", "TORCH_DEVICE_BACKEND_AUTOLOAD", "MALLOC_", "GLIBC_TUNABLES", "OMP_NUM_THREADS")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options, of which there are none."""
    describe(
        parser,
        "Print versions, devices and their precision, the OpenOOD that is found and the changes that this package "
        "makes to it, and the size of the feature cache. Reads no image and changes nothing. Exit status: 0, 1 if "
        "something that is installed does not work.",
        "openood-adascale doctor",
    )


def execute(options: argparse.Namespace) -> int:
    """Print the lines; 1 if something that is installed does not work."""
    works = True
    for name, told in _lines():
        print(f"{name:<14} {told}")
        works = works and not told.startswith("FAILS")
    return 0 if works else 1


def _lines() -> Iterator[tuple[str, str]]:
    yield "package", f"openood-adascale {__version__}, {Path(__file__).parents[1]}"
    yield "Python", f"{platform.python_version()}, {platform.platform()}"
    yield "needed", ", ".join(map(_version, NEEDED))
    yield "optional", ", ".join(map(_version, OPTIONAL))
    said = io.StringIO()
    with contextlib.redirect_stderr(said):  # of the lines that importing OpenOOD prints, ours are shown below
        yield from _devices()
        yield from _openood()
    for line in said.getvalue().splitlines():
        if line.startswith(_PREFIX):
            yield "changed", line.removeprefix(_PREFIX)
    yield "cache", _cache()
    for name, value in sorted(os.environ.items()):
        if name.startswith(_VARIABLES):
            yield "environment", f"{name}={value}"


def _version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{name} not installed"


def _devices() -> Iterator[tuple[str, str]]:
    try:
        import torch

        from ..features.extractor import fastest_precision

        precision = fastest_precision(torch.device("cpu"))
        yield "device", f"cpu, {torch.get_num_threads()} threads; precision auto is {precision}"
        for number in range(torch.cuda.device_count()):
            found = torch.cuda.get_device_properties(number)
            precision = fastest_precision(torch.device("cuda", number))
            memory = f"{found.total_memory / 2**30:.0f} GiB"
            yield "device", f"cuda:{number}, {found.name}, {memory}; precision auto is {precision}"
    except Exception as error:
        yield "device", f"FAILS: {type(error).__name__}: {error}"


def _openood() -> Iterator[tuple[str, str]]:
    """Find OpenOOD as a script in this folder would, or by ``OPENOOD_ROOT``, as ``evaluate`` does."""
    before = list(sys.path)
    places = [os.getcwd(), os.path.expanduser(os.environ.get("OPENOOD_ROOT", "").strip())]
    sys.path[:0] = [place for place in places if place and os.path.isdir(f"{place}/openood/evaluation_api")]
    try:
        spec = importlib.util.find_spec("openood")
        if spec is None:
            hint = "run this in its checkout, or set OPENOOD_ROOT"
            yield "OpenOOD", f"not found: neither here nor in sys.path; {hint}"
            return
        package = spec.origin or next(iter(spec.submodule_search_locations or ["."]))
        root = Path(package).resolve().parent
        root = root.parent if root.name == "openood" else root
        yield "OpenOOD", f"{root}, {_commit(root)}"
        yield "postprocessors", _registered()
    except Exception as error:
        yield "OpenOOD", f"FAILS to be imported: {type(error).__name__}: {error}"
    finally:
        sys.path[:] = before


def _registered() -> str:
    from ..plugin.config import postprocessor_methods
    from ..plugin.import_hook import VARIABLE, switched_off
    from ..plugin.registration import register

    register()
    known = importlib.import_module("openood.evaluation_api.postprocessor").postprocessors
    importlib.import_module("openood.evaluation_api")
    ours = [name for name, method in postprocessor_methods().items() if name == method.name and name in known]
    if not ours:
        why = f"{VARIABLE}={os.environ[VARIABLE]}" if switched_off("register") else "see the lines below"
        return f"none of this package's is registered ({why})"
    return f"{len(known)} by name, of this package: {', '.join(ours)}"


def _commit(root: Path) -> str:
    git = ["git", "--no-optional-locks", "-C", str(root), "describe", "--always", "--dirty=, with changes"]
    try:
        done = subprocess.run(git, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "git is not installed"
    return "not a git checkout" if done.returncode else f"commit {done.stdout.strip()}"


def _cache() -> str:
    from ..features.cache import VARIABLE, FeatureCache, readable

    folder = os.environ.get(VARIABLE, "").strip()
    if not folder:
        return f"none (${VARIABLE} is not set)"
    if not Path(folder).exists():
        return f"{folder}: not there yet"
    try:
        entries = FeatureCache(folder, create=False).entries()
    except CacheError as error:
        return f"FAILS: {error}"
    return f"{folder}: {len(entries)} entries, {readable(sum(entry.size for entry in entries))}"
