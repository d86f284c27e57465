"""``evaluate`` by many processes of the caller's group: the numbers of one process, known to all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from processes import run

SCRIPT = Path(__file__).with_name("evaluate_scenarios.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    for count in (1, 2, 3):
        run(count, [SCRIPT, folder])
    return folder


def found(folder, count, rank):
    with np.load(folder / f"{count}-{rank}.npz") as arrays:
        return dict(arrays), json.loads((folder / f"{count}-{rank}.json").read_text())


@pytest.mark.parametrize(("count", "rank"), [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)])
def test_the_numbers_are_those_of_one_process(folder, count, rank):
    alone, _ = found(folder, 1, 0)
    together, _ = found(folder, count, rank)
    assert alone.keys() == together.keys()
    assert len(alone) > 100
    for name, expected in alone.items():
        np.testing.assert_array_equal(together[name], expected, err_msg=name)


def test_errors_and_warnings(folder):
    _, alone = found(folder, 1, 0)
    assert alone["bad"][0] == "NotFinite: images: NaN or infinity for 1 image(s), image 3.png"
    for count in (2, 3):
        for rank in range(count):
            _, together = found(folder, count, rank)
            for name in alone:
                assert together[name][0] == alone[name][0]
        _, directing = found(folder, count, 0)
        told = {name: " ".join(warned) for name, (_, warned) in directing.items()}
        assert f"one process of {count} reads it: its images are random" in told["random"]
        assert (
            f"one process of {count} reads it: the network changes when it is run (runs)" in told["counting"]
        )
        assert f"one process of {count} reads it: its images are given one after another" in told["batches"]
        assert told["own"] == ""
