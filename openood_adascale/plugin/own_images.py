"""Images of one's own as OpenOOD's loaders give them. Imports no OpenOOD, since processes that read images import this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.utils import data

from ..errors import SettingError
from ..evaluation.folders import ImageFiles, transformed
from ..evaluation.images import read_image
from ..evaluation.transforms import Transform
from .own_data import ImageSet, OwnData


class OwnImages(data.Dataset[dict[str, Any]]):
    """Image files as OpenOOD's data sets give them: a dict with ``data``, ``data_aux``, ``label`` and ``image_name``.

    Args:
        name: of the set.
        files: with the transform that makes ``data`` of an image.
        standard: the transform that makes ``data_aux``; the same object makes it once for both.
    """

    def __init__(self, name: str, files: ImageFiles, standard: Transform) -> None:
        self.name = name
        self.files = files
        self._standard = standard

    @property
    def root(self) -> str:
        """The folder that all files are in."""
        return self.files.root

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """An image.

        Raises:
            ImageError: it cannot be read, or a transform cannot take it.
        """
        place = int(index)  # samplers may give tensors
        path = self.files.paths[place]
        image = read_image(path)
        first = transformed(image, self.files.transform, path)
        same = self._standard is self.files.transform
        return {
            "image_name": path,
            "data": first,
            "data_aux": first if same else transformed(image, self._standard, path),
            "label": self.files.labels[place],
            "index": place,
        }


class Known(dict[str, Any]):
    """Loaders by what they are for; of one that the description lacks, an error that says so.

    Args:
        content: the loaders.
        place: the section of the description.
    """

    def __init__(self, content: Mapping[str, Any], place: str) -> None:
        super().__init__(content)
        self._place = place

    def __missing__(self, key: str) -> Any:
        raise SettingError(f"{self._place}: {key}", None, "images, which this postprocessor needs")


def loaders(own: OwnData, transform: Transform, standard: Transform, **options: Any) -> dict[str, Any]:
    """What OpenOOD's ``get_id_ood_dataloader`` returns, for a data set of one's own.

    Args:
        own: the data set; its images are looked for anew.
        transform: makes ``data`` of an image.
        standard: makes ``data_aux``.
        options: of PyTorch's ``DataLoader``.

    Raises:
        SettingError: there are no images, or a label is missing or wrong.
    """

    def loader(name: str, images: ImageSet, known: bool = False) -> data.DataLoader[Any]:
        files = images.find(own.classes if known else None).with_transform(transform)
        return data.DataLoader(OwnImages(f"{own.name}_{name}", files, standard), **options)

    ood: dict[str, Any] = {
        split: {name: loader(f"ood_{name}", images) for name, images in sets.items()}
        for split, sets in (("near", own.near), ("far", own.far))
    }
    if own.ood_val is not None:
        ood["val"] = loader("ood_val", own.ood_val)
    known = {split: loader(split, images, True) for split, images in own.known.items()}
    return {
        "id": Known(known, f"{own.place}: id"),
        "csid": {name: loader(f"csid_{name}", images, True) for name, images in own.shifted.items()},
        "ood": Known(ood, f"{own.place}: ood"),
    }
