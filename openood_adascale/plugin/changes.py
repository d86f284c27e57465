"""Changes to what others own, which can be taken back."""

from __future__ import annotations

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

    def undo(self) -> None:
        """Put back what was there before, the last change first."""
        while self._log:
            owner, name, before, ours = self._log.pop()
            if _own(owner).get(name, _ABSENT) is ours:
                _put(owner, name, before)


def _own(owner: Any) -> Any:
    return owner if isinstance(owner, dict) else vars(owner)


def _put(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner.update({name: value}) if value is not _ABSENT else owner.pop(name)
    elif value is not _ABSENT:
        setattr(owner, name, value)
    else:
        delattr(owner, name)
