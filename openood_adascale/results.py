"""Read the result tables that OpenOOD writes, and tell from their paths what was evaluated.

Three formats, all in percent: ``eval_ood.py`` writes ``mean ± std`` over the runs s*,
``eval_ood_imagenet.py`` plain numbers (this package writes both), and ``main.py`` appends one block to its
``ood.csv`` on every run.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

METRICS = ("FPR@95", "AUROC", "AUPR_IN", "AUPR_OUT", "ACC")
SCHEMES = ("ood", "fsood")
DATASETS = ("imagenet200", "imagenet", "cifar100", "cifar10")  # a name before its own prefix

#: Published name of the method behind a postprocessor's name (OpenOOD's, and this package's).
METHODS = {
    "msp": "MSP",
    "mls": "MLS",
    "ebo": "EBO",
    "react": "ReAct",
    "ash": "ASH",
    "scale": "SCALE",
    "bfact": "BFAct",
    "lts": "LTS",
    "optfs": "OptFS",
    "adascale": "AdaSCALE-A",
    "adascale_logit": "AdaSCALE-L",
    "adascale_a": "AdaSCALE-A",
    "adascale_l": "AdaSCALE-L",
}

# Spellings of the published networks in folder and preset names, after `_words`.
_NETWORKS = {
    "resnet18_32x32": "resnet18_32x32",
    "resnet18_224x224": "resnet18_224x224",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "regnet": "regnet-y-16gf",
    "regnet_y_16gf": "regnet-y-16gf",
    "resnext50": "resnext50",
    "resnext50_32x4d": "resnext50",
    "densenet201": "densenet201",
    "efficientnet_v2_l": "efficientnetv2-l",
    "efficientnetv2_l": "efficientnetv2-l",
    "vit_b_16": "vit-b-16",
    "swin_b": "swin-b",
    "swin_t": "swin-t",
    "wrn_28_10": "wrn-28-10",
    "densenet_101": "densenet-101",
    "densenet101": "densenet-101",
}

# main.py's dataset files and the paper spell some OOD sets otherwise than eval_ood.py.
_SET_ALIASES = {"openimageo": "openimage_o", "imageneto": "imagenet_o", "place365": "places365"}

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_CELL = re.compile(rf"\s*({_NUMBER})\s*(?:±\s*({_NUMBER}|nan)\s*)?")
_MAIN_PY = re.compile(r"(?P<network>.+?)_test_(?:fs)?ood(?:_aps)?_(?P<scheme>fsood|ood)_(?P<tail>.+)")


class ResultError(ValueError):
    """A result file or a request that cannot be used; the message says which, where and what is expected."""


@dataclass(frozen=True)
class ResultTable:
    """One evaluation. ``mean`` and ``std``: rows are OOD sets and averages, columns METRICS, in percent."""

    path: Path
    kind: str
    near: tuple[str, ...]
    far: tuple[str, ...]
    mean: pd.DataFrame
    std: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass
class Identity:
    """What a path says was evaluated; None where it says nothing."""

    stem: str
    method: str | None = None
    dataset: str | None = None
    network: str | None = None
    scheme: str | None = None
    training: str | None = None  # how the network was trained, where that is not the published way
    run: str = ""
    notes: list[str] = field(default_factory=list)


def canonical_set(name: str) -> str:
    """One spelling per OOD set: ``openimageo`` and ``OpenImage-O`` are ``openimage_o``."""
    name = _words(name)
    return _SET_ALIASES.get(name.replace("_", ""), name)


def is_result_file(path: Path) -> bool:
    """Whether the first line is (or starts like) the header of one of OpenOOD's result tables."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        header = file.readline().strip().split(",")
    return header[1:3] == list(METRICS[:2])


def find_tables(folder: Path) -> tuple[list[Path], list[Path]]:
    """The result tables below a folder, and the other CSVs there. Copies in ``leaderboard/`` are left out."""
    found = sorted(p for p in folder.rglob("*.csv") if "leaderboard" not in p.relative_to(folder).parts)
    tables = [path for path in found if is_result_file(path)]
    return tables, [path for path in found if path not in tables]


def read_table(path: str | Path) -> ResultTable:
    """Read one of OpenOOD's result CSVs.

    Raises :class:`ResultError`, naming file, line and column, if the file is none of the known formats.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ResultError(f"{path}: cannot be read as a UTF-8 CSV file: {error}") from error
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    if header[1:] != list(METRICS) or header[0] not in ("", "dataset"):
        raise ResultError(
            f"{path}, line 1: the header is {','.join(header)!r}; expected ',{','.join(METRICS)}' "
            f"(eval_ood.py, eval_ood_imagenet.py) or 'dataset,{','.join(METRICS)}' (main.py)"
        )
    rows = [(number, *_parse(path, number, cells)) for number, cells in lines[1:]]
    spread = any(not math.isnan(value) for row in rows for value in row[3])
    if header[0] == "dataset":
        kind = "main.py"
        rows, notes = _last_run(path, rows)
    else:
        kind, notes = ("eval_ood.py, mean ± std over its runs" if spread else "a single run"), ()
    names = [row[1] for row in rows]
    for number, name, *_ in rows:
        if names.count(name) > 1:
            raise ResultError(f"{path}, line {number}: the row {name!r} is there {names.count(name)} times")
    near = tuple(names[: names.index("nearood")]) if "nearood" in names else ()
    rest = names[names.index("nearood") + 1 :] if "nearood" in names else names
    far = tuple(rest[: rest.index("farood")]) if "farood" in rest else ()
    if not near and not far:
        raise ResultError(
            f"{path}: the rows are {names}; expected near OOD sets, 'nearood', far OOD sets, 'farood'"
        )
    if rest and rest[-1] != "farood":
        raise ResultError(f"{path}, line {rows[-1][0]}: the last row is {rest[-1]!r}; expected 'farood'")
    mean = pd.DataFrame([row[2] for row in rows], index=names, columns=list(METRICS))
    std = pd.DataFrame([row[3] for row in rows], index=names, columns=list(METRICS))
    return ResultTable(path, kind, near, far, mean, std, notes)


def _parse(path: Path, number: int, cells: list[str]) -> tuple[str, list[float], list[float]]:
    if len(cells) != 1 + len(METRICS):
        raise ResultError(f"{path}, line {number}: {len(cells)} columns; expected {1 + len(METRICS)}")
    mean, std = [], []
    for column, cell in zip(METRICS, cells[1:], strict=True):
        match = _CELL.fullmatch(cell)
        unknown = column not in ("FPR@95", "AUROC") and re.fullmatch(r"(nan)?( ± nan)?", cell.strip())
        if not unknown and (match is None or not 0 <= float(match[1]) <= 100):
            raise ResultError(
                f"{path}, line {number}, column {column}: {cell!r}; "
                "expected a percentage from 0 to 100, such as '84.42' or '84.42 ± 0.33'"
            )
        mean.append(float(match[1]) if match else math.nan)
        std.append(float(match[2]) if match and match[2] else math.nan)
    return cells[0].strip(), mean, std


def _last_run(path: Path, rows: list) -> tuple[list, tuple[str, ...]]:
    """The last complete block of an appended ood.csv: from its final 'farood' back to a name seen already."""
    ends = [index for index, row in enumerate(rows) if row[1] == "farood"]
    start = end = ends[-1] if ends else -1
    seen: set[str] = set()
    while start >= 0 and rows[start][1] not in seen:
        seen.add(rows[start][1])
        start -= 1
    block = rows[start + 1 : end + 1]
    if "nearood" not in seen:
        raise ResultError(
            f"{path}: no complete run; expected rows of near OOD sets, 'nearood', far OOD sets, 'farood', "
            f"found {[row[1] for row in rows]}"
        )
    note = (
        f"{len(ends)} complete run(s) in this file: the last one (lines {block[0][0]}–{block[-1][0]}) is used"
    )
    if end + 1 < len(rows):
        note += f"; an unfinished run from line {rows[end + 1][0]} on is ignored"
    return block, (note,)


def read_search(path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """Read a search table: a row per candidate, with its settings and ``auroc``, in percent.

    Returns the best AUROC, rows p_min and columns p_max (percentiles), NaN where nothing was tried; and the
    names of what was searched beside them. The file has columns p_min and p_max, or one ``percentile`` that
    holds the pair (or one number, which is then both).
    """
    try:
        table = pd.read_csv(path)
    except ValueError as error:
        raise ResultError(f"{path}: not a search table: {error}") from error
    return arrange_search(table, path)


def arrange_search(table: pd.DataFrame, path: str | Path) -> tuple[pd.DataFrame, list[str]]:
    """What :func:`read_search` returns, of a table that comes from ``path``."""
    try:
        if "p_min" not in table and "percentile" in table:
            numbers = table["percentile"].astype(str).str.findall(r"(?<![\w.])\d+\.?\d*")
            table = table.drop(columns="percentile")
            table["p_min"], table["p_max"] = numbers.str[0].astype(float), numbers.str[-1].astype(float)
        table["auroc"] = pd.to_numeric(table["auroc"])
        auroc = table.pivot_table(index="p_min", columns="p_max", values="auroc", aggfunc="max")
    except (KeyError, ValueError) as error:
        raise ResultError(
            f"{path}: not a search table: {error}; expected columns p_min, p_max (or percentile) and auroc"
        ) from error
    if auroc.empty or not table["auroc"].between(0, 100).all():
        raise ResultError(f"{path}, column auroc: expected a percentage from 0 to 100 for every candidate")
    others = [str(name) for name in table if name not in ("p_min", "p_max", "auroc")]
    swept = [name for name in others if table[name].nunique() > 1]
    return auroc, swept


def identify(path: str | Path) -> Identity:
    """Tell dataset, network, method and scheme from a result file's path, as OpenOOD names its folders.

    For example ``results/imagenet_resnet50_tvsv1_base_default/ood/adascale.csv``,
    ``results/cifar10_resnet18_32x32_test_ood_ood_msp_default/s0/ood/ood.csv`` (main.py); and a preset such as
    ``adascale_resnet50.csv`` names its network itself.
    """
    path = Path(path).absolute()
    found = Identity(stem=path.stem)
    found.method, preset = method_of(path.stem)
    folders = list(reversed(path.parent.parts))
    found.scheme = next((name for name in folders if name in SCHEMES), None)
    for name in folders:
        words = _words(name)
        dataset, rest = _take(words, {key: key for key in DATASETS})
        if words == "ish":  # the authors' folder for ResNet-50 trained with ISH
            dataset, rest = "imagenet", "resnet50_ish"
        if dataset is None or not rest:
            continue
        found.dataset, found.run = dataset, name
        if main := _MAIN_PY.fullmatch(rest):
            found.network = _take(main["network"], _NETWORKS)[0] or main["network"]
            found.scheme = found.scheme or main["scheme"]
            found.stem, found.method, preset = _main_py_method(main["tail"].split("_"))
            found.notes.append("main.py's folder name does not say how the network was trained")
        else:
            _read_training(found, rest)
        break
    if preset and found.network is None:
        found.network, found.dataset = preset[1], found.dataset or preset[0]
    elif preset and preset[1] != found.network:
        found.notes.append(f"the preset {found.stem} is for {preset[1]}, the folder says {found.network}")
    return found


def _read_training(found: Identity, rest: str) -> None:
    found.network, rest = _take(rest, _NETWORKS)
    if found.network is None:
        found.network, _, rest = rest.partition("_")
    words = rest.split("_") if rest else []
    if words and (weights := re.fullmatch(r"tvsv(\d+)", words[0])):
        words.pop(0)
        if weights[1] != "1":
            found.training = f"torchvision weights V{weights[1]}"
    if found.network == "resnet50" and words[:1] == ["ish"]:
        found.network = "resnet50-ISH"
    elif words and words[0] != "base":
        found.training = words[0]


def _main_py_method(words: list[str]) -> tuple[str, str | None, tuple[str | None, str] | None]:
    """From <postprocessor>_<mark>, both of which may have underscores: the longest known name wins."""
    for count in range(len(words) - 1, 0, -1):
        stem = "_".join(words[:count])
        method, preset = method_of(stem)
        if method:
            return stem, method, preset
    return "_".join(words[:-1]) or words[0], None, None


def method_of(stem: str) -> tuple[str | None, tuple[str | None, str] | None]:
    """The published method that a postprocessor's name stands for, and a preset's (dataset, network)."""
    words = _words(stem)
    if words in METHODS:
        return METHODS[words], None
    for prefix in ("adascale_logit_", "adascale_"):
        rest = words.removeprefix(prefix)
        dataset = next((name for name in DATASETS if name in rest.split("_")), None)
        rest = rest.replace(dataset or "", "").replace("_", "")
        network = next((name for word, name in _NETWORKS.items() if word.replace("_", "") == rest), None)
        if words.startswith(prefix) and network:
            return METHODS[prefix[:-1]], (dataset, network)
    return None, None


def _words(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _take(words: str, names: dict[str, str]) -> tuple[str | None, str]:
    """Split the longest of ``names`` off the front of ``words``."""
    for name in sorted(names, key=len, reverse=True):
        if words == name or words.startswith(name + "_"):
            return names[name], words[len(name) + 1 :]
    return None, words
