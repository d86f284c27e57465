"""Right files of every kind that the package reads, as they are before damage; made once."""

from __future__ import annotations

import contextlib
import importlib
import io
import pickle
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from report_files import evaluator_scores, postprocessor_pickle, save_search, save_table
from safetensors.torch import save
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from openood_adascale.detectors.adascale import AdaSCALE
from openood_adascale.detectors.base import Detector
from openood_adascale.detectors.bfact import BFAct
from openood_adascale.detectors.msp import MSP
from openood_adascale.detectors.optfs import OptFS
from openood_adascale.evidence.sharing import using_store
from openood_adascale.plugin.names import configs_root

PROTOCOLS = (0, 2, 4, 5)
"""Of pickled scores."""
SIZE = 6
"""Activations of the network here."""


class Small(nn.Module):
    """A network for files of detectors, weights and stores."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.fc = nn.Linear(5, SIZE), nn.Linear(SIZE, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(self.hidden(images).relu())


@lru_cache
def network() -> Small:
    """The same in each process."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().eval()


@lru_cache
def images() -> torch.Tensor:
    """(9, 5)."""
    return torch.randn(9, 5, generator=torch.Generator().manual_seed(1))


@lru_cache
def detectors() -> dict[str, tuple[Detector, bytes]]:
    """Fitted ones, and what their files hold."""
    found = {}
    for cls in (AdaSCALE, OptFS, BFAct, MSP):
        detector = cls(network()).fit([images()], progress=False).calibrate([images()], progress=False)
        with tempfile.TemporaryDirectory() as folder:
            detector.save(Path(folder) / "d")
            found[cls.__name__] = detector, (Path(folder) / "d").read_bytes()
    return found


def loader() -> DataLoader:
    """Of what the store holds."""
    return DataLoader(TensorDataset(images(), torch.arange(len(images())) % 3), batch_size=4)


@lru_cache
def store() -> dict[str, bytes]:
    """The files of a store on disk, by their places in it."""
    with tempfile.TemporaryDirectory() as folder:
        with using_store(folder):
            AdaSCALE(network()).fit(loader(), progress=False)
        found = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@lru_cache
def stored_scores() -> np.ndarray:
    """What a detector says with no store."""
    with using_store(False):
        return AdaSCALE(network()).fit(loader(), progress=False).predict_loader(loader(), progress=False)[1]


@lru_cache
def tables() -> dict[str, bytes]:
    """Result tables: of several runs, of one, and two of main.py's in one file."""
    with tempfile.TemporaryDirectory() as folder:
        several, one = save_table(Path(folder) / "a.csv", 80, 0.25), save_table(Path(folder) / "b.csv", 90)
        rows = "".join(one.read_text().splitlines(keepends=True)[1:])
        main = f"dataset,FPR@95,AUROC,AUPR_IN,AUPR_OUT,ACC\n{rows}{rows}"
        return {"several.csv": several.read_bytes(), "one.csv": one.read_bytes(), "ood.csv": main.encode()}


@lru_cache
def search() -> bytes:
    """A table of candidates."""
    with tempfile.TemporaryDirectory() as folder:
        return save_search(Path(folder) / "search_a.csv").read_bytes()


def image_table() -> bytes:
    """What ``evaluate`` says of each image."""
    lines = [
        "set,side,path,label,prediction,class,score_adascale,percentile_adascale,score_ebo,prediction_ebo"
    ]
    for name, side in (("id", "id"), ("wolves", "near"), ("textures", "far")):
        for row in range(4):
            known = f"{row % 3},{(row + row // 3) % 3},cat" if side == "id" else f",{row % 3},dog"
            lines.append(
                f'{name},{side},"{name}/{row} 1.png",{known},{row / 7!r},8{row}.5,{-row / 3!r},{row % 3}'
            )
    return "\n".join([*lines, ""]).encode()


@lru_cache
def scores(protocol: int) -> bytes:
    """What eval_ood.py pickles."""
    found = evaluator_scores(csid=True)
    if protocol != 5:  # shorter, so that more of it is structure
        for side in ("near", "far"):
            found["ood"][side] = {name: [part[:5] for part in e] for name, e in found["ood"][side].items()}
    return pickle.dumps(found, protocol)


@lru_cache
def postprocessor() -> bytes:
    """A pickled postprocessor of this package."""
    table = {
        "percentile": ["[60, 85]", "[70, 90]"],
        "k1": np.array([1, 2], np.float32),
        "auroc": np.array([80.0, 81.0]),
    }
    with tempfile.TemporaryDirectory() as folder:
        return postprocessor_pickle(Path(folder) / "a.pkl", table).read_bytes()


@lru_cache
def npz(ood: bool = False) -> bytes:
    """One set of main.py's."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        pred=np.arange(8) % 3,
        conf=np.linspace(0, 1, 8),
        label=np.full(8, -1) if ood else np.arange(8) % 3,
    )
    return buffer.getvalue()


@lru_cache
def ymls() -> dict[str, bytes]:
    """The packaged ones by name."""
    names = ("adascale", "adascale_logit_joint", "optfs", "bfact", "lts", "adascale_vit_b_16")
    return {name: (configs_root() / "postprocessors" / f"{name}.yml").read_bytes() for name in names}


OWN = b"""name: mine
classes: [cat, dog, "old horse"]
preprocessing: {size: 8, resize: 9, mean: 0.5/0.5/0.5, std: [1, 1, 1]}
network: ResNet18_32x32
id: {train: known, val: known, test: {images: known, labels: folders}}
csid:
  blurred: {images: known.txt, root: known}
ood:
  val: unknown
  near: {birds: unknown}
  far: {textures: {images: list.csv}}
"""
"""The yml of a data set of one's own; :func:`lay_out` writes its images."""
CONFIG = b"""network: "file.py:make"
id: known
val: known
ood-val: unknown
near: {birds: unknown}
far: [textures=list.csv]
labels: folders
methods: adascale,msp,optfs
search: false
pair: adascale,msp
images: 4
published: none
out: out
batch-size: 4
workers: 0
quiet: true
classes: classes.txt
"""
"""``evaluate --config``."""
LIST = b"cat/0.png 0\ncat/1.png 0\ndog/0.png 1\n\nold horse/0.png 2\ndog/1.png {'label': 1, 'more': [1, 2]}\n"
CSV = b'path,label\nunknown/0.png,0\nunknown/1.png,1.0\n"unknown/2.png",\n'
CLASSES = b"cat\ndog\nold horse\n"
NETWORK = b"""import torch


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, 3)), torch_of


def torch_of(image):
    return torch.tensor(list(image.resize((4, 4)).tobytes())).view(4, 4, 3).permute(2, 0, 1) / 255
"""


@lru_cache
def pictures() -> dict[str, bytes]:
    """A small picture in several formats and modes."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    picture, found = Image.fromarray(pixels), {}
    grey, deep = picture.convert("L"), Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
    kinds = {
        "a.png": picture, "b.jpg": picture, "c.gif": picture.convert("P"), "d.bmp": picture, "e.tiff": picture,
        "f.webp": picture, "g.png": grey, "h.png": deep, "i.png": picture.convert("RGBA"), "j.ppm": picture,
        "k.ico": picture, "l.tga": picture, "m.tiff": picture.convert("F"), "n.png": picture.convert("1"),
        "o.jpg": picture.convert("CMYK"), "p.dds": picture, "q.pcx": picture, "r.sgi": picture, "s.jp2": picture,
    }  # fmt: skip
    for name, image in kinds.items():
        buffer = io.BytesIO()
        try:
            image.save(buffer, Image.registered_extensions()[Path(name).suffix])
        except (KeyError, OSError, ValueError):  # a Pillow without it
            continue
        found[name] = buffer.getvalue()
    return found


def lay_out(folder: Path) -> None:
    """Images, lists and a network for :data:`OWN` and :data:`CONFIG`."""
    picture = pictures()["a.png"]
    for place in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "old horse/0.png"):
        (folder / "known" / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / "known" / place).write_bytes(picture)
    (folder / "unknown").mkdir()
    for number in range(3):
        (folder / "unknown" / f"{number}.png").write_bytes(picture)
    for name, content in (
        ("known.txt", LIST), ("list.csv", CSV), ("classes.txt", CLASSES), ("file.py", NETWORK), ("mine.yml", OWN),
    ):  # fmt: skip
        (folder / name).write_bytes(content)


@lru_cache
def weights() -> dict[str, bytes]:
    """The network's, by both kinds of files."""
    buffer = io.BytesIO()
    torch.save({"state_dict": network().state_dict()}, buffer)
    return {"w.pth": buffer.getvalue(), "w.safetensors": save(network().state_dict())}


def prepare() -> None:
    """Make them all, so that cases write nothing but their own."""
    for name in ("PIL", "torchvision", "cv2"):  # whose versions a store's keys have once they are imported
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for make in (
        detectors,
        store,
        stored_scores,
        tables,
        search,
        postprocessor,
        npz,
        ymls,
        pictures,
        weights,
    ):
        make()
    for protocol in PROTOCOLS:
        scores(protocol)
    npz(ood=True)
