"""Ray's workers: a local cluster that is started once, and a second node on the same machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import OFFSET, Spoilt, work
from networks import make_images, make_loader
from PIL import Image
from torch.utils.data import DataLoader

import openood_adascale
from openood_adascale import MSP, Benchmark, evaluate
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import NotFiniteError
from openood_adascale.evaluation import bulk
from openood_adascale.evaluation.bulk import score_dataset
from openood_adascale.parallel import (
    CHOSEN,
    Pool,
    PoolError,
    SharedObject,
    WorkerLostError,
    current_pool,
    ray_pool,
    ray_workers,
)

pytest.importorskip("ray", reason="needs the extra ray: pip install -e '.[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore:workers. one was lost")


# It kills workers if other processes fill the machine.
NO_MEMORY_MONITOR = ("RAY_memory_monitor_refresh_ms", "0")


@pytest.fixture(scope="module")
def pool():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*NO_MEMORY_MONITOR)
        with ray_workers(2) as workers:
            yield workers
    torch.set_num_threads(threads)


def test_results_come_in_order_from_both_workers(pool):
    pieces = [
        ("sleep" if number % 3 == 0 else "add", 0.05 if number % 3 == 0 else number) for number in range(20)
    ]
    expected = [value + 100 if isinstance(value, int) else value for _, value in pieces]
    assert list(pool.map(work, pieces, OFFSET)) == expected
    inside = set(pool.map(work, [("inside", None)] * 6, OFFSET))
    assert {one[:3] for one in inside} == {(1, 1, 2)}  # no pool in a worker, one thread, half of four readers


def test_objects_are_sent_once(pool):
    class Counting:
        pickled = 0

        def __reduce__(self):
            Counting.pickled += 1
            return int, (100,)

    shared = {"offset": SharedObject("counted", Counting())}
    for _ in range(2):
        assert list(pool.map(work, [("add", 1)] * 5, shared)) == [101] * 5
    assert Counting.pickled == 2  # the check and the transfer


@pytest.mark.parametrize(
    ("piece", "kind", "told"),
    [
        (("raise", KeyError("the original")), KeyError, "the original"),
        (("raise odd", None), RuntimeError, "OddError: one and two"),  # pickle cannot rebuild it
        (("exit", 3), RuntimeError, "SystemExit: 3"),
        (("lock", None), TypeError, "cannot pickle"),
    ],
)
def test_exception_in_a_piece_arrives(pool, piece, kind, told):
    with pytest.raises(kind, match=told) as raised:
        list(pool.map(work, [("add", 1), piece], OFFSET))
    if kind is KeyError:
        assert "in work" in str(raised.value.__cause__)


def test_abandoned_call_leaves_the_pool_usable(pool):
    results = pool.map(work, [("sleep", 0.2)] * 20, OFFSET)
    next(results)
    results.close()
    assert list(pool.map(work, [("add", 1)] * 4, OFFSET)) == [101] * 4


def test_object_that_cannot_be_pickled_raises_before_the_first_piece(pool):
    with pytest.raises(PoolError, match="network: lock cannot be sent"):
        next(pool.map(work, [("add", 1)], {"network": SharedObject("lock", threading.Lock())}))


def test_killed_workers_are_replaced_and_said_once(pool, tmp_path):
    marks = [str(tmp_path / name) for name in ("first", "second")]
    pieces = [("add", 1), *(("kill once", mark) for mark in marks), *[("add", 2)] * 6]
    with pytest.warns(UserWarning, match="one was lost with") as told:
        assert list(pool.map(work, pieces, OFFSET)) == [101, *marks, *[102] * 6]
    assert sum("one was lost" in str(one.message) for one in told) == 1


def test_stopped_worker_is_replaced_after_the_timeout(pool, tmp_path, monkeypatch):
    def stop_once(objects, piece):
        if piece == 0 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGSTOP)
        return piece

    mark = str(tmp_path / "mark")
    monkeypatch.setattr(pool, "timeout", 3.0)
    monkeypatch.setattr(ray_pool, "TRIES", 1000)  # on a busy machine others may seem to hang, too
    assert list(pool.map(stop_once, range(4), {})) == [0, 1, 2, 3]


def test_piece_that_kills_three_workers_is_named(pool):
    with pytest.raises(WorkerLostError, match="image 7 ended their worker 3 times"):
        list(pool.map(work, [("add", 1), ("kill", None)], OFFSET, lambda piece: "image 7"))
    assert list(pool.map(work, [("add", 1)], OFFSET)) == [101]


def test_two_calls_in_turn_both_yield_all_results(pool):
    first = pool.map(work, [("add", number) for number in range(12)], OFFSET)
    second = pool.map(work, [("add", number) for number in range(50, 62)], OFFSET)
    assert list(zip(first, second, strict=True)) == [(100 + number, 150 + number) for number in range(12)]


def test_endless_pieces_are_taken_as_workers_need_them(pool):
    taken = itertools.count()
    results = pool.map(work, (("add", next(taken)) for _ in itertools.count()), OFFSET)
    assert [next(results) for _ in range(3)] == [100, 101, 102]
    results.close()
    assert next(taken) < 20


def test_slow_consumer_loses_no_worker(pool, monkeypatch):
    clock, late = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock() + late[0])
    results = pool.map(work, [("add", 1)] * 40, OFFSET)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "workers: one was lost")
        for _ in results:
            late[0] += 2 * pool.timeout  # passes while the consumer has a result


def test_tensors_in_results_are_writable(pool):
    (found,) = pool.map(lambda objects, piece: torch.zeros(500_000), [0], {})
    assert found.add_(1).sum() == 500_000


def test_torch_settings_changed_after_the_start_reach_the_workers(pool, monkeypatch):
    def flags(objects, piece):
        from torch.backends import cuda  # torch.backends itself cannot be pickled

        found = getattr(cuda.matmul, "fp32_precision", "tf32")  # torch 2.9 and later
        return torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(), found

    before = flags(None, None)
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    try:
        assert set(pool.map(flags, range(6), {})) == {(True, torch.float64, "tf32")}
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
        monkeypatch.undo()
    assert set(pool.map(flags, range(6), {})) == {before}


def test_process_that_has_inherited_the_pool_has_none(pool, monkeypatch):
    assert current_pool() is pool
    monkeypatch.setattr(os, "getpid", lambda: 1)  # as after a fork
    assert current_pool().workers == 1


@pytest.mark.parametrize("on_path", [True, False])
def test_module_of_the_user_is_imported_by_workers(pool, tmp_path, monkeypatch, on_path):
    name = f"module_of_a_user_{on_path}"
    (tmp_path / f"{name}.py").write_text("def double(objects, piece):\n    return 2 * piece\n")
    if on_path:
        monkeypatch.syspath_prepend(str(tmp_path))
        module = importlib.import_module(name)
    else:
        spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
    assert list(pool.map(module.double, range(3), {})) == [0, 2, 4]


def test_workers_with_another_version_are_refused(pool, monkeypatch):
    monkeypatch.setattr("openood_adascale.__version__", "0.0")
    with pytest.raises(PoolError, match="install the same versions there, or pass a runtime_env"):
        list(pool.map(work, [("add", 1)], OFFSET))


def test_workers_killed_at_random_moments_change_no_result(pool, monkeypatch):
    def slowly(objects, piece):
        time.sleep(0.02)
        return piece, os.getpid()

    monkeypatch.setattr(ray_pool, "TRIES", 1000)  # the same piece may be hit again
    random, found, killed = np.random.default_rng(0), [], set()
    for value, pid in pool.map(slowly, range(100), {}):
        found.append(value)
        if len(killed) < 3 and pid not in killed:
            time.sleep(random.uniform(0, 0.05))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    assert found == list(range(100))


def benchmark():
    def loader(count, seed, shift=0.0):
        return make_loader(make_images(count, seed, shift), batch_size=4)

    return Benchmark(
        loader(30, 1),
        {"near": loader(20, 2, 0.5)},
        {"far": loader(20, 3, 2.0)},
        val=loader(30, 4),
        ood_val=loader(20, 5, 0.7),
        train=loader(40, 6),
    )


def detectors(network):
    return {name: method.detector(network, **method.defaults) for name, method in METHODS.items()}


def test_evaluate_gives_the_same_numbers_with_workers_and_with_a_cache(pool, network, tmp_path):
    token = CHOSEN.set(Pool())
    alone = evaluate(detectors(network), benchmark(), progress=False)
    CHOSEN.reset(token)
    assert current_pool() is pool
    for cache in (False, tmp_path / "cache", tmp_path / "cache"):
        shared = evaluate(detectors(network), benchmark(), progress=False, cache_dir=cache)
        for name in METHODS:
            for kind, scores in alone[name].scores.items():
                np.testing.assert_array_equal(shared[name].scores[kind], scores)
            assert shared[name].table.equals(alone[name].table)


def test_error_names_the_image(pool, network):
    with pytest.raises(NotFiniteError, match="number 13"):
        MSP(network).predict_loader(DataLoader(Spoilt(), 4), progress=False)


def test_network_that_changes_is_sent_again(pool, network):
    loader = make_loader(make_images(24, 1), batch_size=4)
    before = MSP(network).predict_loader(loader, progress=False)[1]
    with torch.no_grad():
        network.fc.weight.mul_(0.5)
    after = MSP(network).predict_loader(loader, progress=False)[1]
    np.testing.assert_allclose(after, MSP(network).score(make_images(24, 1)).numpy(), rtol=1e-5)
    assert not np.allclose(before, after)


def test_bulk_scoring_writes_the_same_and_survives_a_killed_worker(pool, network, tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(bulk, "PART_IMAGES", (8, 8))
    monkeypatch.chdir(tmp_path)
    MSP(network).fit_threshold(make_loader(make_images(20, 1))).save("msp.safetensors")
    images = []
    for number in range(60):
        images.append(io.BytesIO())
        Image.new("RGB", (8, 8), (255, 0, 0) if number == 27 else (0, number, 0)).save(images[-1], "png")
    pq.write_table(pa.table({"image": [image.getvalue() for image in images]}), "a.parquet")

    def transform(image):
        if image.getpixel((0, 0))[0] and driver != os.getpid() and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    def score(output):
        settings = {"network": network, "transform": transform, "progress": False}
        summary = score_dataset("msp.safetensors", "a.parquet", output, **settings)
        return summary, pq.read_table(output).to_pylist()

    driver, mark = os.getpid(), str(tmp_path / "mark")
    with pytest.warns(UserWarning, match=r"one was lost with part 3 \(a.parquet, rows 24 to 31\)"):
        summary, rows = score("shared")
    assert [row["path"] for row in rows] == [f"a.parquet#{row}" for row in range(60)]
    token = CHOSEN.set(Pool())
    alone = score("alone")
    CHOSEN.reset(token)
    assert (summary, rows) == alone


# Drivers of their own.


def start(folder, text, **environment):
    (folder / "script.py").write_text(textwrap.dedent(text))
    path = os.pathsep.join(
        filter(None, [str(Path(openood_adascale.__file__).parents[1]), os.environ.get("PYTHONPATH")])
    )
    return subprocess.Popen(
        [sys.executable, str(folder / "script.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path, **environment, **dict([NO_MEMORY_MONITOR])},
    )


def output_of(driver):
    stdout, stderr = driver.communicate(timeout=300)
    assert driver.returncode == 0, stderr
    return stdout


ENVIRONMENT = """
    import os, signal
    from openood_adascale.parallel import current_pool, PoolError
    mark = os.environ["MARK"]
    def work(objects, piece):
        if piece == 3 and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        print("worker says", piece)
        return piece
    pool = current_pool()
    print(list(pool.map(work, range(6), {})), pool.workers)
    pool.close()
    try:
        list(pool.map(work, range(6), {}))
    except PoolError as error:
        print(error)
"""


def test_environment_variable_starts_workers_and_nothing_of_ray_reaches_stdout(tmp_path):
    driver = start(tmp_path, ENVIRONMENT, OPENOOD_ADASCALE_RAY="local:2", MARK=str(tmp_path / "mark"))
    closed = "workers: the pool is closed; expected a call inside the with block of ray_workers"
    assert output_of(driver).splitlines() == ["[0, 1, 2, 3, 4, 5] 2", closed]
    assert (tmp_path / "mark").exists()


ENDLESS = """
    import os, signal, time
    from openood_adascale.parallel import ray_workers
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    def pid(objects, piece):
        time.sleep(0.2)
        return os.getpid()
    with ray_workers(2) as pool:
        print(*pool.map(pid, range(2), {}), flush=True)
        list(pool.map(lambda objects, piece: time.sleep(600), range(4), {}))
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_driver_that_ends_leaves_no_worker(tmp_path):
    drivers = []
    for number in (signal.SIGKILL, signal.SIGINT):
        (tmp_path / number.name).mkdir()
        drivers.append((start(tmp_path / number.name, ENDLESS), number))
    pids = [driver.stdout.readline().split() for driver, _ in drivers]
    assert [len(set(one)) for one in pids] == [2, 2]
    assert all(map(is_running, itertools.chain(*pids)))
    for driver, number in drivers:
        driver.send_signal(number)
        driver.communicate(timeout=300)
    until = time.monotonic() + 120  # about 2 s on a quiet machine
    while any(map(is_running, itertools.chain(*pids))) and time.monotonic() < until:
        time.sleep(0.2)
    assert not any(map(is_running, itertools.chain(*pids)))


NODES = """
    import time
    import ray
    from ray.cluster_utils import Cluster
    from openood_adascale.parallel import PoolError, ray_workers
    def work(objects, piece):
        time.sleep(0.3)
        return piece, ray.get_runtime_context().get_node_id()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    try:
        with ray_workers(3, address=cluster.address):
            pass
    except PoolError as error:
        print(error)
    with ray_workers(2, address=cluster.address) as pool:
        first = list(pool.map(work, range(6), {}))
        results = pool.map(work, range(12), {})
        found = [next(results)]
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        found += list(results)
    print(len({node for _, node in first}), [piece for piece, _ in found] == list(range(12)))
"""


def test_lost_node_is_a_lost_worker_and_more_workers_than_cpus_are_an_error_at_once(tmp_path):
    driver = start(tmp_path, NODES)
    too_many = "workers: 3 are not possible in a cluster of 2 CPUs; expected at most one for each CPU"
    assert output_of(driver).splitlines()[-2:] == [too_many, "2 True"]
