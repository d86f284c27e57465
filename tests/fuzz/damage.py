"""What befalls a file: bytes flipped, cut off, doubled, exchanged, strange text put in, or something else in its place."""

from __future__ import annotations

import copy
import datetime
import math
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

TEXTS = (
    b"", b"\0", b"\n", b"\r", b'"', b"'", b",", b",,", b": ", b"- ", b"[", b"]", b"{", b"}", b"#", b"&a ", b"*a", b"!!int a",
    b"!!python/object/apply:os.mkdir [executed]", b"!!timestamp 2001-99-99", b"2001-99-99", b"0x_", b"<<: *a", b"nan",
    b"NaN", b"inf", b"-inf", b"-1", b"0", b"1e400", b"1e-400", b"101", b"9" * 400, b"9" * 5000, b"null", b"~", b"true",
    b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3\x28", b"\xed\xa0\x80", "é±".encode(), " ± 0.1".encode(), b"..", b"../../x", b"/",
    b"\\", b"%s", b"{0}", b"[" * 3000, b"{" * 2000, b"a" * 140000, b"\t", b"\x1b[31m", b"= \n", b"| \n", b"> \n", b"---\n",
    b"cos\nmkdir\n(S'executed'\ntR", b"\x8c\x02os\x8c\x05mkdir\x93\x8c\x08executed\x85R", b"c__builtin__\neval\n(S'1'\ntR",
    b"r\xff\xff\xff\x7f", b"p4000000000\n", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x96\xff\xff\xff\xff\x03\0\0\0",
    b"N.", b"\x80\x05", b"\x95\xff\xff\xff\xff\0\0\0\0", b"2", b"0", b"(", b"t", b"l.", b"d.", b"u", b"R", b"b", b"Q",
    b'{"label": 1}', b" {[]: 1}", b" {'label': 10000000000000000000000}", b" 99999999999999999999", b"nearood", b"farood",
    b"id", b"near", b"ood", b"path", b"label", b"auroc", b"percentile", b"k1_list: [1]", b"name:", b"postprocessor:",
)  # fmt: skip


def damaged(rng: random.Random, content: bytes, form: str = "") -> bytes:
    """Other content, by one way or some of them.

    Args:
        form: of what can be damaged in what it says, too: ``yml`` or ``pickle``.
    """
    if form and rng.random() < 0.6:
        return said_otherwise(rng, content, form)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        content = rng.choice(WAYS)(rng, content)
    return content


def _flipped(rng: random.Random, content: bytes) -> bytes:
    found = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if found:
            found[rng.randrange(len(found))] ^= rng.choice([1 << rng.randrange(8), rng.randint(1, 255)])
    return bytes(found)


def _cut(rng: random.Random, content: bytes) -> bytes:
    start, end = _part(rng, content)
    return rng.choice([content[:end], content[start:], content[:start] + content[end:], content[start:end]])


def _doubled(rng: random.Random, content: bytes) -> bytes:
    start, end = _part(rng, content)
    return content[:end] + content[start:end] * rng.choice([1, 1, 5]) + content[end:]


def _spliced(rng: random.Random, content: bytes) -> bytes:
    start, end = _part(rng, content)
    other, stop = _part(rng, content)
    return content[:start] + content[other:stop] + content[end:]


def _inserted(rng: random.Random, content: bytes) -> bytes:
    start, end = _part(rng, content)
    text = rng.choice(TEXTS) if rng.random() < 0.9 else rng.randbytes(rng.randint(1, 40))
    return content[:start] + text + content[rng.choice([start, min(end, start + len(text)), end]) :]


def _lines(rng: random.Random, content: bytes) -> bytes:
    lines = content.splitlines(keepends=True)
    if len(lines) < 2:
        return content
    one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
    ways: list[Callable[[], object]] = [
        lambda: lines.insert(one, lines[other]), lambda: lines.pop(one), lambda: rng.shuffle(lines),
        lambda: lines.__setitem__(one, lines[other]), lambda: lines.insert(one, lines.pop(other)),
    ]  # fmt: skip
    rng.choice(ways)()
    return b"".join(lines)


def _words(rng: random.Random, content: bytes) -> bytes:
    """One word or number in place of another, or a strange one."""
    separator = rng.choice([b",", b" ", b":", b"\n"])
    words = content.split(separator)
    words[rng.randrange(len(words))] = rng.choice([rng.choice(TEXTS), rng.choice(words)])
    return separator.join(words)


def _emptied(rng: random.Random, content: bytes) -> bytes:
    return rng.choice([b"", b"\n", b"\0" * len(content), content[:1], rng.randbytes(rng.randint(1, 200))])


def _part(rng: random.Random, content: bytes) -> tuple[int, int]:
    start = rng.randint(0, len(content))
    return start, min(
        len(content), start + rng.choice([1, 4, rng.randint(0, 60), rng.randint(0, len(content))])
    )


WAYS = (
    _flipped, _flipped, _flipped, _cut, _doubled, _spliced, _inserted, _inserted, _lines, _lines, _words, _words, _words,
    _words, _words, _emptied,
)  # fmt: skip
JUNK = (
    None, True, False, 0, 1, -1, 3, 1.5, math.nan, math.inf, 10**30, 2**63, 10**5000, "", " ", "x", "a" * 5000, "\ud800",
    "\0", "folders", "known", "unknown", "list.csv", "..", [], {}, [1], ["x"], [[]], {"a": 1}, {"images": "known"}, {1: 2},
    datetime.date(2001, 1, 1), b"x", "5", "80", [80, 85], [85, 80], ["a", "a"], "nan", [None],
)  # fmt: skip
ARRAYS = (
    np.arange(3), np.arange(200), np.array(1.0), np.zeros((2, 2)), np.array([]), np.full(200, np.nan), np.full(200, np.inf),
    np.array(["a"]), np.arange(200) > 5, torch.arange(3), torch.ones(200), torch.ones(2, 2), np.float64(3), (1, 2), {1, 2},
)  # fmt: skip


def said_otherwise(rng: random.Random, content: bytes, form: str) -> bytes:
    """The same as data, some of which is exchanged, taken away, put elsewhere or junk."""
    value: Any = yaml.safe_load(content) if form == "yml" else pickle.loads(content)
    for _ in range(rng.choice([1, 1, 2])):
        places = list(_places(value))
        if not places:
            break
        container, key = rng.choice(places)
        other, place = rng.choice(places)
        junk = rng.choice(JUNK if form == "yml" or rng.random() < 0.5 else ARRAYS)
        way = rng.choice(["junk", "junk", "junk", "taken", "doubled", "exchanged", "named"])
        if way == "junk":
            container[key] = junk
        elif way == "taken":
            del container[key]
        elif way == "doubled":
            container[key] = [container[key]] * 2
        elif way == "exchanged":
            container[key] = copy.deepcopy(other[place])
        elif isinstance(container, dict):
            container[rng.choice([one for one in JUNK if isinstance(one, str | int | float | None)])] = (
                container[key]
            )
    if form == "pickle":
        return pickle.dumps(value, rng.choice([2, 4, 5]))
    try:
        return yaml.safe_dump(value).encode("utf-8", "surrogatepass")
    except (yaml.YAMLError, ValueError):  # what no yml can say
        return content


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Everything in dicts and lists, by what it is in."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def put(rng: random.Random, path: Path, content: bytes, form: str = "", pipe: bool = False) -> None:
    """Damaged content in the place of a file; or something that is no file.

    Args:
        form: see :func:`damaged`.
        pipe: whether that can be a pipe, for which nobody is to wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draw = rng.random()
    if draw < 0.95 or os.name != "posix":
        path.write_bytes(damaged(rng, content, form))
    elif draw < 0.96:
        path.mkdir()
    elif draw < 0.97:
        path.symlink_to(path.name)  # to itself
    elif draw < 0.98:
        path.symlink_to("nowhere")
    elif draw < 0.99 and pipe:
        os.mkfifo(path)  # else nothing is there
