"""Tests of the feature cache's files: interrupted runs, damaged files, full disks, concurrent processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import HEAD, make_images, make_loader

from openood_adascale import MSP, feature_cache
from openood_adascale.errors import CacheError
from openood_adascale.features import cache as cache_module
from openood_adascale.features.cache import FORMAT, MARKER, FeatureCache

IMAGES = 100
SCRIPT = """
import os, sys, time
import torch
from networks import TinyNet, make_images, make_loader
from openood_adascale import AdaSCALE, feature_cache
from openood_adascale.features import cache
cache.SHARD = 16
folder, die_after, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
torch.manual_seed(0)
network = TinyNet().eval()
def watch(module, inputs):
    if sum(network.calls) >= die_after:
        os._exit(9)
    time.sleep(pause)
network.features.register_forward_pre_hook(watch)
with feature_cache(folder):
    detector = AdaSCALE(network, pixels="random", percentile=(60, 80), k1=5, k2=50)
    detector.fit(make_loader(make_images(100, 1)), progress=False)
print(sum(network.calls), *sorted(detector.state.tolist())[:3])
"""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(cache_module, "SHARD", 16)


def start(folder, die_after=10**9, pause=0.0):
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parents[2])])
    arguments = [sys.executable, "-c", SCRIPT, str(folder), str(die_after), str(pause)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def run(folder, **more):
    process = start(folder, **more)
    out, error = process.communicate(timeout=120)
    return process.returncode, out.split(), error


def scores(network, folder, images=IMAGES):
    """Return how many images ran through the network, and the scores."""
    network.calls.clear()
    with feature_cache(folder):
        found = MSP(network).predict_loader(make_loader(make_images(images, 1)), progress=False)[1]
    return sum(network.calls), found


def shards(folder):
    return sorted(path for path in Path(folder).rglob("*.safetensors") if path.stem != "head")


def test_killed_run_is_continued(tmp_path):
    """Killed by itself, by a signal while it writes, then two at once."""
    folder = tmp_path / "cache"
    status, _, error = run(folder, die_after=2 * 64 + HEAD)
    assert status == 9, error
    done = len(shards(folder)) // 2 * 16
    assert 0 < done < IMAGES
    process = start(folder, pause=0.05)
    while len(shards(folder)) // 2 * 16 == done and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    together = [start(folder, pause=0.02) for _ in range(2)]
    found = [process.communicate(timeout=120) for process in together]
    assert [process.returncode for process in together] == [0, 0], found
    states = [out.split()[1:] for out, _ in found]
    assert states[0] == states[1]
    assert all(int(out.split()[0]) < 2 * IMAGES for out, _ in found)
    status, out, error = run(folder)
    assert (status, out) == (0, ["0", *states[0]]), error


DAMAGES = {
    "truncated": lambda path, other: path.write_bytes(path.read_bytes()[:-50]),
    "flipped": lambda path, other: path.write_bytes(
        path.read_bytes()[:-100] + b"?" + path.read_bytes()[-99:]
    ),
    "empty": lambda path, other: path.write_bytes(b""),
    "text": lambda path, other: path.write_bytes(b"x" * 5000),
    "gone": lambda path, other: path.unlink(),
    "another's place": lambda path, other: shutil.copy(other, path),
    "pickle": lambda path, other: torch.save({"activation": torch.zeros(16, 64)}, path),
    "pipe": lambda path, other: (path.unlink(), os.mkfifo(path)),
    "link to itself": lambda path, other: (path.unlink(), path.symlink_to(path.name)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_shard_is_made_again(tmp_path, network, damage):
    _, want = scores(network, tmp_path)
    files = shards(tmp_path)
    for path, other in ((files[2], files[-1]), (files[3], files[4])):
        DAMAGES[damage](path, other)
        runs, found = scores(network, tmp_path)
        assert 16 <= runs <= 16 + HEAD
        np.testing.assert_array_equal(found, want)
        assert scores(network, tmp_path)[0] == 0


@pytest.mark.parametrize("content", [b"", b"[1]", None])
def test_damaged_head_is_made_again(tmp_path, network, content):
    _, want = scores(network, tmp_path, 20)
    (path,) = tmp_path.rglob("head.safetensors")
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    _, found = scores(network, tmp_path, 20)
    np.testing.assert_array_equal(found, want)
    assert scores(network, tmp_path, 20)[0] == 0


def test_full_disk_is_one_clear_error(tmp_path, network, monkeypatch):
    """Finished shards are kept, and none is left half written."""
    room = 3

    def write(path, content):
        nonlocal room
        if path.name.endswith(".tmp") and len(content) > 2000:
            room -= 1
            with open(path, "wb") as file:
                file.write(content[:100] if room < 0 else content)
            if room < 0:
                raise OSError(28, "No space left on device")
            return len(content)
        return original(path, content)

    original = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", write)
    with pytest.raises(
        CacheError, match=r"^cache: .* cannot be written: No space left on device\. Finished shards are kept"
    ):
        scores(network, tmp_path)
    assert 0 < len(shards(tmp_path)) <= 3
    assert not list(tmp_path.rglob("*.tmp"))
    kept = len(shards(tmp_path))
    monkeypatch.undo()
    monkeypatch.setattr(cache_module, "SHARD", 16)
    runs, _ = scores(network, tmp_path)
    assert runs <= IMAGES - 16 * kept + HEAD
    assert scores(network, tmp_path)[0] == 0


def test_other_directory_or_version_is_refused_and_left_alone(tmp_path, network):
    def state():
        return {
            path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
            for path in tmp_path.rglob("*")
        }

    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "openood_adascale_store.json").write_text('{"format": 2}')
    for number, content in enumerate(
        ['{"format": 2}', '{"format": "5"}', "{}", "not json", "[]", '"format"']
    ):
        (tmp_path / f"other{number}").mkdir()
        (tmp_path / f"other{number}" / MARKER).write_text(content)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / MARKER)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    before = state()
    told = (
        rf"^cache_dir: .* is not a feature cache of this version .*\(format {FORMAT}\).* are extracted again$"
    )
    for name in ("store", "mine", "mine/notes.txt", "pipe", *(f"other{number}" for number in range(6))):
        with pytest.raises(CacheError, match=told):
            scores(network, tmp_path / name)
    with pytest.raises(CacheError, match=told):
        FeatureCache(tmp_path / "none", create=False)
    for directory in ("", 5, []):
        with pytest.raises(CacheError, match=r"cache_dir: .* is not allowed; expected a directory, or False"):
            FeatureCache(directory)
    assert state() == before
    assert not network.calls
    (tmp_path / "new" / "lost+found").mkdir(parents=True)
    assert FeatureCache(FeatureCache(tmp_path / "new").directory, create=False).entries() == []


def test_entry_that_is_removed_while_in_use_is_told(tmp_path, network):
    with feature_cache(tmp_path) as cache:
        batches = MSP(network).predict_batches(make_loader(make_images(IMAGES, 1)), progress=False)
        next(batches)
        for entry in cache.entries():
            shutil.rmtree(entry.folder)
        with pytest.raises(CacheError, match=r"^cache: .* cannot be read any more"):
            list(batches)


def test_directories_may_have_any_name(tmp_path, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a b é", "~/home"):
        scores(network, name, 20)
        assert scores(network, name, 20)[0] == 0
    assert json.loads((tmp_path / "home" / MARKER).read_text()) == {"format": FORMAT}
