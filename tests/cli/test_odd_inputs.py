"""Odd inputs through the command line give results, or one line and status 2; never a traceback."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from helpers import NETWORK, call, picture, pictures
from PIL import Image
from safetensors.torch import save_file
from torch import nn

FIT, EVALUATE = (
    ("fit", "--method", "msp", "-o", "d.safetensors"),
    ("evaluate", "--far", "f=far", "--methods", "msp", "-o", "out"),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "net.py").write_text(NETWORK)
    (folder / "syntax.py").write_text("def network(:")
    pictures(folder / "id", 6, 1, ["a", "b", "c"])
    pictures(folder / "four", 8, 1, ["a", "b", "c", "d"])
    pictures(folder / "two", 6, 1, ["a", "c"])
    pictures(folder / "far", 4, 2)
    rng = np.random.default_rng(0)
    deep = rng.integers(0, 65535, (40, 40))
    kinds = {
        "grey.png": Image.new("L", (40, 40), 9),
        "cmyk.jpg": Image.new("CMYK", (40, 40)),
        "palette.gif": Image.new("P", (40, 40)),
        "alpha.png": Image.new("RGBA", (40, 40)),
        "bit.png": Image.new("1", (40, 40)),
        "16.png": Image.fromarray(deep.astype("uint16")),
        "16.tif": Image.fromarray(deep.astype("uint16")),
        "int32.tif": Image.fromarray((deep % 255).astype("int32")),
        "float.tif": Image.fromarray((deep / 65535).astype("float32")),
        "one.png": Image.new("RGB", (1, 1)),
        "long.png": Image.new("RGB", (2000, 3)),
        "x.webp": Image.new("RGB", (40, 40)),
        "x.PNG": Image.new("RGB", (40, 40)),
        "lab.tif": Image.new("LAB", (40, 40)),
        "named like.jpg.png": Image.new("RGB", (40, 40)),
    }
    for name, image in kinds.items():
        (folder / "kinds").mkdir(exist_ok=True)
        image.save(folder / "kinds" / name)
    for name, content in {
        "empty.png": b"",
        "text.png": b"<html>",
        "huge.tif": None,
        "cut.png": b"\x89PNG\r\n\x1a\n",
    }.items():
        (folder / name[:-4]).mkdir()
        picture(folder / name[:-4] / "0.png", size=(40, 40))
        if content is None:
            Image.fromarray((deep * 300).astype("int32")).save(folder / name[:-4] / name)
        else:
            (folder / name[:-4] / name).write_bytes(content)
    (folder / "nothing").mkdir()
    (folder / "dead").mkdir()
    (folder / "dead/x.png").symlink_to(folder / "nowhere.png")
    (folder / "circle/a").mkdir(parents=True)
    picture(folder / "circle/a/x.png", size=(40, 40))
    (folder / "circle/a/up").symlink_to(folder / "circle")
    files = [f"id/{'abc'[n % 3]}/picture {n:03}.png" for n in range(6)]
    lists = {
        "good.txt": "".join(f"{file} {n % 3}\n" for n, file in enumerate(files)),
        "one-based.txt": "".join(f"{file} {n % 3 + 1}\n" for n, file in enumerate(files)),
        "255.txt": "".join(f"{file} 255\n" for file in files),
        "minus.txt": "".join(f"{file} -2\n" for file in files),
        "partly.csv": "path,label\n"
        + "".join(f"{file},{n % 3 if n else ''}\n" for n, file in enumerate(files)),
        "words.csv": "path,label\n" + "".join(f"{file},cat\n" for file in files),
        "nolabel.csv": "path\n" + "\n".join(files),
        "half.csv": f"path,label\n{files[0]},0.5\n",
        "nan.csv": f"path,label\n{files[0]},nan\n",
        "columns.csv": f"file,label\n{files[0]},1\n",
        "missing.txt": f"{files[0]} 0\nnowhere.png 1\n",
        "allmissing.txt": "nowhere.png 1\n",
        "empty.txt": "",
        "header.csv": "path,label\n",
        "quotes.csv": 'path,label\n"' + files[0] + ",1\n",
        "crlf.csv": "path,label\r\n" + f"{files[0]},1\r\n{files[1]},2\r\n",
        "names3.txt": "a\nb\nc\n",
        "names4.txt": "a\nb\nc\nd\n",
        "others3.txt": "x\ny\nz\n",
        "gap.txt": "a\n\nc\n",
        "mixed3.txt": "a\nx\nc\n",
    }
    for name, text in lists.items():
        (folder / name).write_bytes(text.encode())
    for encoding in ("utf-16", "utf-16-le", "utf-8-sig", "utf-32"):
        (folder / f"{encoding}.txt").write_bytes(lists["good.txt"].encode(encoding))
    (folder / "latin.txt").write_bytes(b"caf\xe9.png 1\n")
    state = _network(folder).state_dict()
    torch.save(state, folder / "good.pth")
    torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, folder / "module.pth")
    torch.save({name: value for name, value in state.items() if "fc" not in name}, folder / "headless.pth")
    torch.save({**state, "fc.weight": torch.zeros(4, 64), "fc.bias": torch.zeros(4)}, folder / "four.pth")
    torch.save(nn.Linear(2, 2), folder / "module-object.pth")
    save_file(state, folder / "misnamed.pth")
    (folder / "lfs.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 4\n")
    (folder / "page.pth").write_text("<!DOCTYPE html>")
    (folder / "cut.pth").write_bytes((folder / "good.pth").read_bytes()[:700])
    (folder / "cut.safetensors").write_bytes((folder / "misnamed.pth").read_bytes()[:700])
    (folder / "zero.pth").write_bytes(b"")
    done = call(*FIT, "--network", "net.py:network", "--val", "far", "--workers", "0", "-q", cwd=folder)
    assert done.returncode == 0
    edited = (folder / "d.safetensors").read_bytes().replace(b"net.py", b"nat.py")
    (folder / "damaged.safetensors").write_bytes(edited)
    (folder / "old.safetensors").write_bytes((folder / "d.safetensors").read_bytes()[:40])
    return folder


def _network(folder):
    sys.path.append(str(folder))
    try:
        import net

        return net.network()[0]
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("net", None)


def known(*more, network="network"):
    return (*EVALUATE, "--network", f"net.py:{network}", "--id", "id", *more)


def fitted(*more, network="network"):
    return (*FIT, "--network", f"net.py:{network}", "--val", "id", *more)


def scored(*more):
    return ("score", "d.safetensors", "--network", "net.py:network", *more)


RIGHT = {
    **{
        f"list {name}": known("--id", name)
        for name in (
            "good.txt",
            "partly.csv",
            "nolabel.csv",
            "crlf.csv",
            "utf-16.txt",
            "utf-8-sig.txt",
            "utf-32.txt",
        )
    },
    "all kinds of images": known("--id", "kinds"),
    "a circle of links": known("--id", "circle"),
    "one image": known("--id", "far/picture 000.png"),
    "folders of all classes": known("--labels", "folders"),
    "names of all classes": known("--labels", "folders", "--classes", "names3.txt"),
    "other names, as many": known("--labels", "folders", "--classes", "others3.txt"),
    "names without labels": known("--classes", "others3.txt"),
    "two of three folders, and names": known("--id", "two", "--labels", "folders", "--classes", "names3.txt"),
    "two of three folders, and --val": known("--id", "two", "--labels", "folders", "--val", "id"),
    "weights": known("--weights", "good.pth"),
    "weights with a prefix": known("--weights", "module.pth"),
    "misnamed safetensors": known("--weights", "misnamed.pth"),
    "batches of one": known("--batch-size", "1"),
    "large batches": known("--batch-size", "100000"),
    "precision": known("--precision", "bfloat16"),
    "small forward batches": fitted("--forward-batch-size", "1"),
    "list as --val": fitted("--val", "one-based.txt"),
    "words as labels of --far": known("--far", "g=good.txt"),
    "images twice": scored("far", "far"),
    "a list to score": scored("good.txt"),
    "all kinds to score": scored("kinds"),
    "an abbreviated option": scored("far", "--form", "csv"),
}

WRONG = {
    **{
        f"labels of {name}": (known("--id", name), told)
        for name, told in {
            "one-based.txt": "has 3",
            "255.txt": "3 classes",
            "minus.txt": "-2",
            "words.csv": "'cat'",
            "half.csv": "'0.5'",
            "nan.csv": "'nan'",
            "columns.csv": "columns path and label",
            "allmissing.txt": "none of them",
            "empty.txt": "at least one image",
            "header.csv": "at least one image",
            "utf-16-le.txt": "UTF-16",
            "latin.txt": "none of them",
            "missing.txt": "No such file",
            "quotes.csv": "at least one image|none of them|CSV",
        }.items()
    },
    "a folder too many": (known("--id", "four", "--labels", "folders"), "4 class folders"),
    "a folder too few": (known("--id", "two", "--labels", "folders"), "2 class folders"),
    "a folder too few to fit": (fitted("--val", "two", "--labels", "folders"), "2 class folders"),
    "names too many": (known("--classes", "names4.txt"), "expected 3 names"),
    "names too many to fit": (fitted("--classes", "names4.txt"), "expected 3 names"),
    "a folder of another name": (known("--labels", "folders", "--classes", "mixed3.txt"), "'b'"),
    "a gap in the names": (known("--classes", "gap.txt"), "line 2"),
    "labels of a flat folder": (known("--id", "far", "--labels", "folders"), "--id"),
    "labels of a list": (known("--id", "good.txt", "--labels", "folders"), "its own"),
    "labels nowhere": (known("--labels", "nowhere.csv"), "nowhere.csv"),
    "no folder": (known("--id", "nowhere"), "--id: images"),
    "no images": (known("--id", "nothing"), "--id"),
    "a dead link": (known("--id", "dead"), "No such file"),
    "an empty file": (known("--id", "empty"), "is empty"),
    "text as an image": (known("--id", "text"), "no image"),
    "a torn image": (known("--id", "cut"), "no image|broken"),
    "32 bits": (known("--id", "huge"), "grey values"),
    "not an image": (known("--id", "net.py"), "no image"),
    "a network of one logit": (known("--labels", "folders", network="single_logit"), "single logit"),
    "one logit, unlabelled": (known(network="single_logit"), "single logit"),
    "one logit to fit": (fitted(network="single_logit"), "single logit"),
    "a lazy network": (known(network="lazy"), "not initialised"),
    "grey images wanted": (known(network="grey"), "fails on images"),
    "no linear head": (fitted(network="no_head"), "no linear head"),
    "a function that fails": (known(network="failing"), "no weights here"),
    "no such function": (known(network="netwrok"), "such as network"),
    "a syntax error": (known("--network", "syntax.py:network"), "SyntaxError"),
    "no such file": (known("--network", "no.py:network"), "no.py"),
    "no kind": (known("--network", "resnet18"), "torchvision:NAME"),
    "no weights": (known("--network", "timm:resnet18"), "missing required option: --weights"),
    "no such model": (known("--network", "torchvision:resnet19", "--weights", "default"), "such as"),
    "no folder of transformers": (known("--network", "hf:./nowhere"), "no such folder"),
    "not a folder of transformers": (
        known("--network", "hf:far"),
        "image classifier of|an installed transformers",
    ),
    **{
        f"weights {name}": (known("--weights", name), told)
        for name, told in {
            "headless.pth": "missing: fc.weight",
            "four.pth": "another shape",
            "module-object.pth": "execute code",
            "lfs.pth": "git lfs pull",
            "page.pth": "HTML",
            "cut.pth": "whole",
            "cut.safetensors": "whole",
            "zero.pth": "empty",
            "nowhere.pth": "a file",
            "default": "has its own",
            "far": "a file",
            "net.py": "does not begin",
        }.items()
    },
    "no transform": (known("--transform", "nothing"), "transform"),
    "half a transform": (known("--transform", "size=32,mean=1/2"), "one number"),
    "no size": (known("--transform", "size=0"), "1 on"),
    "batches of none": (known("--batch-size", "0"), "--batch-size"),
    "batches of words": (known("--batch-size", "many"), "invalid int"),
    "fewer workers than none": (known("--workers", "-1"), "--workers"),
    "no such device": (known("--device", "gpu"), "--device"),
    "a device without values": (known("--device", "meta"), "--device"),
    "no such precision": (known("--precision", "int8"), "precision"),
    "no forward batch": (fitted("--forward-batch-size", "0"), "forward_batch_size"),
    "no such method": (known("--methods", "nonsense"), "--methods"),
    "no method": (known("--methods", ","), "--methods"),
    "no such method to fit": (fitted("--method", "nonsense"), "--method"),
    "no such setting": (fitted("--set", "nonsense=1"), "a setting of msp"),
    "no value": (fitted("--set", "k1"), "NAME=VALUE"),
    "half a list": (fitted("--method", "adascale", "--set", "percentile=[80"), "percentile"),
    "a setting out of range": (fitted("--method", "adascale", "--set", "k1=-1"), "k1"),
    "fit_split without --train": (
        fitted("--method", "optfs", "--set", "fit_split=train"),
        "missing required option: --train",
    ),
    "a search without images": (known("--search", "--methods", "adascale"), "missing required option: --val"),
    "a set of no name": (known("--near", "far"), "NAME=DIR"),
    "a reserved name": (known("--near", "id=far"), "id"),
    "a name twice": (known("--near", "f=far"), "far"),
    "an empty name": (known("--near", "=far"), "NAME=DIR"),
    "an output that is a file": (known("-o", "net.py"), "--output"),
    "no output": (("evaluate", "--network", "x", "--id", "id", "--near", "a=b"), "--output"),
    "nothing": (("fit",), "--network, --val, --output"),
    "an output nowhere": (fitted("-o", "nowhere/d.safetensors"), "nowhere"),
    "a folder as output": (fitted("-o", "far"), "--output"),
    "an unknown option": (fitted("--nonsense"), "--nonsense"),
    "a cache that is none": (known("--cache-dir", "id"), "cache"),
    "no command": ((), "COMMAND"),
    "no such command": (("nonsense",), "nonsense"),
    "an unknown compare option": (known("--max-images", "-1"), "--max-images"),
    "a tpr of 0": (scored("far", "--tpr", "0"), "tpr"),
    "a tpr of nan": (scored("far", "--tpr", "nan"), "tpr"),
    "no such format": (scored("far", "--format", "xml"), "--format"),
    "parquet to a terminal": (scored("far", "--format", "parquet"), "--output"),
    "nothing to score": (scored("nowhere"), "nowhere"),
    "a damaged detector": (("score", "damaged.safetensors", "far", "--network", "net.py:network"), "damaged"),
    "a torn detector": (("score", "old.safetensors", "far", "--network", "net.py:network"), "damaged"),
    "no detector": (("score", "nowhere", "far", "--network", "net.py:network"), "no such file"),
    "another network": (("score", "d.safetensors", "far", "--network", "net.py:colours"), "other weights"),
    "code that is not named": (("score", "d.safetensors", "far"), "missing required option: --network"),
    "no cache": (("cache", "list", "--cache-dir", "far"), "cache"),
    "no cache named": (("cache", "list"), "--cache-dir"),
    "images of several sizes": (known("--id", "kinds", network="unsized"), "different sizes"),
    "images of several sizes to fit": (fitted("--val", "kinds", network="unsized"), "different sizes"),
}


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("OPENOOD_ADASCALE_CACHE_DIR", raising=False)
    yield
    for name in [name for name in sys.modules if name.startswith("net_") or name == "net"]:
        del sys.modules[name]


def run(folders, tmp_path, arguments):
    if any(word == "evaluate" for word in arguments[:1]):
        pytest.importorskip("openood_adascale.report.run")
        arguments = (*arguments, *(() if "--max-images" in arguments else ("--max-images", "0")))
    if arguments and arguments[0] in ("fit", "evaluate", "score"):
        arguments = (*arguments, "-q", *(() if "--workers" in arguments else ("--workers", "0")))
    moved = [
        str(tmp_path / word) if word in ("out", "d.safetensors") and arguments[0] != "score" else word
        for word in arguments
    ]
    return call(*moved, cwd=folders, check=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", RIGHT)
def test_odd_but_right_inputs_give_results(folders, tmp_path, name):
    done = run(folders, tmp_path, RIGHT[name])
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_give_one_line_and_status_2(folders, tmp_path, name):
    arguments, told = WRONG[name]
    done = run(folders, tmp_path, arguments)
    # torchao, if it is installed, logs lines of its own when transformers imports it.
    lines = [line for line in done.stderr.strip().splitlines() if not re.match("warning: |W[0-9]{4} ", line)]
    if arguments[:1] == ("score",):  # says on standard error, too, what it loads
        lines = lines[-1:]
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(lines) == 1, done.stderr
    assert any(word in lines[0] for word in told.split("|")), lines
    assert lines[0].startswith("openood-adascale")
