"""What a yml of OpenOOD's says of a postprocessor of this package, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..detectors.registry import Method
from ..detectors.search import candidates, parse_sweep
from ..detectors.settings import EXECUTION, Settings, read_yaml, section_of
from ..errors import SettingError
from ..evidence.plan import Plan
from .names import packaged_yml

_SECTION = ("name", "APS_mode", "postprocessor_args", "postprocessor_sweep")


@dataclass(frozen=True)
class Configuration:
    """A yml's section ``postprocessor``."""

    settings: Settings
    sweep: dict[str, list[Any]]
    """``{"<setting>_list": values}``; may be empty where there is no search."""
    aps_mode: bool
    """Whether OpenOOD is to search."""

    @classmethod
    def parse(
        cls, method: Method, section: Mapping[str, Any], overriding: Mapping[str, Any] | None = None
    ) -> Configuration:
        """Of a section as plain dicts, but for the settings that ``overriding`` has.

        Raises:
            SettingError: a key, setting or sweep unknown, out of range or empty.
        """
        for key in section_of("postprocessor", section):
            if key not in _SECTION:
                raise SettingError(f"postprocessor: {key}", section[key], "one of " + ", ".join(_SECTION))
        aps_mode = section.get("APS_mode", False)
        if not isinstance(aps_mode, bool):
            raise SettingError("APS_mode", aps_mode, "True or False")
        args = section_of("postprocessor_args", section.get("postprocessor_args"))
        sweep = section.get("postprocessor_sweep")
        settings_class = method.detector.settings_class
        settings = settings_class.from_mapping(
            {**args, **(overriding or {})}, "postprocessor_args", **method.defaults
        )
        swept = parse_sweep(settings_class, sweep) if sweep or aps_mode else {}
        found = cls(settings, {f"{name}_list": values for name, values in swept.items()}, aps_mode)
        any(candidate.warn_if_doubtful() for candidate in found.tried())  # once
        return found

    def tried(self) -> list[Settings]:
        """The candidates of the search, or the settings where there is none."""
        return candidates(self.settings, self.sweep) if self.aps_mode else [self.settings]

    def plan(self) -> Plan:
        """What all candidates together ask of an image."""
        return Plan.union(settings.plan() for settings in self.tried())

    def as_section(self) -> dict[str, Any]:
        """What :meth:`parse` reads: plain numbers, words and lists."""
        return {
            "APS_mode": self.aps_mode,
            "postprocessor_args": self.settings.as_dict(),
            "postprocessor_sweep": self.sweep,
        }


class YmlSource(NamedTuple):
    """What ``get_postprocessor`` was asked for."""

    config_root: str
    name: str
    id_data_name: str


class Today(NamedTuple):
    """A section as it stands today, and where."""

    section: dict[str, Any]
    where: str


def default_section(method: Method) -> dict[str, Any]:
    """The section of a method without any yml: the detector's defaults; where it has a sweep, it is searched."""
    sweep = dict(method.detector.default_sweep)
    return {"APS_mode": bool(sweep), "postprocessor_args": {}, "postprocessor_sweep": sweep or None}


def todays_section(source: YmlSource, method: Method) -> Today | None:
    """What OpenOOD would use today: the user's yml, else the packaged one, else the defaults; None where his
    folder is gone.

    Where the checkout has moved since, its folder is looked for beside the ``openood`` that is imported.

    Raises:
        SettingError: a yml that cannot be read, or without that section.
    """
    import openood

    named = Path(source.config_root)
    moved = Path(openood.__file__).resolve().parents[1] / "configs" if openood.__file__ else named
    root = next((root for root in (named, moved) if root.is_dir()), None)
    if root is None:
        return None
    users = root / "postprocessors" / f"{source.name}.yml"
    path = users if users.is_file() else packaged_yml(source.name)
    if path is None:
        return Today(default_section(method), "defaults")
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingError(
            "postprocessor", str(path), f"a yml that can be read ({' '.join(str(error).split())})"
        ) from error
    section = content.get("postprocessor") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise SettingError(str(path), content, "a yml with a section 'postprocessor'")
    return Today(section, str(path))


def plain(value: Any) -> Any:
    """OpenOOD's ``Config`` (whose missing attributes read as None) as plain dicts."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def from_environment() -> dict[str, str]:
    """Settings that environment variables give, for users who want to edit no file; they override a yml's."""
    given = {name: os.environ.get(f"OPENOOD_ADASCALE_{name.upper()}", "").strip() for name in EXECUTION}
    return {name: value for name, value in given.items() if value}
