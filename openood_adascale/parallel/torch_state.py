"""Settings of torch that numbers depend on, and versions."""

from __future__ import annotations

import contextlib
import operator
import platform
from typing import Any

Flags = dict[str, Any]
_BACKEND_FLAGS = (  # an outer precision before the inner ones, which it would overwrite
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
    import torch

    from .. import __version__

    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "torch": torch.__version__,
        "openood_adascale": __version__,
    }


def arithmetic_flags() -> Flags:
    """Return torch's global settings that numbers depend on."""
    import torch

    flags: Flags = {
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
        "denormal": torch.tensor([1e-40], dtype=torch.float32).mul(1.0).item() == 0.0,
    }
    with contextlib.suppress(RuntimeError):  # set through fp32_precision only
        flags["matmul"] = torch.get_float32_matmul_precision()
    for name in _BACKEND_FLAGS:
        try:
            flags[name] = operator.attrgetter(name)(torch.backends)
        except (AttributeError, RuntimeError):  # torch is older, or the flag was set through fp32_precision
            continue
    return flags


def set_arithmetic_flags(flags: Flags) -> None:
    """Set torch's global settings to those of :func:`arithmetic_flags`."""
    import torch

    torch.use_deterministic_algorithms(flags["deterministic"], warn_only=flags["warn_only"])
    torch.set_default_dtype(flags["dtype"])
    torch.set_flush_denormal(flags["denormal"])
    present = arithmetic_flags()
    if "matmul" in flags and present.get("matmul") != flags["matmul"]:
        torch.set_float32_matmul_precision(flags["matmul"])
        present = arithmetic_flags()
    for name in _BACKEND_FLAGS:
        if name in flags and present.get(name) != flags[name]:
            owner, _, attribute = name.rpartition(".")
            setattr(
                operator.attrgetter(owner)(torch.backends) if owner else torch.backends,
                attribute,
                flags[name],
            )
            present = arithmetic_flags()
