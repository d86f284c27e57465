"""Images that show their own number, results on them, and the cards of a page: which image beside which words."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from openood_adascale.evaluation.per_image import PerImage
from openood_adascale.evaluation.result import Result
from openood_adascale.metrics import COLUMNS, ood_metrics

ACROSS, DOWN = 4, 3
"""Blocks, black or white: the bits of the number."""


def save_numbered(path: Path, number: int, block: int = 40) -> Path:
    """A picture of 4 × 3 blocks that tell a number below 4,096; with small blocks it is a small picture."""
    bits = [(number >> bit) & 1 for bit in range(ACROSS * DOWN)]
    pixels = 255 * np.array(bits, np.uint8).reshape(DOWN, ACROSS)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.repeat(block, 0).repeat(block, 1)).convert("RGB").save(path)
    return path


def number_in(content: bytes) -> int:
    """What :func:`save_numbered` wrote, from a copy of any size."""
    with Image.open(io.BytesIO(content)) as image:
        grey = np.asarray(image.convert("L"))
    found = 0
    for bit in range(ACROSS * DOWN):
        row, column = divmod(bit, ACROSS)
        centre = grey[int((row + 0.5) * grey.shape[0] / DOWN), int((column + 0.5) * grey.shape[1] / ACROSS)]
        found |= int(centre > 127) << bit
    return found


class Shown(NamedTuple):
    """A card of the page."""

    panel: str
    """What its panel is called."""
    row: str
    """What stands over its row."""
    number: int | None
    """That the picture shows; None without one."""
    lines: list[str]
    wrong: bool
    content: bytes


class Cards(HTMLParser):
    """Collects a page's cards."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cards: list[Shown] = []
        self._open: list[str] = []
        self._panel = self._row = self._text = ""
        self._card: dict | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag == "figure" and (attributes.get("class") or "").startswith("card"):
            self._card = {"wrong": "wrong" in attributes["class"], "content": b"", "lines": []}
        if tag in ("summary", "h4", "small", "figcaption", "br"):
            self._end_line()
        if tag == "img" and self._card is not None:
            assert attributes["src"].startswith(("data:image/jpeg;base64,", "data:image/png;base64,"))
            self._card["content"] = base64.b64decode(attributes["src"].partition(",")[2])

    def _end_line(self):
        if self._card is not None and self._text:
            self._card["lines"].append(self._text)
        self._text = ""

    def handle_data(self, data):
        self._text += data

    def handle_endtag(self, tag):
        if tag == "summary":
            self._panel, self._text = self._text, ""
        elif tag == "h4":
            self._row, self._text = self._text, ""
        elif tag == "small":
            self._end_line()
        elif tag == "figure" and self._card is not None:
            content = self._card["content"]
            self.cards.append(
                Shown(
                    self._panel,
                    self._row,
                    number_in(content) if content else None,
                    self._card["lines"],
                    self._card["wrong"],
                    content,
                )
            )
            self._card = None


SETS = {"id": 40, "near one": 30, "far": 25}
FIRST = dict(zip(SETS, (0, 1000, 2000), strict=True))  # the number of each set's first image
METHODS = ("adascale", "msp", "optfs", "adascale_logit")
NAMES = tuple(f"<class> {number}" for number in range(7))
LABELS = {"adascale": "AdaSCALE-A", "msp": "MSP", "optfs": "OptFS", "adascale_logit": "AdaSCALE-L"}


def save_all(folder: Path) -> Path:
    """Pictures that show their numbers; the far ones are small."""
    for key, count in SETS.items():
        for place in range(count):
            save_numbered(folder / key / f"{place}.png", FIRST[key] + place, 4 if key == "far" else 40)
    return folder


def results_of(folder, seed=0, methods=METHODS):
    rng = np.random.default_rng(seed)
    found = {}
    known = {
        key: PerImage(
            rng.integers(0, 7, count) if key == "id" else np.full(count, -1),
            rng.integers(0, 9, count),  # two classes have no name
            tuple(str(folder / key / f"{place}.png") for place in range(count)),
        )
        for key, count in SETS.items()
    }
    for quality, name in enumerate(methods):
        scores = {
            key: np.round(rng.normal(3 - quality / 2 if key == "id" else 0, 1.5, len(known[key])), 2)
            for key in SETS
        }
        rows = {key: ood_metrics(scores["id"], scores[key]) for key in SETS if key != "id"}
        rows = {
            "near one": rows["near one"],
            "nearood": rows["near one"],
            "far": rows["far"],
            "farood": rows["far"],
        }
        table = pd.DataFrame.from_dict(rows, orient="index").assign(ACC=50.0)[list(COLUMNS)]
        images = known
        if name.startswith("adascale"):
            images = {
                key: replace(each, percentiles=rng.uniform(60, 99, len(each))) for key, each in known.items()
            }
        found[name] = Result(table, scores, None, ("near one",), ("far",), "ood", images, NAMES)
    return found


def of_number(number):
    key = max((key for key in SETS if FIRST[key] <= number), key=FIRST.__getitem__)
    return key, number - FIRST[key]
