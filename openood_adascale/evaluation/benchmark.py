"""The loaders of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import SettingError

RESERVED = ("id", "nearood", "farood")
"""What no OOD set can be called: rows of the table and the known images' scores are."""


@dataclass
class Benchmark:
    """The loaders of an evaluation; each yields ``(images, labels)`` or OpenOOD's dicts.

    >>> sets = Benchmark(test=test_loader, near={"wolves": near_loader}, far={"textures": far_loader}, val=val_loader)
    >>> sets.loader("val") is val_loader
    True

    Args:
        test: in-distribution test images, with labels.
        near: near-OOD sets by name.
        far: far-OOD sets by name; one set at least, near or far, is needed.
        val: in-distribution validation images: what methods learn from, and half of the search.
        ood_val: OOD validation images, the other half.
        train: in-distribution training images, for methods that learn from them.
        covariate_shift: OpenOOD's ``csid`` sets by name, which count as in-distribution under full-spectrum OOD.
        classes: names of the network's classes 0, 1, …, for reports; none takes those of the test images' folders, if it has
            as many classes.
    """

    test: Iterable[Any]
    near: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    far: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    val: Iterable[Any] | None = None
    ood_val: Iterable[Any] | None = None
    train: Iterable[Any] | None = None
    covariate_shift: Mapping[str, Iterable[Any]] = field(default_factory=dict)
    classes: Sequence[str] = ()

    def __post_init__(self) -> None:
        self.covariate_shift = self.covariate_shift or {}
        for name, sets in (("near", self.near), ("far", self.far)):
            if not isinstance(sets, Mapping):
                raise SettingError(name, sets, "OOD sets, as {name: loader}")
            for key in sets:
                if not isinstance(key, str) or key in RESERVED:
                    raise SettingError(
                        f"{name}: a set's name",
                        key,
                        f"a text other than {', '.join(RESERVED)}, which tables and scores use",
                    )
        if not self.near and not self.far:
            raise SettingError("near, far", None, "at least one OOD set in one of them, as {name: loader}")
        if both := sorted({*self.near} & {*self.far}):
            raise SettingError("far: a set's name", both[0], "a name that no near set has")

    @classmethod
    def from_openood(cls, dataloader_dict: Mapping[str, Any]) -> Benchmark:
        """From ``Evaluator(...).dataloader_dict``."""
        known, ood = dataloader_dict["id"], dataloader_dict["ood"]
        return cls(
            known["test"],
            ood["near"],
            ood["far"],
            known.get("val"),
            ood.get("val"),
            known.get("train"),
            dataloader_dict.get("csid", {}),
        )

    @property
    def known(self) -> dict[str, Any]:
        """OpenOOD's ``id_loader_dict``."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def ood(self) -> dict[str, Any]:
        """OpenOOD's ``ood_loader_dict``."""
        return {"val": self.ood_val, "near": self.near, "far": self.far}

    def loader(self, name: str) -> Iterable[Any]:
        """``val``, ``ood_val`` or ``train``.

        Raises:
            ValueError: there is none.
        """
        found: Iterable[Any] | None = {"val": self.val, "ood_val": self.ood_val, "train": self.train}[name]
        if found is None:
            raise ValueError(
                f"benchmark.{name}: None is not allowed; the method needs these images to fit or search"
            )
        return found
