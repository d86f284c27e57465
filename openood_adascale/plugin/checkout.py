"""Where OpenOOD is: on Python's path, or in the checkout that ``OPENOOD_ROOT`` names."""

from __future__ import annotations

import importlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from ..errors import SettingError
from .process import VARIABLE as DISABLE
from .process import switched_off
from .registration import register

ROOT = "OPENOOD_ROOT"
_EVALUATOR = "openood.evaluation_api"


def evaluation_api(asked_by: str) -> ModuleType:
    """OpenOOD's module of that name, with this package registered; a checkout that ``OPENOOD_ROOT`` names stays on
    Python's path.

    Args:
        asked_by: what needs it, for errors.

    Raises:
        SettingError: it is not there, cannot be imported, or this package is not to take part.
    """
    if switched_off("register"):
        raise SettingError(DISABLE, os.environ[DISABLE], f"no 1 or register beside {asked_by}")
    root = os.environ.get(ROOT, "").strip()
    if root and "openood" not in sys.modules:
        place = Path(root).expanduser().resolve()
        if not (place / "openood" / "evaluation_api").is_dir():
            raise SettingError(ROOT, root, f"a checkout of OpenOOD, which {asked_by} needs")
        if str(place) not in sys.path:
            sys.path.insert(0, str(place))
            importlib.invalidate_caches()
    spec = find_spec("openood") if "openood" not in sys.modules else sys.modules["openood"].__spec__
    if spec is None or not any((Path(folder) / "evaluation_api").is_dir() for folder in _folders(spec)):
        told = f"{asked_by} needs OpenOOD: have {ROOT} name a checkout of it, or put one on Python's path"
        raise SettingError(ROOT, root or None, f"OpenOOD where 'import openood' finds it; {told}")
    register()
    try:
        return importlib.import_module(_EVALUATOR)
    except ImportError as error:
        allowed = f"OpenOOD with the packages that it imports, for {asked_by}: pip install 'openood-adascale[openood]'"
        raise SettingError(_EVALUATOR, str(error), allowed) from error


def _folders(spec: object) -> list[str]:
    return list(getattr(spec, "submodule_search_locations", None) or ())


def configs() -> Path:
    """The configs of the OpenOOD that was imported."""
    return Path(_folders(sys.modules["openood"].__spec__)[0]).parent / "configs"
