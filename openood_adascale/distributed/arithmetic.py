"""What of torch's global settings a network's numbers depend on; the same in all processes of a group."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import torch

Setting = tuple[Callable[[], Any], Callable[[Any], Any]]
"""How it is read and set."""


def _of(backend: Any, name: str) -> Setting:
    return partial(getattr, backend, name), partial(setattr, backend, name)


def _determinism() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _be_deterministic(told: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(told[0], warn_only=told[1])


def _has(backend: Any, name: str) -> bool:
    with suppress(AssertionError):  # which torch.backends.cuda.matmul raised before torch 2.4
        return hasattr(backend, name)
    return False


# torch's newer names of what float32_matmul_precision and allow_tf32 say; both say the same of one process.
_NEWER = {
    "fp32": torch.backends,
    "cuda.matmul": torch.backends.cuda.matmul,
    **{
        f"{backend}.{part}": getattr(getattr(torch.backends, backend), part, None)
        for backend in ("cudnn", "mkldnn")
        for part in ("conv", "rnn", "matmul")
    },
}
_SETTINGS: dict[str, Setting] = {
    "default_dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic": (_determinism, _be_deterministic),
    "mkldnn.enabled": _of(torch.backends.mkldnn, "enabled"),
    **{
        f"cudnn.{name}": _of(torch.backends.cudnn, name)
        for name in ("allow_tf32", "benchmark", "deterministic", "enabled")
    },
    **{
        f"{name}.fp32_precision": _of(part, "fp32_precision")
        for name, part in _NEWER.items()
        if _has(part, "fp32_precision")
    },
}


def arithmetic() -> dict[str, Any]:
    """As it is in this process."""
    return {name: value for name, (get, _) in _SETTINGS.items() if (value := _asked(get)) is not None}


def _asked(get: Callable[[], Any]) -> Any:
    try:
        return get()
    except (RuntimeError, AttributeError):  # of settings made by torch's older and newer names together
        return None


def take_over(settings: dict[str, Any]) -> None:
    """Have it in this process as another one has."""
    for name, told in settings.items():
        get, put = _SETTINGS[name]
        if _asked(get) != told:
            with suppress(RuntimeError):  # it was set by its other name already
                put(told)
