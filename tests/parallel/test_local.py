"""The pool interface in this process, and the texts and variables that choose a pool."""

import numpy as np
import pytest

from openood_adascale.parallel import (
    Pool,
    PoolError,
    SharedObject,
    content_key,
    parse_address,
    ray_workers,
    refuse_torchrun,
)
from openood_adascale.parallel.sending import import_modules


def add(objects, piece):
    return objects["offset"] + piece


def test_local_pool_yields_results_in_order_one_at_a_time():
    seen = []

    def note(objects, piece):
        seen.append(piece)
        return add(objects, piece)

    results = Pool().map(note, iter(range(5)), {"offset": SharedObject("k", 10)})
    assert next(results) == 10
    assert seen == [0]
    assert list(results) == [11, 12, 13, 14]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("local", ("local", None)),
        (" local:8 ", ("local", 8)),
        ("auto", ("auto", None)),
        ("auto:3", ("auto", 3)),
        ("10.0.0.1:6379", ("10.0.0.1:6379", None)),
        ("head.cluster:6379:16", ("head.cluster:6379", 16)),
    ],
)
def test_address_with_valid_text_is_parsed(text, found):
    assert parse_address(text) == found


@pytest.mark.parametrize(
    "text", ["", "remote", "local:", "local:0", "local:x", "local:1:2", ":6379", "host:port", "a:1:0"]
)
def test_address_with_invalid_text_raises(text):
    with pytest.raises(PoolError, match="expected local, auto or HOST:PORT"):
        parse_address(text)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_ray_workers_with_invalid_number_raises(workers):
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.raises(PoolError, match="expected a whole number"), ray_workers(workers):
        pass


def test_missing_ray_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(PoolError, match=r"openood-adascale\[ray\]"), ray_workers(2):
        pass


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "inf", "nan"])
def test_invalid_timeout_raises(monkeypatch, seconds):
    pytest.importorskip("ray", reason="needs the extra ray")
    monkeypatch.setenv("OPENOOD_ADASCALE_TIMEOUT", seconds)
    with pytest.raises(PoolError, match="OPENOOD_ADASCALE_TIMEOUT"), ray_workers(2):
        pass


def test_content_key_follows_the_content():
    pytest.importorskip("ray", reason="needs the extra ray")
    assert content_key("a", np.arange(4)) != content_key("a", np.arange(4)[::-1])
    assert content_key("a", [1, 2]) == content_key("a", [1, 2])
    assert content_key("a", [1, 2]) != content_key("a", [1, 3])


def test_module_of_another_source_is_named(tmp_path, monkeypatch):
    (tmp_path / "module_of_a_user.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    file = str(tmp_path / "module_of_a_user.py")
    for name, words in (("module_of_a_user", "its source differs"), ("no_module", "No module named")):
        with pytest.raises(PoolError, match=f"'{name}'.*{words}.*runtime_env"):
            import_modules({name: (file.replace("module_of_a_user", name), "another hash")})


def test_torchrun_is_told_the_new_way(monkeypatch):
    refuse_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(PoolError, match="--ray local --ray-workers N"):
        refuse_torchrun()
