"""Under which names OpenOOD knows what this package has, and where the packaged yml files are. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from ..detectors.registry import METHODS, Method


def configs_root() -> Path:
    """The packaged configs, laid out as OpenOOD's: ``postprocessors/<name>.yml``."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def packaged_yml(name: str) -> Path | None:
    """The packaged yml of that name; None where there is none."""
    path = configs_root() / "postprocessors" / f"{name}.yml"
    return path if path.is_file() else None


def postprocessor_methods() -> dict[str, Method]:
    """The method behind each name in OpenOOD: the registry's, and a packaged yml's ``<method>_<more>``, a preset."""
    methods = {name: method for name, method in METHODS.items() if method.in_openood}
    found = dict(methods)
    for path in sorted((configs_root() / "postprocessors").glob("*.yml")):
        owners = [name for name in methods if path.stem.startswith(f"{name}_")]
        if path.stem not in methods and owners:
            found[path.stem] = methods[max(owners, key=len)]
    return found
