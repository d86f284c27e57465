"""Section ``postprocessor`` of OpenOOD's YAML files for this package's postprocessors, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ..detectors.registry import METHODS, Method
from ..detectors.search import candidates, parse_sweep
from ..detectors.settings import INFERENCE, Settings, read_yaml, section_of, warn_if_doubtful
from ..errors import SettingError
from ..features.statistics import FeatureRequest
from .import_hook import configs_root, packaged_yaml

OPENOODS_OWN = ("msp", "ebo", "scale")
"""Methods that OpenOOD has under the same names, and keeps."""
_SECTION = ("name", "APS_mode", "postprocessor_args", "postprocessor_sweep")


def postprocessor_methods() -> dict[str, Method]:
    """Return the method of each name in OpenOOD: the registry's, and presets ``<method>_<more>`` (packaged YAML files)."""
    methods = {name: method for name, method in METHODS.items() if name not in OPENOODS_OWN}
    found = dict(methods)
    for path in sorted((configs_root() / "postprocessors").glob("*.yml")):
        owners = [name for name in methods if path.stem.startswith(f"{name}_")]
        if path.stem not in methods and owners:
            found[path.stem] = methods[max(owners, key=len)]
    return found


@dataclass(frozen=True)
class Configuration:
    """Checked section ``postprocessor`` of a YAML file."""

    settings: Settings
    sweep: dict[str, list[Any]]
    """``{"<setting>_list": values}``; may be empty without a search."""
    aps_mode: bool
    """True if OpenOOD is to search."""

    @classmethod
    def parse(
        cls, method: Method, section: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
    ) -> Configuration:
        """Check a section of plain dicts.

        Args:
            method: The method.
            section: The section.
            overrides: Settings that replace the section's.

        Raises:
            SettingError: An unknown key, setting or sweep, a value out of range, or an empty sweep.
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
            {**args, **(overrides or {})}, "postprocessor_args", **method.defaults
        )
        swept = parse_sweep(settings_class, sweep) if sweep or aps_mode else {}
        found = cls(settings, {f"{name}_list": values for name, values in swept.items()}, aps_mode)
        if found.aps_mode:  # without a search the detector warns
            warn_if_doubtful(found.candidates())
        return found

    def candidates(self) -> list[Settings]:
        """Return the candidates of the search, or the settings without one."""
        return candidates(self.settings, self.sweep) if self.aps_mode else [self.settings]

    def request(self) -> FeatureRequest:
        """Return the feature request of all candidates."""
        return FeatureRequest.union(settings.request() for settings in self.candidates())

    def as_section(self) -> dict[str, Any]:
        """Return the section that :meth:`parse` reads, of plain numbers, texts and lists."""
        return {
            "APS_mode": self.aps_mode,
            "postprocessor_args": self.settings.as_dict(),
            "postprocessor_sweep": self.sweep,
        }


def default_section(method: Method) -> dict[str, Any]:
    """Return the section of a method without a YAML file: the detector's defaults and, if it has one, its sweep."""
    sweep = dict(method.detector.default_sweep)
    return {"APS_mode": bool(sweep), "postprocessor_args": {}, "postprocessor_sweep": sweep or None}


def present_section(config_root: str, name: str, method: Method) -> tuple[dict[str, Any], str]:
    """Return the section that OpenOOD would use now, and its file: the user's, the packaged one, or the defaults.

    Raises:
        SettingError: The file cannot be read, or has no such section.
    """
    users = Path(config_root) / "postprocessors" / f"{name}.yml"
    path = users if users.is_file() else packaged_yaml(name)
    if path is None:
        return default_section(method), "the defaults"
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        expected = f"a readable YAML file ({' '.join(str(error).split())})"
        raise SettingError("postprocessor", str(path), expected) from error
    section = content.get("postprocessor") if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise SettingError(str(path), content, "a YAML file with a section 'postprocessor'")
    return section, str(path)


def plain(value: Any) -> Any:
    """Return OpenOOD's ``Config`` (whose missing attributes read as None) as plain dicts."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def environment_overrides() -> dict[str, str]:
    """Return the inference settings in ``OPENOOD_ADASCALE_PRECISION``, ``…_MEMORY_FORMAT`` and ``…_FORWARD_BATCH_SIZE``."""
    given = {name: os.environ.get(f"OPENOOD_ADASCALE_{name.upper()}", "").strip() for name in INFERENCE}
    return {name: value for name, value in given.items() if value}
