"""Versions and settings of torch that driver and workers must share."""

from __future__ import annotations

import contextlib
import operator
import platform
from typing import Any

import torch

# Of torch.backends; an outer precision stands before the inner ones, which it would overwrite.
_BACKEND_FLAGS = (
    "cudnn.enabled",
    "cudnn.benchmark",
    "cudnn.deterministic",
    "cudnn.allow_tf32",
    "mkldnn.enabled",
    "mkldnn.deterministic",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "fp32_precision",
    "cuda.matmul.fp32_precision",
    "cudnn.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "mkldnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.rnn.fp32_precision",
)


def versions() -> dict[str, str]:
    """Return the versions that driver and workers must share."""
    from .. import __version__

    python = ".".join(platform.python_version_tuple()[:2])
    return {"Python": python, "torch": torch.__version__, "openood_adascale": __version__}


def arithmetic_flags() -> dict[str, Any]:
    """Return torch's global settings that numbers depend on."""
    flags = {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
        "denormal": torch.tensor([1e-40], dtype=torch.float32).mul(1.0).item() == 0.0,
        "matmul": _matmul_precision(),
    }
    return {**flags, **{name: _backend_flag(name) for name in _BACKEND_FLAGS}}


def set_arithmetic_flags(flags: dict[str, Any]) -> None:
    """Set torch's global settings to those of :func:`arithmetic_flags`."""
    torch.use_deterministic_algorithms(flags["deterministic"], warn_only=flags["warn_only"])
    torch.set_default_dtype(flags["dtype"])
    torch.set_flush_denormal(flags["denormal"])
    if flags["matmul"] not in (None, _matmul_precision()):
        torch.set_float32_matmul_precision(flags["matmul"])
    for name in _BACKEND_FLAGS:
        if flags[name] not in (None, _backend_flag(name)):
            owner, _, attribute = f"backends.{name}".rpartition(".")
            setattr(operator.attrgetter(owner)(torch), attribute, flags[name])


def _matmul_precision() -> str | None:
    with contextlib.suppress(RuntimeError):  # set through fp32_precision
        return torch.get_float32_matmul_precision()
    return None


def _backend_flag(name: str) -> Any:
    """Return a flag of torch.backends (None if torch is older, or it was set through fp32_precision)."""
    with contextlib.suppress(AttributeError, RuntimeError):
        return operator.attrgetter(name)(torch.backends)
    return None
