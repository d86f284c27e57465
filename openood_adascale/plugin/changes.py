"""Changes to what others own, which can be taken back."""

from __future__ import annotations

import sys
from typing import Any

_ABSENT = object()


class Changes:
    """Attributes and dict items that were put in place; :meth:`undo` takes back those that are still ours."""

    def __init__(self) -> None:
        self._log: list[tuple[Any, str, Any, Any]] = []

    def __bool__(self) -> bool:
        return bool(self._log)

    def set(self, owner: Any, name: str, value: Any) -> None:
        """Set ``owner[name]`` of a dict, ``owner.name`` of a module or class."""
        self._log.append((owner, name, _own(owner).get(name, _ABSENT), value))
        _put(owner, name, value)

    def has(self, owner: Any, name: str) -> bool:
        """Whether it is what :meth:`set` has put there."""
        now = _own(owner).get(name, _ABSENT)
        return any(where is owner and key == name and ours is now for where, key, _, ours in self._log)

    def undo(self) -> None:
        """Put back what was there before, the last change first."""
        while self._log:
            owner, name, before, ours = self._log.pop()
            if _own(owner).get(name, _ABSENT) is ours:
                _put(owner, name, before)


def rebind(old: Any, new: Any) -> None:
    """Replace ``old`` by ``new`` where OpenOOD's modules, or the user's script, have imported it by name."""
    for name, module in list(sys.modules.items()):
        if name == "__main__" or name.partition(".")[0] == "openood":
            for key, value in list(getattr(module, "__dict__", {}).items()):
                if value is old:
                    setattr(module, key, new)


def _own(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner.update({name: value}) if value is not _ABSENT else owner.pop(name)
    elif value is not _ABSENT:
        setattr(owner, name, value)
    else:
        delattr(owner, name)
