"""Ray's workers: a local cluster that is started once, and a second node on the same machine."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import types
import warnings

import numpy as np
import pytest
import torch
from ray_work import OFFSET, Spoilt, work
from tiny import make_images, make_loader
from torch.utils.data import DataLoader, Dataset

from openood_adascale import MSP, AdaSCALE, Benchmark, OptFS, evaluate
from openood_adascale.detectors.registry import METHODS
from openood_adascale.errors import NotFiniteError
from openood_adascale.parallel import (
    CHOSEN,
    POOL_VARIABLE,
    LocalPool,
    PoolError,
    SharedObject,
    WorkerLostError,
    current_pool,
    ray_workers,
)

pytest.importorskip("ray", reason="needs the extra ray: pip install -e '.[ray]'")
pytestmark = pytest.mark.filterwarnings("ignore:workers. one was lost")


@pytest.fixture(scope="module")
def pool():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ["OPENOOD_ADASCALE_TIMEOUT"] = "5"
    try:
        with ray_workers(2) as workers:
            yield workers
    finally:
        del os.environ["OPENOOD_ADASCALE_TIMEOUT"]
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


def test_original_exception_arrives_with_its_traceback(pool):
    with pytest.raises(KeyError, match="the original") as raised:
        list(pool.map(work, [("add", 1), ("raise", KeyError("the original"))], OFFSET))
    assert "in work" in str(raised.value.__cause__)


def test_exception_that_cannot_be_rebuilt_keeps_its_text(pool):
    with pytest.raises(RuntimeError, match="OddError: one and two"):
        list(pool.map(work, [("raise odd", None)], OFFSET))


def test_abandoned_call_leaves_the_pool_usable(pool):
    results = pool.map(work, [("sleep", 0.2)] * 20, OFFSET)
    next(results)
    results.close()
    assert list(pool.map(work, [("add", 1)] * 4, OFFSET)) == [101] * 4


def test_object_that_cannot_be_pickled_raises_before_the_first_piece(pool):
    with pytest.raises(PoolError, match="network: lock cannot be sent"):
        next(pool.map(work, [("add", 1)], {"network": SharedObject("lock", threading.Lock())}))


def test_killed_worker_is_replaced_its_work_done_again_and_this_said_once(pool, tmp_path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for mark in ("first", "second"):
            place = str(tmp_path / mark)
            pieces = [("add", 1), ("kill once", place), *[("add", 2)] * 6]
            assert list(pool.map(work, pieces, OFFSET)) == [101, place, *[102] * 6]
    assert sum("one was lost" in str(one.message) for one in told) == 1


def test_stopped_worker_is_replaced_after_the_timeout(pool, tmp_path):
    pieces = [("stop once", str(tmp_path / "stopped")), *[("add", 2)] * 3]
    assert list(pool.map(work, pieces, OFFSET)) == [str(tmp_path / "stopped"), *[102] * 3]


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


def test_slow_consumer_does_not_lose_workers(pool, monkeypatch):
    monkeypatch.setattr(pool, "_timeout", 1.0)
    before = set(pool.map(work, [("inside", None)] * 8, OFFSET))
    results = pool.map(work, [("add", 1)] * 8, OFFSET)
    next(results)
    time.sleep(1.5)
    assert list(results) == [101] * 7
    assert set(pool.map(work, [("inside", None)] * 8, OFFSET)) <= before


def test_workers_killed_between_calls_are_replaced(pool):
    for one in set(pool.map(work, [("inside", None)] * 8, OFFSET)):
        os.kill(one[3], signal.SIGKILL)
    assert list(pool.map(work, [("add", 1)] * 4, OFFSET)) == [101] * 4


def test_numpy_arrays_are_shared(pool):
    arrays = {"a": SharedObject("a", np.arange(6.0)), "b": SharedObject("b", np.arange(12.0)[::2].T)}
    assert list(
        pool.map(lambda objects, piece: (objects["a"] + objects["b"]).sum() + piece, [0, 1], arrays)
    ) == [45, 46]


def test_tensors_in_results_are_writable(pool):
    (found,) = pool.map(lambda objects, piece: torch.zeros(500_000), [0], {})
    assert found.add_(1).sum() == 500_000


def test_flags_changed_after_the_start_reach_the_workers(pool):
    def flags(objects, piece):
        return torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()

    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float64)
    try:
        assert set(pool.map(flags, range(6), {})) == {(True, torch.float64)}
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(torch.float32)
    assert set(pool.map(flags, range(6), {})) == {(False, torch.float32)}


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch is older than 2.9")
def test_precision_set_through_the_new_interface_reaches_the_workers(pool):
    def precision(objects, piece):
        from torch.backends import cuda  # torch.backends itself cannot be pickled

        return cuda.matmul.fp32_precision

    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    try:
        found = set(pool.map(precision, range(6), {}))
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    assert found == {"tf32"}


def test_exit_in_a_piece_arrives_and_loses_no_worker(pool):
    def leave(objects, piece):
        sys.exit(3)

    with pytest.raises(SystemExit) as raised:
        list(pool.map(leave, [0], {}))
    assert raised.value.code == 3
    assert list(pool.map(work, [("add", 1)], OFFSET)) == [101]


def test_result_that_cannot_be_pickled_raises_its_own_error(pool):
    with pytest.raises(TypeError, match="cannot pickle"):
        list(pool.map(lambda objects, piece: threading.Lock(), [0], {}))


def test_thread_in_a_worker_has_no_pool_of_its_own(pool):
    def inside(objects, piece):
        found = []
        thread = threading.Thread(
            target=lambda: found.append((current_pool().workers, os.environ.get(POOL_VARIABLE)))
        )
        thread.start()
        thread.join()
        return found[0]

    assert list(pool.map(inside, [0], {})) == [(1, None)]


class Pools(Dataset):
    """The number of workers that a process of a DataLoader sees."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return current_pool().workers


def test_forked_reader_has_no_pool(pool):
    assert current_pool() is pool
    assert [int(one) for one in DataLoader(Pools(), num_workers=1, multiprocessing_context="fork")] == [1]


def test_module_beside_the_script_is_imported_by_workers(pool, tmp_path, monkeypatch):
    (tmp_path / "beside_the_script.py").write_text("def double(objects, piece):\n    return 2 * piece\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import beside_the_script

    assert list(pool.map(beside_the_script.double, range(3), {})) == [0, 2, 4]


def test_module_that_workers_lack_is_named(pool, tmp_path, monkeypatch):
    gone = types.ModuleType("module_of_this_process")
    gone.__file__ = str(tmp_path / "module_of_this_process.py")
    (tmp_path / "module_of_this_process.py").write_text("def run(objects, piece):\n    return piece\n")
    exec((tmp_path / "module_of_this_process.py").read_text(), gone.__dict__)
    monkeypatch.setitem(sys.modules, "module_of_this_process", gone)
    with pytest.raises(PoolError, match=r"'module_of_this_process'.*ModuleNotFoundError.*runtime_env"):
        list(pool.map(gone.run, [0], {}))


def test_workers_with_another_version_are_refused(pool, monkeypatch):
    monkeypatch.setattr("openood_adascale.__version__", "0.0")
    with pytest.raises(PoolError, match="install the same versions there, or pass a runtime_env"):
        list(pool.map(work, [("add", 1)], OFFSET))


def test_workers_killed_at_random_moments_change_no_result(pool):
    random, kills = np.random.default_rng(0), set()
    while len(kills) < 10:
        found = []
        for value, pid in pool.map(
            lambda objects, piece: (piece, time.sleep(0.02) or os.getpid()), range(12), {}
        ):
            found.append(value)
            if pid not in kills and len(kills) < 10:
                time.sleep(random.uniform(0, 0.05))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                kills.add(pid)
        assert found == list(range(12))


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
    token = CHOSEN.set(LocalPool())
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


def test_fit_and_search_run_on_the_workers(pool, network):
    loader = make_loader(make_images(24, 1), batch_size=4)
    assert AdaSCALE(network).fit(loader, progress=False).is_fitted
    assert OptFS(network).fit(loader, progress=False).state["theta"].shape == (100,)


SCRIPT = """
    import os, signal, sys, time
    from openood_adascale.parallel import current_pool
    def work(objects, piece):
        if piece == 3 and not os.path.exists(objects["mark"]):
            open(objects["mark"], "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        print("worker says", piece)
        return piece
    from openood_adascale.parallel import SharedObject
    mark = os.environ["MARK"]
    found = list(current_pool().map(work, range(6), {"mark": SharedObject("mark", mark)}))
    print(found, current_pool().workers)
"""


def test_environment_variable_starts_workers_and_nothing_reaches_stdout(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = {**os.environ, "OPENOOD_ADASCALE_RAY": "local:2", "MARK": str(tmp_path / "mark")}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[0, 1, 2, 3, 4, 5] 2\n"
    assert (tmp_path / "mark").exists()


def children_of_ray():
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in found.splitlines() if "ray::Worker" in line}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_driver_that_ends_leaves_no_worker(tmp_path, number):
    script = tmp_path / "driver.py"
    script.write_text(
        textwrap.dedent("""
        import time
        from openood_adascale.parallel import ray_workers
        def work(objects, piece):
            time.sleep(60)
        with ray_workers(2) as pool:
            print("ready", flush=True)
            list(pool.map(work, range(4), {}))
        """)
    )
    before = children_of_ray()
    driver = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert driver.stdout.readline() == "ready\n"
    time.sleep(1)
    assert children_of_ray() - before
    driver.send_signal(number)
    driver.wait(30)
    until = time.monotonic() + 10
    while children_of_ray() - before and time.monotonic() < until:
        time.sleep(0.2)
    assert not children_of_ray() - before


NODES = """
    import os, signal, subprocess, time
    import ray
    from ray.cluster_utils import Cluster
    from openood_adascale.parallel import ray_workers
    def work(objects, piece):
        time.sleep(0.3)
        return piece, ray.get_runtime_context().get_node_id()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = cluster.add_node(num_cpus=1)
    with ray_workers(2, address=cluster.address) as pool:
        first = list(pool.map(work, range(6), {}))
        results = pool.map(work, range(12), {})
        found = [next(results)]
        cluster.remove_node(second, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        found += list(results)
    print(len({node for _, node in first}), [piece for piece, _ in found] == list(range(12)))
"""


def test_lost_node_is_a_lost_worker(tmp_path):
    script = tmp_path / "nodes.py"
    script.write_text(textwrap.dedent(NODES))
    environment = {**os.environ, "OPENOOD_ADASCALE_TIMEOUT": "20", "RAY_health_check_period_ms": "1000"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=150
    )
    assert done.stdout.splitlines()[-1:] == ["2 True"], done.stdout + done.stderr
