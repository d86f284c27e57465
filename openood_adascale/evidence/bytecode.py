"""Python's compiled code: what it names, and a digest of what it does."""

from __future__ import annotations

import dis
import hashlib
import types
from functools import lru_cache
from typing import Any


@lru_cache(maxsize=4096)
def named_in(code: types.CodeType) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The globals and the attributes that a piece of code names, that of the functions, comprehensions and classes in it
    included."""
    names, attributes = set(), set()
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"):
            names.add(str(step.argval))
        elif step.opname.startswith(("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")):
            attributes.add(str(step.argval))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            inner, of_inner = named_in(constant)
            names |= {*inner}
            attributes |= {*of_inner}
    return tuple(sorted(names)), tuple(sorted(attributes))


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return digest_of(value)
    # The order of a set's members differs from process to process.
    return f"frozenset({sorted(map(repr, value))})" if isinstance(value, frozenset) else repr(value)


def digest_of(code: types.CodeType) -> str:
    """A digest of its instructions, constants and names, the same in every process."""
    constants = [_constant(constant) for constant in code.co_consts]
    return hashlib.blake2b(
        code.co_code + repr((constants, code.co_names, code.co_varnames, code.co_freevars)).encode(),
        digest_size=8,
    ).hexdigest()
