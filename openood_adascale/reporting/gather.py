"""From what a run left in its folder, or from results in memory, to a :class:`~.runs.Run`."""

from __future__ import annotations

import functools
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..errors import ResultError
from . import image_table
from .files import is_regular, not_regular
from .identify import Identity, identify
from .image_lists import ImageLists
from .names import LABELS, SCHEMES, label_of, method_of
from .runs import Evaluated, Run, mean_and_std, ranked, unknown
from .scores import Scores, finite, read_npz, read_pickle
from .searches import Search, read_pickled_search, read_search
from .tables import ResultTable, find_tables, read_table
from .text import shown

if TYPE_CHECKING:
    from ..evaluation.result import Result

_Read = TypeVar("_Read")


def from_results(
    results: Mapping[str, Result], title: str = "results", *, identity: Identity | None = None
) -> Run:
    """What ``evaluate`` found, with its scores and searches; full-spectrum results (``Result.scheme``) by themselves.

    >>> run = from_results({"msp": evaluate(MSP(network), benchmark)}, "my images")
    >>> [method.label for method in run.methods["ood"]]
    ['MSP']

    Args:
        results: by method: its name in the registry or OpenOOD, or any label. Where several names have one label (``msp``
            and ``MSP``), each stands beside it.
        title: of the report, where ``identity`` has no dataset and no network.
        identity: dataset, network and training, for the title and the leaderboard.

    Raises:
        ResultError: a result whose scheme is neither ``ood`` nor ``fsood``.
    """
    for name, result in results.items():
        if result.scheme not in SCHEMES:
            raise ResultError(f"{name}: scheme {result.scheme!r}; expected {' or '.join(SCHEMES)}")
    run = Run(title, identity or Identity(""))
    for scheme in SCHEMES:
        labels = _labels(name for name, result in results.items() if result.scheme == scheme)
        if labels:
            found = ranked(_in_memory(label, results[name]) for name, label in labels.items())
            run.methods[scheme] = found
            run.notes += _other_sets(found)
    # Of both schemes together: a report has one chapter of searches.
    searches = {name: result.search for name, result in results.items() if result.search is not None}
    for name, label in _labels(searches).items():
        search = Search.checked(searches[name], f"the search of {name}")
        run.searches[name if label == label_of(name) else label] = search
    return run


def _labels(names: Iterable[str]) -> dict[str, str]:
    """A label of its own for each name, which stands beside it where several have the same one."""
    labels = {name: label_of(name) for name in names}
    while len(counts := Counter(labels.values())) < len(labels):
        labels = {name: f"{label} [{name}]" if counts[label] > 1 else label for name, label in labels.items()}
    return labels


def _in_memory(label: str, result: Result) -> Evaluated:
    near, far = ({key: finite(result.scores[key]) for key in side} for side in (result.near, result.far))
    table = ResultTable(result.near, result.far, result.table, unknown(result.table))
    accuracy = table.value(next(iter(result.table.index)), "ACC")[0]
    scores = finite(result.scores["id"])
    classes = dict(enumerate(result.classes))
    return Evaluated(label, table, (Scores(scores, near, far, accuracy, result.images, classes),))


def collect(folder: str | Path, data_root: str | Path | None = None) -> Run:
    """Read every result CSV, saved score and search table below a folder; whatever is missing is left out.

    So is a file that is malformed, unreadable or unsafe to read; the notes say which and why. Raises
    :class:`~openood_adascale.errors.ResultError` if nothing is left, or if the folder holds runs of several datasets
    or networks.

    Args:
        folder: of the run.
        data_root: OpenOOD's data folder, whose image lists tell which images the saved scores are of. None takes that
            of the checkout in whose ``results`` the run lies.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ResultError(f"{folder}: no such folder; expected a run's folder")
    lists = ImageLists.beside(folder) if data_root is None else ImageLists(data_root)
    return _Gathering(folder, lists).everything()


class _Gathering:
    """What was found below a folder so far."""

    def __init__(self, folder: Path, lists: ImageLists | None) -> None:
        self.folder, self.lists = folder, lists
        self.notes: list[str] = []
        self.left_out: list[str] = []
        self.identities: list[Identity] = []
        # By scheme and label.
        self.tables: dict[str, dict[str, list[ResultTable]]] = defaultdict(lambda: defaultdict(list))
        self.scores: dict[str, dict[str, list[Scores]]] = defaultdict(lambda: defaultdict(list))
        self.searches: list[tuple[str, Path, Search]] = []

    def everything(self) -> Run:
        """Look for all that a report shows."""
        near, others = self._read_tables()
        self._read_scores(near)
        self._read_images(others)
        self._check_that_it_is_one_run()
        self._read_searches(others)
        if not (self.tables or self.scores or self.searches):
            why = "".join(f"; left out: {reason}" for reason in self.left_out)
            raise ResultError(
                f"{self.folder}: nothing to report; expected result CSVs (ood/, fsood/, ood.csv), saved scores "
                f"(scores/*.pkl, scores/*.npz, {image_table.NAME}) or search tables (search_*.csv){why}"
            )
        identity = next((found for found in self.identities if found.run), Identity(""))
        methods = {scheme: self._methods(scheme) for scheme in SCHEMES}
        notes = [*self.notes, *(f"left out: {reason}" for reason in self.left_out)]
        return Run(
            Path(os.path.abspath(self.folder)).name,
            identity,
            {scheme: found for scheme, found in methods.items() if found},
            _with_names_of_their_own(self.folder, self.searches),
            notes,
        )

    def _usable(self, read: Callable[[Path], _Read], path: Path) -> _Read | None:
        try:
            return read(path)
        except (ResultError, OSError) as error:
            self.left_out.append(str(error))
            return None

    def _files(self, pattern: str) -> Iterator[Path]:
        for path in sorted(self.folder.rglob(pattern)):
            if is_regular(path):
                yield path
            else:
                self.left_out.append(not_regular(path))

    def _read_tables(self) -> tuple[dict[Path, tuple[str, ...]], list[Path]]:
        """Returns each table's near OOD sets, and the CSVs that are no result tables."""
        near: dict[Path, tuple[str, ...]] = {}
        paths, others, no_files = find_tables(self.folder)
        self.left_out += no_files
        for path in paths:
            table = self._usable(read_table, path)
            if table is None:
                continue
            identity, near[path] = identify(path), table.near
            self.identities.append(identity)
            self.notes += [f"{path.relative_to(self.folder)}: {note}" for note in table.notes]
            self.tables[identity.scheme or "ood"][_label(identity)].append(table)
        return near, others

    def _read_scores(self, near: Mapping[Path, tuple[str, ...]]) -> None:
        for path in self._files("scores/*.pkl"):
            identity = identify(path)
            read = functools.partial(read_pickle, lists=self.lists, dataset=identity.dataset)
            loaded = self._usable(read, path)
            if loaded is None:
                continue
            self.identities.append(identity)
            for scheme, saved in loaded.items():
                self.scores[scheme][_label(identity)].append(saved)
        for path in sorted({path.parent for path in self.folder.rglob("scores/*.npz")}):
            beside = path.parent / "ood.csv"
            near_sets = near.get(beside, ())
            # All of a folder's or none: without one of its sets the averages would be others.
            of_main_py = self._usable(functools.partial(read_npz, near=near_sets), path)
            if of_main_py is None:
                continue
            identity = identify(beside)
            self.identities.append(identity)
            self.scores[identity.scheme or "ood"][_label(identity)].append(of_main_py)

    def _read_images(self, others: list[Path]) -> None:
        for path in others:
            if path.name != image_table.NAME or (read := self._usable(image_table.read, path)) is None:
                continue
            identity = identify(path)
            self.identities.append(identity)
            for name, saved in read.items():
                label = _label(replace(identity, stem=name, method=method_of(name)[0]))
                self.scores[identity.scheme or "ood"][label].append(saved)

    def _check_that_it_is_one_run(self) -> None:
        found = {f"{i.dataset} {i.network} {i.training or ''}".strip() for i in self.identities if i.run}
        if len(found) > 1:
            raise ResultError(
                f"{self.folder}: holds several runs ({'; '.join(sorted(found))}); expected the folder of one of them"
            )

    def _read_searches(self, others: list[Path]) -> None:
        for path in others:
            named = path.name.startswith("search_") or path.parent.name == "search"
            if named and (search := self._usable(read_search, path)) is not None:
                self.searches.append((shown(path.stem.removeprefix("search_")), path, search))
        for path in self._files("postprocessors/*.pkl"):
            if (search := self._usable(read_pickled_search, path)) is not None:
                self.searches.append((shown(path.stem), path, search))

    def _methods(self, scheme: str) -> list[Evaluated]:
        """Tables with the scores that belong to them, and scores alone."""
        methods = [one for label, group in self.tables[scheme].items() for one in self._merged(label, group)]
        places = {method.label: place for place, method in enumerate(methods)}
        for label, repeats in self.scores[scheme].items():
            computed = Evaluated.from_scores(label, repeats)
            if label in places:
                told = methods[places[label]]
                self._check_same(told, computed, scheme)
                methods[places[label]] = replace(told, scores=tuple(repeats))
            else:
                methods.append(computed)
        found = ranked(methods)
        self.notes += _other_sets(found)
        return found

    def _merged(self, label: str, group: list[ResultTable]) -> list[Evaluated]:
        """main.py writes one table per seed: their mean and standard deviation, as eval_ood.py computes them."""
        if len(group) == 1:
            return [Evaluated(label, group[0])]
        first, sources = group[0], [table.source for table in group if table.source]
        paths = [shown(str(path.parent.relative_to(self.folder))) for path in sources]
        if len(set(paths)) < len(paths):  # KNN.csv beside knn.csv
            paths = [shown(str(path.relative_to(self.folder).with_suffix(""))) for path in sources]
        same = all(list(table.mean.index) == list(first.mean.index) for table in group)
        if not same or any(path.name != "ood.csv" for path in sources):
            return [Evaluated(f"{label} [{where}]", table) for table, where in zip(group, paths, strict=True)]
        self.notes.append(f"{label}: mean ± standard deviation over {', '.join(paths)}")
        mean, std = mean_and_std([table.mean for table in group])
        return [Evaluated(label, replace(first, mean=mean, std=std))]

    def _check_same(self, told: Evaluated, computed: Evaluated, scheme: str) -> None:
        """OpenOOD reuses saved scores, and keeps old CSVs on ImageNet: the two can be of different runs."""
        for row in ("nearood", "farood"):
            table, saved = told.value(row, "AUROC")[0], computed.value(row, "AUROC")[0]
            if abs(table - saved) > 0.05:
                self.notes.append(
                    f"{told.label} ({scheme}): the table says {row} AUROC {table:.2f}, the saved scores give "
                    f"{saved:.2f}: one of the two is older"
                )


def _other_sets(methods: list[Evaluated]) -> list[str]:
    """Notes on what was evaluated on other OOD sets than the first."""
    return [
        f"{method.label} was evaluated on other OOD sets than {methods[0].label}: their averages are not comparable"
        for method in methods
        if (method.table.near, method.table.far) != (methods[0].table.near, methods[0].table.far)
    ]


def _with_names_of_their_own(folder: Path, searches: list[tuple[str, Path, Search]]) -> dict[str, Search]:
    """Searches by name; where several have one name, with the folder of each, or else its whole path."""

    def place_of(path: Path) -> str:
        parent = path.parent.relative_to(folder)
        return str(parent.parent if parent.name == "postprocessors" else parent)

    named = {}
    counts = Counter(name for name, _, _ in searches)
    places = Counter((name, place_of(path)) for name, path, _ in searches)
    for name, path, search in searches:
        place = place_of(path)
        where = place if places[name, place] == 1 else str(path.relative_to(folder))
        named[name if counts[name] == 1 else f"{name} [{shown(where)}]"] = search
    return named


def _label(identity: Identity) -> str:
    stem = shown(identity.stem)
    label = label_of(stem)
    known = label != stem or stem.lower() in LABELS
    return label if known or not identity.method else f"{identity.method} ({stem})"
