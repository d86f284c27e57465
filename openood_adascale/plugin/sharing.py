"""OpenOOD's own ``inference`` on all processes of a group. Imports only the standard library until there is one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from .changes import Changes

_PREFIX = "openood.postprocessors."
_TEAM = "openood_adascale.distributed.team"


class SharedInference:
    """Has the ``inference`` of OpenOOD's postprocessors spread over the group that this process directs, if any."""

    def __init__(self) -> None:
        self._changes = Changes()

    def enter(self, module: ModuleType) -> None:
        """Take part in a module, which was just executed, if it has postprocessors. The caller holds the plugin's lock."""
        if not module.__name__.startswith(_PREFIX):
            return
        for kind in list(vars(module).values()):
            own = isinstance(kind, type) and kind.__module__ == module.__name__ and "inference" in vars(kind)
            if own and callable(vars(kind)["inference"]):
                self._changes.set(kind, "inference", _spread(vars(kind)["inference"]))

    def undo(self) -> None:
        """Take back everything that was put in place. The caller holds the plugin's lock."""
        self._changes.undo()


def _spread(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def inference(
        postprocessor: Any, net: Any, data_loader: Any, progress: bool = True, *rest: Any, **more: Any
    ) -> Any:
        team: Any = sys.modules.get(_TEAM)
        if team is None or rest or more or team.active_team() is None:
            return original(postprocessor, net, data_loader, progress, *rest, **more)
        from .shared_inference import infer

        return infer(original, postprocessor, net, data_loader, progress)

    return inference
