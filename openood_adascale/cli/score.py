"""``openood-adascale score``: images scored with a detector from a file."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..files import replacing
from .options import add_network, add_reading
from .output import complain

if TYPE_CHECKING:
    from ..evaluation.scoring import Scored

COLUMNS = ("path", "prediction", "class", "score", "ood")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = (
        "Writes a CSV: path, predicted class, its name where it is known, score (larger is more in-distribution), and "
        "whether the image is out of distribution at the threshold that keeps --tpr of the validation images."
    )
    add = parser.add_argument
    add("detector", metavar="DETECTOR", help="a file of openood-adascale fit or detector.save")
    add("paths", metavar="PATH", nargs="+", help="images, folders of images, or lists of them (.txt, .csv)")
    add("-o", "--out", metavar="FILE.csv", help="where to; standard output without this")
    add(
        "--tpr",
        type=float,
        default=0.95,
        help="share of the validation images that is kept (default: %(default)s)",
    )
    add_network(parser)
    add_reading(parser)


def execute(options: argparse.Namespace) -> int:
    """Run it; 2 where an option, an image or a file cannot be used."""
    from ..evaluation.scoring import Scoring  # imports torch
    from ..evidence.sharing import using_store
    from ..plugin.process import keep_memory

    keep_memory()
    try:
        scoring = Scoring(options.detector, vars(options), complain)
        with using_store(options.store), _opened(options.out) as file:
            counted, found = _write(file, scoring.scored(options.paths, options.tpr))
    except BrokenPipeError:  # | head has seen enough
        raise
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        complain(f"openood-adascale score: {error}")
        return 2
    complain(
        f"{found} of {counted} images are out of distribution" + (f"; {options.out}" if options.out else "")
    )
    return 0


def _write(file: IO[str], rows: Iterable[Scored]) -> tuple[int, int]:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    counted = found = 0
    for row in rows:
        writer.writerow([row.path, row.prediction, row.name, repr(row.score), int(row.ood)])
        counted, found = counted + 1, found + row.ood
    return counted, found


@contextmanager
def _opened(path: str | None) -> Iterator[IO[str]]:
    """A file that is there only when it is whole; or standard output."""
    if path is None:
        yield sys.stdout
        return
    place = Path(path)
    # Names that are no text in UTF-8 are kept as they are.
    with (
        replacing(place) as beside,
        beside.open("x", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        yield file
