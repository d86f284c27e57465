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
from functools import partial
from pathlib import Path
from types import ModuleType

from .. import __version__
from ..errors import CacheError
from .options import describe

NEEDED = ("torch", "numpy", "pandas", "scikit-learn", "pyyaml", "safetensors", "tqdm")
OPTIONAL = ("torchvision", "timm", "pillow", "matplotlib", "pytorch-ood")
_PREFIX = "openood-adascale: "
ROOT = "OPENOOD_ROOT"
_OURS = (
    "OPENOOD_",
    "TORCH_DEVICE_BACKEND_AUTOLOAD",
    "MALLOC_",
    "GLIBC_TUNABLES",
    "OMP_NUM_THREADS",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options, of which there are none."""
    describe(
        parser,
        "Print versions, devices and their precision, the OpenOOD that is found and the changes that "
        "this package makes to it, and the size of the feature cache. Reads no image and changes "
        "nothing. Exit status: 0, 1 if something that is installed does not work.",
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
    yield "needed", ", ".join(f"{name} {_version(name) or 'not installed'}" for name in NEEDED)
    yield "optional", ", ".join(f"{name} {_version(name) or 'not installed'}" for name in OPTIONAL)
    said = io.StringIO()
    with contextlib.redirect_stderr(
        said
    ):  # of the lines that importing OpenOOD prints, this package's are shown below
        yield from _device()
        with _looking_here():
            yield from _openood()
    for line in said.getvalue().splitlines():
        if line.startswith(_PREFIX):
            yield "changed", line.removeprefix(_PREFIX)
    yield "cache", _cache()
    for name, value in sorted(os.environ.items()):
        if name.startswith(_OURS):
            yield "environment", f"{name}={value}"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _device() -> Iterator[tuple[str, str]]:
    try:
        import torch

        from ..features.extractor import fastest_precision

        kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        precision = {kind: fastest_precision(torch.device(kind)) for kind in kinds}
    except Exception as error:
        yield "device", f"FAILS: {type(error).__name__}: {error}"
        return
    yield "device", f"cpu, {torch.get_num_threads()} threads; precision auto is {precision['cpu']}"
    for number in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(number)
        yield (
            "device",
            (
                f"cuda:{number}, {found.name}, {found.total_memory / 2**30:.0f} GiB; precision auto is {precision['cuda']}"
            ),
        )


@contextlib.contextmanager
def _looking_here() -> Iterator[None]:
    """Find OpenOOD as a script in this folder would, or by ``OPENOOD_ROOT``, as ``evaluate`` does."""
    before = list(sys.path)
    for place in filter(None, [os.environ.get(ROOT, "").strip(), os.getcwd()]):
        if (Path(place).expanduser() / "openood" / "evaluation_api").is_dir():
            sys.path.insert(0, str(Path(place).expanduser().resolve()))
    try:
        yield
    finally:
        sys.path[:] = before


def _openood() -> Iterator[tuple[str, str]]:
    try:
        spec = importlib.util.find_spec("openood")
    except (ImportError, ValueError) as error:
        yield "OpenOOD", f"FAILS: {type(error).__name__}: {error}"
        return
    if spec is None:
        yield (
            "OpenOOD",
            "not found: neither here nor in sys.path; run this in its checkout, or set OPENOOD_ROOT",
        )
        return
    root = Path(spec.origin or next(iter(spec.submodule_search_locations or ["."]))).resolve().parent
    root = root.parent if root.name == "openood" else root
    yield "OpenOOD", f"{root}, {_commit(root)}"
    from ..plugin.registration import register

    register()
    try:
        module = importlib.import_module("openood.evaluation_api.postprocessor")
        importlib.import_module("openood.evaluation_api")
    except Exception as error:
        yield "OpenOOD", f"FAILS to be imported: {type(error).__name__}: {error}"
        return
    yield "postprocessors", _entered(module)


def _entered(module: ModuleType) -> str:
    from ..plugin.config import postprocessor_methods
    from ..plugin.import_hook import VARIABLE, switched_off

    ours = [name for name, method in postprocessor_methods().items() if name == method.name]
    entered = [name for name in ours if name in module.postprocessors]
    if not entered:
        why = f"{VARIABLE}={os.environ[VARIABLE]}" if switched_off("register") else "see the lines below"
        return f"none of this package's is registered ({why})"
    return f"{len(module.postprocessors)} by name, of this package: {', '.join(entered)}"


def _commit(root: Path) -> str:
    git = partial(subprocess.run, capture_output=True, text=True, timeout=20, check=False)
    place = ["git", "--no-optional-locks", "-C", str(root)]  # its index stays as it is
    try:
        done = git([*place, "log", "-1", "--format=%h of %cs"])
        changed = git([*place, "status", "--porcelain", "-uno"])
    except (OSError, subprocess.TimeoutExpired):
        return "git is not installed"
    if done.returncode:
        return "not a git checkout"
    return f"commit {done.stdout.strip()}" + (", with changes" if changed.stdout.strip() else ", untouched")


def _cache() -> str:
    from ..features.cache import VARIABLE, open_cache, readable

    folder = os.environ.get(VARIABLE, "").strip()
    if not folder:
        return f"none (${VARIABLE} is not set)"
    if not Path(folder).exists():
        return f"{folder}: not there yet"
    try:
        entries = open_cache(folder).entries()
    except CacheError as error:
        return f"FAILS: {error}"
    return f"{folder}: {len(entries)} entries, {readable(sum(entry.size for entry in entries))}"
