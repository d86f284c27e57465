"""Pickles: read as pickle would, and nothing of them is executed."""

from __future__ import annotations

import io
import os
import pickle
import re

import numpy as np
import pytest
import torch
from report_files import RESNET50, Hostile, evaluator_scores, report, save_scores

from openood_adascale.errors import ResultError
from openood_adascale.reporting.scores import read_pickle
from openood_adascale.reporting.unpickling import NumbersUnpickler, as_array


def test_numpy_1_pickles():
    """NumPy 1 has its core in numpy.core, NumPy 2 in numpy._core: both are read, whichever is installed."""
    for protocol, core in ((4, b"numpy.core"), (5, b"numpy.core"), (4, b"numpy._core"), (5, b"numpy._core")):
        data = pickle.dumps({"a": np.arange(3.0)}, protocol, fix_imports=False)
        found = re.search(rb"numpy\.(_)?core", data)
        assert found
        # A short string's length stands in the byte before it, and that of the frame is not checked here.
        old = data[found.start() - 1 : data.index(b"\x94", found.start())]
        new = old[1:].replace(found[0], core)
        data = data.replace(old, bytes([len(new)]) + new)
        data = re.sub(rb"^(\x80.)\x95.{8}", rb"\1", data, flags=re.DOTALL)
        value = NumbersUnpickler(io.BytesIO(data)).load()["a"]
        np.testing.assert_array_equal(as_array(value), np.arange(3.0))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6).reshape(2, 3),
        torch.arange(10)[3:7],
        torch.tensor([True, False]),
        torch.arange(4, dtype=torch.int32),
        torch.rand(3, dtype=torch.float64),
        torch.arange(0),
    ],
)
def test_tensors(tensor):
    read = NumbersUnpickler(io.BytesIO(pickle.dumps(tensor, 5))).load()
    np.testing.assert_array_equal(read, tensor.numpy())


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda marker: Hostile(os.system, f"touch {marker}"), "system"),
        (lambda marker: Hostile(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (lambda marker: Hostile(open, str(marker), "w"), "open"),
        (lambda marker: Hostile(np.save, str(marker), 1), "save"),
        (lambda marker: Hostile(np.load, str(marker)), "load"),
        (lambda marker: Hostile(getattr, np.ndarray, "tofile"), "getattr"),
        (lambda marker: Hostile(torch.load, str(marker)), "load"),
    ],
)
def test_hostile_pickles_execute_nothing(tmp_path, protocol, make, named):
    marker = tmp_path / "marker"
    scores = evaluator_scores()
    scores["ood"]["near"]["ssb_hard"][1] = make(marker)
    path = save_scores(tmp_path / RESNET50 / "scores" / "msp.pkl", scores, protocol)
    with pytest.raises(
        ResultError, match=rf"msp\.pkl: not a score file .*{named}.*nothing of it was executed"
    ):
        read_pickle(path)
    assert report(tmp_path / RESNET50) == 2
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["msp.pkl"]


def test_a_hostile_tensor_executes_nothing(tmp_path):
    """A tensor's storage is bytes in which torch.load would find pickles of their own."""
    marker = tmp_path / "marker"
    storage = io.BytesIO()
    torch.save(Hostile(os.system, f"touch {marker}"), storage, _use_new_zipfile_serialization=False)

    class Tensor:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (storage.getvalue(),)

    scores = {**evaluator_scores(), "id_preds": Tensor()}
    with pytest.raises(ResultError, match="system"):
        read_pickle(save_scores(tmp_path / "s.pkl", scores))
    assert not marker.exists()


def test_no_names_by_the_back_door(tmp_path):
    """Objects, attributes and dotted names are refused as well, and nothing lasting is set."""
    for payload in (
        b"cnumpy\nndarray.__class__\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
        b"cbuiltins\ngetattr\n.",
        b"copenood_adascale.reporting.unpickling\nNumbersUnpickler\n.",
        b"cnumpy\ndtype\n(S'O'\ntR.",
        b"cnumpy\nndarray\n(I3\ntR.",
        b"cnumpy\ndtype\n}S'x'\nI1\nsb.",
        b"Pid\n.",
    ):
        (tmp_path / "s.pkl").write_bytes(payload)
        with pytest.raises(ResultError, match=r"not a score file that can be read safely|not the scores of"):
            read_pickle(tmp_path / "s.pkl")
    assert not vars(NumbersUnpickler._dtype)


@pytest.mark.parametrize("step", [b"r\xff\xff\xff\x7f", b"p2000000000\n", b"q\xff"])
def test_a_damaged_memo_takes_no_memory(tmp_path, step):
    """For a value at such a place Python's own unpickler would fill all places before it."""
    (tmp_path / "s.pkl").write_bytes(b"\x80\x02}" + step + b".")
    with pytest.raises(ResultError, match="damaged: it keeps a value at place"):
        read_pickle(tmp_path / "s.pkl")
