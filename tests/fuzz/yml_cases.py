"""Damaged ymls and image lists, and what of a postprocessor was pickled: what their readers are to give."""

from __future__ import annotations

import copy
import os
import pickle
import random
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from fuzz import damage, files
from fuzz.settings_cases import usable
from fuzz.watch import require

from openood_adascale import cli
from openood_adascale.cli import evaluate as evaluate_command
from openood_adascale.detectors.registry import METHODS
from openood_adascale.evaluation.folders import check_listed, find_images
from openood_adascale.evaluation.own_images import evaluate_folders
from openood_adascale.evaluation.per_image import class_names_in
from openood_adascale.plugin import own_data, pickles
from openood_adascale.plugin.freshness import MadeFor
from openood_adascale.plugin.names import postprocessor_methods
from openood_adascale.plugin.yml import Configuration, YmlSource, todays_section


def _postprocessor_yml(rng: random.Random, folder: Path) -> None:
    name, content = rng.choice(list(files.ymls().items()))
    damage.put(rng, folder / "postprocessors" / f"{name}.yml", content, "yml")
    method = postprocessor_methods()[name]
    with _openood():
        today = todays_section(YmlSource(str(folder), name, "cifar10"), method)
    require(today is not None, "no section")
    if today is not None:
        found = Configuration.parse(method, today.section)
        require(Configuration.parse(method, found.as_section()) == found, "another section than was read")
        usable(found.settings)


@contextmanager
def _openood() -> Iterator[None]:
    """Stands for OpenOOD, whose place alone is asked for."""
    before = sys.modules.get("openood")
    sys.modules["openood"] = types.ModuleType("openood")
    sys.modules["openood"].__file__ = None
    try:
        yield
    finally:
        del sys.modules["openood"]
        if before is not None:
            sys.modules["openood"] = before


def _own_yml(rng: random.Random, folder: Path) -> None:
    files.lay_out(folder)
    (folder / "mine.yml").unlink()
    damage.put(rng, folder / "mine.yml", files.OWN, "yml")
    found = own_data.read(folder / "mine.yml")
    require(found.classes.count >= 2 and found.near and found.far and "test" in found.known, "too little")
    found.look()


def _own_list(rng: random.Random, folder: Path) -> None:
    files.lay_out(folder)
    name = rng.choice(["known.txt", "list.csv"])
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    damage.put(rng, folder / name, content)
    own_data.read(folder / "mine.yml").look()


def _config(rng: random.Random, folder: Path) -> None:
    files.lay_out(folder)
    damage.put(rng, folder / "evaluate.yml", files.CONFIG, "yml")
    options = cli._parse(["evaluate", "--config", str(folder / "evaluate.yml"), "--out", str(folder / "out")])
    with _inside(folder):
        chosen = evaluate_command.choices(options)
        evaluate_command._check_report(chosen)
        if chosen["workers"] in (None, 2):
            chosen["workers"] = 0  # no processes here
        found = evaluate_folders({**chosen, "quiet": True, "store": False}, lambda line: None, {})
    require(found.results, "no result")


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _remembered(rng: random.Random, folder: Path) -> None:
    """What a postprocessor remembers, once OpenOOD has unpickled it."""
    method = METHODS["adascale"]
    configured = Configuration.parse(method, {"APS_mode": True, "postprocessor_sweep": {"k1_list": [1, 2]}})
    right = pickles.Remembered(
        configured, configured.settings, torch.arange(5).double(), MadeFor("a", {"val": "b"}, {"k1": 1.0}), True, True,
        YmlSource("x", "adascale", "cifar10"), {(("k1", 1.0),): 80.0, (("k1", 2.0),): 81.0},
    )  # fmt: skip
    stored = pickle.loads(damage.said_otherwise(rng, pickle.dumps(pickles.dump(right)), "pickle"))
    found = pickles.load(copy.deepcopy(stored), method)
    usable(found.settings)
    require(isinstance(found.search, dict) and isinstance(found.setup_flag, bool), "other kinds")


def _list(rng: random.Random, folder: Path) -> None:
    files.lay_out(folder)
    content = rng.choice([(".txt", files.LIST), (".csv", files.CSV)])
    place = folder / "known" / f"damaged{content[0]}"
    damage.put(rng, place, content[1])
    if rng.random() < 0.3:
        found = find_images(folder / "unknown", place)
    else:
        found = find_images(place, None, folder if content[0] == ".csv" else None)
    check_listed(found)
    require(len(found.paths) == len(found.labels) > 0, "no images")
    require(
        all(isinstance(label, int) and -(2**63) <= label < 2**63 for label in found.labels),
        f"labels {found.labels}",
    )


def _class_names(rng: random.Random, folder: Path) -> None:
    damage.put(rng, folder / "classes.txt", files.CLASSES)
    require(all(class_names_in(folder / "classes.txt")), "a class without a name")


READERS = (_postprocessor_yml, _own_yml, _own_list, _config, _remembered, _list, _class_names)
