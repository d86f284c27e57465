"""What befalls a folder: killed runs, damage, a full disk, strangers' folders, two at once."""

import json
import os
import re
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import quick_process
import torch
from tiny import HEAD, make_images, make_loader

from openood_adascale import MSP, AdaSCALE, using_store
from openood_adascale.cli import main
from openood_adascale.errors import StoreError
from openood_adascale.evidence import disk, rows
from openood_adascale.evidence.disk import MARKER, DiskStore

IMAGES = 100
SCRIPT = """
import os, sys, time
sys.path.insert(0, {tests!r})
import torch
from tiny import TinyNet, make_images, make_loader
from openood_adascale import AdaSCALE, using_store
from openood_adascale.evidence import disk, rows
rows.SHARD = disk.SHARD = 16
torch.manual_seed(0)
os.environ.update(DIE_AFTER="{die_after}", PAUSE="{pause}")
class Net(TinyNet):  # its code, which is part of what it is, is the same in all runs
    def forward(self, images):
        if sum(self.calls) >= int(os.environ["DIE_AFTER"]):
            os._exit(9)
        time.sleep(float(os.environ["PAUSE"]))
        return super().forward(images)
network = Net().eval()
with using_store({folder!r}):
    scores = AdaSCALE(network, pixels="random", percentile=(60, 80), k1=5, k2=50, lmbda=10)
    scores.fit(make_loader(make_images({images}, 1)), progress=False)
print(sum(network.calls), *sorted(scores.state.tolist())[:3])
"""


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    for module in (rows, disk):
        monkeypatch.setattr(module, "SHARD", 16)


def script(folder, die_after=10**9, pause=0.0):
    return SCRIPT.format(
        tests=str(Path(__file__).parents[1]),
        folder=str(folder),
        die_after=die_after,
        pause=pause,
        images=IMAGES,
    )


def run(code):
    return quick_process.run(["-c", code], timeout=120)


def scores(network, folder, images=IMAGES):
    network.calls.clear()
    with using_store(folder):
        found = MSP(network).predict_loader(make_loader(make_images(images, 1)))[1]
    return sum(network.calls), found


def shards(folder):
    return sorted(path for path in Path(folder).rglob("*.safetensors"))


def test_a_killed_run_goes_on_where_it_stopped(tmp_path):
    whole = run(script(tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.split()[0] == str(2 * IMAGES + HEAD)
    died = run(script(tmp_path / "store", die_after=2 * 64 + HEAD))
    assert died.returncode == 9
    done = len(shards(tmp_path / "store")) // 2 * 16
    assert 0 < done < IMAGES
    rest = run(script(tmp_path / "store"))
    assert rest.returncode == 0, rest.stderr
    assert rest.stdout.split()[0] == str(2 * (IMAGES - done) + HEAD)
    assert rest.stdout.split()[1:] == whole.stdout.split()[1:]
    assert [p.name for p in shards(tmp_path / "store")] == [p.name for p in shards(tmp_path / "whole")]


def test_killed_by_a_signal_while_it_writes(tmp_path):
    for attempt in range(4):
        process = quick_process.start(["-c", script(tmp_path / "store", pause=0.03)])
        while not list(tmp_path.rglob("*.safetensors")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.02 * attempt)
        process.kill()
        process.communicate()
    (entry,) = (tmp_path / "store" / "entries").iterdir()
    left = entry / f".{disk._host()}.{process.pid}.half.activation-000001.safetensors.tmp"
    left.write_bytes(b"half")
    done = run(script(tmp_path / "store"))
    assert done.returncode == 0, done.stderr
    assert not left.exists()
    assert run(script(tmp_path / "store")).stdout.split()[0] == "0"


def test_two_at_once(tmp_path):
    both = [quick_process.start(["-c", script(tmp_path / "store", pause=0.02)]) for _ in range(2)]
    try:
        found = [process.communicate(timeout=120)[0].split()[1:] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0]
    assert found[0] == found[1]
    assert run(script(tmp_path / "store")).stdout.split() == ["0", *found[0]]


def test_a_folder_in_the_place_of_a_shard_is_named(tmp_path, network):
    scores(network, tmp_path)
    shard = shards(tmp_path)[0]
    shard.unlink()
    shard.mkdir()
    with pytest.raises(
        StoreError, match=rf"{re.escape(str(shard))} cannot be written: .*a rerun goes on from there"
    ):
        scores(network, tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "gone", "another's"])
def test_a_damaged_shard_is_made_again(tmp_path, network, damage):
    _, want = scores(network, tmp_path)
    path, other = shards(tmp_path)[2], shards(tmp_path)[-1]
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[:-50])
    elif damage == "flipped":
        content[-100] ^= 1
        path.write_bytes(content)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_bytes(b"x" * len(content))
    elif damage == "gone":
        path.unlink()
    else:
        shutil.copy(other, path)  # of fewer rows
    os.utime(path.parent)
    count, found = scores(network, tmp_path)
    assert count == 16 + HEAD
    np.testing.assert_allclose(found, want, rtol=1e-6)
    assert scores(network, tmp_path)[0] == 0


def test_notes_say_what_is_there(tmp_path, network):
    scores(network, tmp_path)
    (about,) = tmp_path.rglob("about.json")
    said = json.loads(about.read_text())
    found = {name: said[name] for name in ("head", "D", "C", "N", "layers", "data")}
    classes, activations = network.fc.weight.shape
    assert found == {
        "head": "fc",
        "D": activations,
        "C": classes,
        "N": IMAGES,
        "layers": "TinyNet",
        "data": "TensorDataset",
    }


def test_damaged_notes_are_made_again(tmp_path, network):
    _, want = scores(network, tmp_path)
    (about,) = tmp_path.rglob("about.json")
    for content in ("", "{", "[1]", "null"):
        about.write_text(content)
        count, found = scores(network, tmp_path)
        assert count == HEAD  # the head is looked for again
        np.testing.assert_allclose(found, want, rtol=1e-6)


def test_a_folder_that_is_no_store_is_refused_and_left_alone(tmp_path, network):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StoreError, match="is no store and not empty"):
        scores(network, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(StoreError, match="is not a folder"):
        scores(network, tmp_path / "mine.txt")
    assert not network.calls


@pytest.mark.parametrize("content", ['{"format": 1}', "{}", "not json", "[]", '"format"'])
def test_another_versions_store_is_refused_and_left_alone(tmp_path, network, content):
    scores(network, tmp_path)
    (tmp_path / MARKER).write_text(content)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(StoreError, match=r"store: .*expected a store|of another version"):
        scores(network, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert main(["store", "list", "--store", str(tmp_path)]) == 2


def test_too_little_room_is_said_before_it_starts(tmp_path, network, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    with pytest.raises(StoreError, match=r"needs 25\.6 kB more .* 1 kB free; make room .* store clear"):
        scores(network, tmp_path)
    assert sum(network.calls) == HEAD
    assert not shards(tmp_path)


def test_a_disk_that_runs_full(tmp_path):
    limited = script(tmp_path / "store").replace(
        "with using_store",
        "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\nwith using_store",
    )
    done = run(limited)
    assert done.returncode == 1
    assert "StoreError: store:" in done.stderr.splitlines()[-1]
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert not [p for p in (tmp_path / "store").rglob("*") if p.suffix == ".tmp"]
    assert run(script(tmp_path / "store")).stdout.split()[0] == str(2 * IMAGES + HEAD)


def test_memory_does_not_grow_with_the_images(tmp_path, network):
    """What is read are maps of the files; a batch at a time is copied."""
    scores(network, tmp_path)
    (entry,) = (tmp_path / "entries").iterdir()
    content = disk.DiskEntry(entry).read("activation", 0)["activation"]
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("no /proc here to see memory maps in")
    assert str(entry / "activation-000000.safetensors") in maps.read_text()
    assert content.shape == (16, 64)


def test_the_command_line(tmp_path, network, capsys, monkeypatch):
    folder = tmp_path / "store"
    assert main(["store", "list"]) == 2
    assert "no store given" in capsys.readouterr().err
    assert main(["store", "list", "--store", str(folder)]) == 2
    assert "is not there" in capsys.readouterr().err
    with using_store(folder):
        detector = AdaSCALE(network, pixels="random", percentile=(60, 80))
        detector.fit(make_loader(make_images(30, 1)))
        MSP(network).predict_loader(make_loader(make_images(20, 2)))
    monkeypatch.setenv("OPENOOD_ADASCALE_STORE", str(folder))
    assert main(["store", "list"]) == 0
    *entries, total = capsys.readouterr().out.splitlines()
    assert total.startswith("2 entries, ")
    (told,) = [line for line in entries if "perturbed-random" in line]
    assert "TinyNet float32 TensorDataset" in told
    assert "activation 30/30" in told
    key = told.split()[0]
    (folder / "mine.txt").write_text("mine")
    (next((folder / "entries").glob(f"{key}*")) / "mine.txt").write_text("mine")
    assert main(["store", "clear", "nonsense"]) == 2
    assert main(["store", "clear", key]) == 0
    assert capsys.readouterr().out.startswith("removed 1 of 2 entries")
    assert main(["store", "clear"]) == 0
    assert len(list(folder.rglob("mine.txt"))) == 2
    assert not shards(folder)
    assert json.loads((folder / MARKER).read_text()) == {"format": disk.FORMAT}
    assert scores(network, folder, 20)[0] == 20 + HEAD


def test_what_is_read_executes_nothing(tmp_path, network):
    """A pickle in a shard's place is no shard."""
    scores(network, tmp_path)
    torch.save({"activation": torch.zeros(16, 64)}, shards(tmp_path)[0])
    assert scores(network, tmp_path)[0] == 16 + HEAD


def test_a_store_is_opened_again(tmp_path):
    assert DiskStore(tmp_path).folder == DiskStore(str(tmp_path)).folder
    with pytest.raises(StoreError, match="dtype 'int8'"):
        DiskStore(tmp_path, "int8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", [MARKER, "about.json", "*.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path, network, name):
    _, before = scores(network, tmp_path)
    place = next(tmp_path.rglob(name))
    place.unlink()
    os.mkfifo(place)
    if name == MARKER:
        with pytest.raises(StoreError, match="is no file"):
            scores(network, tmp_path)
    else:
        np.testing.assert_array_equal(scores(network, tmp_path)[1], before)
