"""Damaged files: a reader gives what the right file gives, or another right thing, or one clear error."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from fuzz import damage, files, yml_cases
from fuzz.watch import require

from openood_adascale.detectors import file as detector_file
from openood_adascale.detectors.adascale import AdaSCALE
from openood_adascale.errors import StoreError
from openood_adascale.evaluation.images import read_image
from openood_adascale.evaluation.weights import fill, read_state_dict
from openood_adascale.evidence.disk import open_store
from openood_adascale.evidence.sharing import using_store
from openood_adascale.reporting import gather, image_table
from openood_adascale.reporting.scores import Scores, read_npz, read_pickle
from openood_adascale.reporting.searches import Search, read_pickled_search, read_search
from openood_adascale.reporting.tables import ResultTable, read_table

RUN = "imagenet_resnet50_tvsv1_base_default"


def case(rng: random.Random, folder: Path) -> str:
    """A file of some kind, damaged, and read."""
    reader = rng.choice(READERS)
    reader(rng, folder)
    return f"{reader.__name__.strip('_')} read"


# Reports


def _table(rng: random.Random, folder: Path) -> None:
    name, content = rng.choice(list(files.tables().items()))
    damage.put(rng, folder / name, content)
    _right_table(read_table(folder / name))


def _right_table(table: ResultTable) -> None:
    require(len(table.near) + len(table.far) > 0, "a table without sets")
    for values in (table.mean.to_numpy(), table.std.to_numpy()):
        require(((values >= 0) & (values <= 100) | np.isnan(values)).all(), f"{values} are no percentages")
    known = table.mean.loc[[*table.near, *table.far], ["FPR@95", "AUROC"]].notna()
    require(known.all(axis=None), "unknown FPR@95 or AUROC")


def _search(rng: random.Random, folder: Path) -> None:
    damage.put(rng, folder / "search_a.csv", files.search())
    _right_search(read_search(folder / "search_a.csv"))


def _right_search(search: Search) -> None:
    require(search.candidates["auroc"].between(0, 100).all(), "no AUROC")
    require(isinstance(search.searched(), list), "settings")
    found = search.percentile_map()
    require(found is None or isinstance(found, pd.DataFrame), "a map")


def _images(rng: random.Random, folder: Path) -> None:
    damage.put(rng, folder / "images.csv", files.image_table())
    for scores in image_table.read(folder / "images.csv").values():
        _right_scores(scores)


def _right_scores(scores: Scores) -> None:
    for name, conf in (("id", scores.id), *scores.near.items(), *scores.far.items()):
        require(conf.dtype == np.float64 and conf.ndim == 1 and np.isfinite(conf).all(), f"{name}: {conf}")
        require(len(conf) > 0 or name != "id", "no images")
        known = scores.images.get(name)
        require(
            known is None or len(known) == len(conf) == len(known.predictions),
            f"{name}: as many images as scores",
        )
    require(scores.accuracy is None or 0 <= scores.accuracy <= 100, f"accuracy {scores.accuracy}")


def _scores(rng: random.Random, folder: Path) -> None:
    place = folder / RUN / "scores" / "msp.pkl"
    damage.put(rng, place, files.scores(rng.choice(files.PROTOCOLS)), "pickle")
    for scores in read_pickle(place).values():
        _right_scores(scores)


def _npz(rng: random.Random, folder: Path) -> None:
    (folder / "tin.npz").write_bytes(files.npz(ood=True))
    damage.put(rng, folder / "id.npz", files.npz())
    found = read_npz(folder, ("id",))
    if found is not None:
        _right_scores(found)


def _postprocessor(rng: random.Random, folder: Path) -> None:
    damage.put(rng, folder / "adascale.pkl", files.postprocessor())
    found = read_pickled_search(folder / "adascale.pkl")
    if found is not None:
        _right_search(found)


def _run(rng: random.Random, folder: Path) -> None:
    """A whole folder of a run, one of whose files is damaged: the others are shown."""
    run = folder / RUN
    contents = {
        "ood/msp.csv": files.tables()["one.csv"], "search_a.csv": files.search(), "images.csv": files.image_table(),
        "s0/scores/msp.pkl": files.scores(4), "s0/postprocessors/adascale.pkl": files.postprocessor(),
        "s1/ood.csv": files.tables()["ood.csv"], "s1/scores/id.npz": files.npz(), "s1/scores/tin.npz": files.npz(ood=True),
    }  # fmt: skip
    chosen = rng.choice(list(contents))
    for name, content in contents.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        if name != chosen:
            (run / name).write_bytes(content)
    damage.put(rng, run / chosen, contents[chosen], pipe=True)
    found = gather.collect(run)
    require(
        sum(map(len, found.methods.values())) >= 2, f"of seven files one is damaged, {chosen}: {found.notes}"
    )
    for methods in found.methods.values():
        for method in methods:
            _right_table(method.table)


# Images and networks


def _picture(rng: random.Random, folder: Path) -> None:
    name, content = rng.choice(list(files.pictures().items()))
    damage.put(rng, folder / name, content, pipe=True)
    image = read_image(str(folder / name))
    require(
        image.mode == "RGB" and min(image.size) > 0 and len(image.tobytes()) == 3 * math.prod(image.size),
        "no picture",
    )


def _detector(rng: random.Random, folder: Path) -> None:
    detector, content = rng.choice(list(files.detectors().values()))
    damage.put(rng, folder / "d", content, pipe=True)
    load: Callable[..., Any] = rng.choice([type(detector).load, detector_file.load, AdaSCALE.load])
    found = load(folder / "d", files.network())
    require(type(found) is type(detector) and found.settings == detector.settings, "another detector")
    require(torch.equal(found.score(files.images()), detector.score(files.images())), "it scores otherwise")
    require(np.array_equal(found.validation_scores, detector.validation_scores), "other validation scores")
    require(isinstance(detector_file.notes_of(folder / "d"), dict), "notes")


def _store(rng: random.Random, folder: Path) -> None:
    contents = files.store()
    chosen = rng.choice(list(contents))
    for name, content in contents.items():
        (folder / "store" / name).parent.mkdir(parents=True, exist_ok=True)
        if name != chosen:
            (folder / "store" / name).write_bytes(content)
    damage.put(rng, folder / "store" / chosen, contents[chosen], pipe=True)
    try:
        _read_store(folder, chosen)
    except StoreError as error:  # what was computed can be computed again, but nothing takes a folder's place
        shard = folder / "store" / chosen
        require(shard.suffix != ".safetensors" or shard.is_dir(), f"a damaged shard ends a run: {error}")
        raise


def _read_store(folder: Path, chosen: str) -> None:
    for entry in open_store(folder / "store"):
        require(
            entry.size >= 0 and isinstance(entry.parts(), dict) and (entry.about is None or entry.about["D"]),
            "entry",
        )
    with using_store(folder / "store"):
        found = AdaSCALE(files.network()).fit(files.loader(), progress=False)
        scores = found.predict_loader(files.loader(), progress=False)[1]
    require(len(list((folder / "store" / "entries").iterdir())) == 1, "the store was not asked")
    require(np.array_equal(scores, files.stored_scores()), f"{chosen}: other scores {scores}")


def _weights(rng: random.Random, folder: Path) -> None:
    name, content = rng.choice(list(files.weights().items()))
    damage.put(rng, folder / name, content)
    network = files.Small()
    fill(network, read_state_dict(folder / name), str(folder / name), "Small")


READERS = (
    _table, _search, _images, _scores, _npz, _postprocessor, _run, _picture, _picture, _detector, _store, _weights,
    *yml_cases.READERS,
)  # fmt: skip
