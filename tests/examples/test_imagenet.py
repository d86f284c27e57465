"""examples/: on small synthetic pictures in folders named as the clones are, with nothing downloaded."""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import call
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"
NETWORK = """
import torch
from torch import nn
from torchvision import transforms

def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 32, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 20)]
    return nn.Sequential(*layers), transforms.Compose([transforms.Resize((24, 24)), transforms.ToTensor()])
"""


def script(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pictures(folder, names, seed):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for name in names:
        Image.fromarray(rng.integers(0, 50 * seed, (32, 32, 3), dtype=np.uint8)).save(folder / name)


@pytest.fixture
def data(tmp_path):
    """The clones, but for those of near-OOD scenes and of cells."""
    module = script("imagenet_data")
    folder = tmp_path / "data"
    pictures(folder / module.ID, [f"n{number:08}_some_thing.JPEG" for number in range(20)], 1)
    for name in (*module.VALIDATION, *module.SETS["far"]["textures"][1], "cobwebbed"):
        pictures(folder / module.TEXTURES / name, [f"{name}_{number}.jpg" for number in range(3)], 2)
    for name in (*module.SETS["near"]["flowers"][1], "daisy"):
        pictures(folder / module.FLOWERS / name, [f"{number}.jpg" for number in range(2)], 3)
    for name in (*module.SETS["far"]["cifar100"][1], "apple"):
        pictures(folder / module.CIFAR / name, [f"{name}_{number}.png" for number in range(2)], 4)
    (tmp_path / "net.py").write_text(NETWORK)
    return folder


def lines_of(file):
    return [tuple(line.rsplit(" ", 1)) for line in Path(file).read_text().splitlines()]


def test_image_lists_hold_the_chosen_images_and_no_others(data, capsys):
    script("imagenet_data").main([str(data)])
    told = capsys.readouterr().out
    assert "scenes: left out" in told
    assert "cells: left out" in told
    options = yaml.safe_load((data / "imagenet.yml").read_text())
    assert [list(options[split]) for split in ("near", "far")] == [["flowers"], ["textures", "cifar100"]]
    known = [*lines_of(options["id"]), *lines_of(options["val"])]
    assert [len(known), len(lines_of(options["val"]))] == [20, 6]
    assert all(int(Path(path).name[1:9]) == int(label) for path, label in known)
    assert {label for _, label in known} == set(map(str, range(20)))
    for where in (*options["near"].values(), *options["far"].values(), options["ood_val"]):
        listed = [path for path, _ in lines_of(where)]
        assert len(set(listed)) == len(listed)
        assert all((data / path).is_file() for path in listed)
        assert not any(word in path for path in listed for word in ("daisy", "cobwebbed", "apple"))
    before = {path: path.read_bytes() for path in data.glob("*.txt")}
    script("imagenet_data").main([str(data)])
    assert before == {path: path.read_bytes() for path in data.glob("*.txt")}


@pytest.mark.drawn
def test_evaluation_and_search_share_features_and_make_a_table(data, capsys):
    script("imagenet_data").main([str(data)])
    network, out = f"{data.parent / 'net.py'}:network", data.parent / "out"
    words = ["--config", data / "imagenet.yml", "--network", network, "--output", out, "--workers", "0"]
    done = call("evaluate", *words, "--max-images", "0", "--quiet")
    assert done.returncode == 0, done.stderr
    assert pd.read_csv(out / "ood/adascale.csv", index_col=0)["ACC"].notna().all()

    stored = sorted((data / "features").rglob("*.safetensors"))
    table = script("search_all").main([str(data), network, "--workers", "0", "--out", str(out / "all")])
    assert sorted((data / "features").rglob("*.safetensors")) == stored, "a pass was run again"
    rows = [f"AdaSCALE-{variant}, {what}" for variant in "AL" for what in ("percentiles", "all")]
    assert list(table.index) == rows
    first = pd.read_csv(out / "ood/adascale.csv", index_col=0)
    again = pd.read_csv(out / "all/ood/adascale_a_percentiles.csv", index_col=0)
    pd.testing.assert_frame_equal(first.drop(columns="ACC"), again.drop(columns="ACC"))

    capsys.readouterr()
    shutil.copytree(out, data.parent / "other", ignore=shutil.ignore_patterns("report"))
    other = data.parent / "other"
    shown = script("table")
    shown.RESAMPLES = 20
    shown.main([str(out), str(other), "--against", "msp", "--picture", str(out / "bars.png")])
    printed = capsys.readouterr().out
    assert printed.count("| method | flowers | textures | cifar100 | mean |") == 3
    assert printed.count("| AdaSCALE-A |") == 3
    assert printed.count("AdaSCALE-A minus MSP: FPR@95 ") == 3
    tables = (pd.read_csv(out / f"ood/{name}.csv", index_col=0) for name in ("adascale", "msp"))
    one, two = (table.drop(["nearood", "farood"]) for table in tables)
    found = shown.difference([out, other], "adascale", "msp")
    expected = (one - two)[["FPR@95", "AUROC"]].mean()
    assert found[0] == pytest.approx(expected.to_numpy(), abs=0.01)
    assert (found[1] <= found[0]).all()
    assert (found[0] <= found[2]).all()
    assert (out / "bars.png").stat().st_size > 1000


def test_missing_repository_is_an_error_that_names_it(data):
    module = script("imagenet_data")
    with pytest.raises(SystemExit, match="there is none; clone it"):
        module.main([str(data.parent)])
    (data / module.FLOWERS).rename(data / "elsewhere")
    with pytest.raises(SystemExit, match="clone one of the near-OOD sets"):
        module.main([str(data)])
    with pytest.raises(SystemExit, match="no tables"):
        script("table").main([str(data)])


def test_readme_names_every_script():
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    blocks = [block.partition("```")[0] for block in text.split("```bash\n")[1:]]
    named = [word.partition(":")[0] for block in blocks for word in shlex.split(block, comments=True)]
    scripts = {word for word in named if word.startswith("examples/")}
    assert scripts == {f"examples/{path.name}" for path in EXAMPLES.glob("*.py")}
