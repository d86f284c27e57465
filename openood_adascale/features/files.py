"""Tensors and a JSON document with a checksum in one safetensors file, written atomically; reading executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..io import replacing


def write_tensors(path: Path, key: str, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file beside its place and rename it.

    Args:
        path: The file.
        key: Name of the document in the file's metadata.
        content: The document.
        tensors: The tensors.

    Raises:
        OSError: The file cannot be written; the error names it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    document = {**content, "checksum": _checksum(content, tensors)}
    # A single key: safetensors writes several in no fixed order.
    written = save(tensors, {key: json.dumps(document, sort_keys=True)})
    with replacing(path) as beside:
        beside.write_bytes(written)


def read_tensors(path: Path, key: str) -> tuple[dict[str, Any], dict[str, Tensor], bool]:
    """Return the document, the tensors, mapped into memory, and True if both match the checksum.

    Raises:
        ValueError: The file is missing, damaged, or holds no document of this name.
    """
    try:
        if not path.is_file():  # reading a pipe would block
            raise ValueError("it is not a file" if path.exists() else "there is no such file")
        with safe_open(path, "pt") as file:
            content = json.loads((file.metadata() or {}).get(key, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a mapping)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError("it is another safetensors file")
    return content, tensors, content.pop("checksum", None) == _checksum(content, tensors)


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
