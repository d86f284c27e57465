"""Stands for a module that pickles of an earlier version name; loading one ends in an error that says so.

While the plugin is registered, it is found under the earlier name (:mod:`~openood_adascale.plugin.registration`).
"""

from __future__ import annotations

MODULE = "openood_adascale.postprocessor"
"""Where the postprocessors were."""


class FormerPostprocessor:
    """What an earlier version pickled; nothing can be done with it."""

    def __setstate__(self, stored: object) -> None:
        raise RuntimeError(
            "pickle: made by another version of openood-adascale. Delete it (OpenOOD's scripts keep such files in "
            "results/<run>/s*/postprocessors/<name>.pkl) and run again"
        )


def __getattr__(name: str) -> type[FormerPostprocessor]:
    if not name.endswith("Postprocessor"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return FormerPostprocessor
