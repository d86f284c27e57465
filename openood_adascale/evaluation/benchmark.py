"""The loaders of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..errors import NotFiniteError, SettingError

RESERVED = ("id", "nearood", "farood")
"""Names that no OOD set may have: those of the ID scores and of rows of the table."""


@dataclass
class Benchmark:
    """The loaders of an evaluation; each yields ``(images, labels)``, images, or mappings of them.

    >>> sets = Benchmark(test=test_loader, near={"wolves": near_loader}, far={"textures": far_loader}, val=val_loader)
    >>> sets.loader("val") is val_loader
    True

    Args:
        test: ID test images, with labels for the accuracy.
        near: Near-OOD sets by name.
        far: Far-OOD sets by name; at least one set, near or far, is required.
        val: ID validation images, for fitting and for the search.
        ood_val: OOD validation images, for the search.
        train: ID training images, for methods that are fitted on them.
        covariate_shift: OpenOOD's ``csid`` sets by name, which count as ID in full-spectrum OOD detection.
        classes: Names of the network's classes 0, 1, … (default: those of the test images' folders, if there is one for
            each class). Class folders are matched to them by name.

    Raises:
        SettingError: No OOD set, or a name that is reserved or used twice.
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
                if not isinstance(key, str) or not key.strip() or key in RESERVED:
                    allowed = f"a text other than {', '.join(RESERVED)}, which tables and scores use"
                    raise SettingError(f"{name}: a set's name", key, allowed)
        if not self.near and not self.far:
            raise SettingError("near, far", None, "at least one OOD set in one of them, as {name: loader}")
        if both := sorted({*self.near} & {*self.far}):
            raise SettingError("far: a set's name", both[0], "a name that no near set has")

    @classmethod
    def from_openood(cls, dataloader_dict: Mapping[str, Any]) -> Benchmark:
        """Return the benchmark of OpenOOD's loaders.

        Args:
            dataloader_dict: ``Evaluator(...).dataloader_dict``.
        """
        id_loaders, ood_loaders = dataloader_dict["id"], dataloader_dict["ood"]
        return cls(
            id_loaders["test"],
            ood_loaders["near"],
            ood_loaders["far"],
            id_loaders.get("val"),
            ood_loaders.get("val"),
            id_loaders.get("train"),
            dataloader_dict.get("csid", {}),
        )

    @property
    def id_loader_dict(self) -> dict[str, Any]:
        """OpenOOD's ``id_loader_dict``."""
        return {"train": self.train, "val": self.val, "test": self.test}

    @property
    def ood_loader_dict(self) -> dict[str, Any]:
        """OpenOOD's ``ood_loader_dict``."""
        return {"val": self.ood_val, "near": self.near, "far": self.far}

    def test_loaders(self, full_spectrum: bool = False) -> Iterator[tuple[str, Iterable[Any]]]:
        """Yield name and loader of the test images: ``id`` for all that count as ID, then the OOD sets."""
        yield "id", self.test
        if full_spectrum:
            for loader in self.covariate_shift.values():
                yield "id", loader
        yield from {**self.near, **self.far}.items()

    def loader(self, name: str) -> Iterable[Any]:
        """Return ``val``, ``ood_val`` or ``train``."""
        found: Iterable[Any] | None = {"val": self.val, "ood_val": self.ood_val, "train": self.train}[name]
        if found is None:
            raise SettingError(f"benchmark.{name}", None, "images, which a method needs to fit or search")
        return found


@contextmanager
def naming(name: str) -> Iterator[None]:
    """Put the name of a set in front of errors of a pass over its images."""
    try:
        yield
    except NotFiniteError as error:
        raise NotFiniteError(f"{name}: {error.what}", error.rows, error.names) from error
    except (ValueError, TypeError, RuntimeError) as error:
        if type(error) not in (ValueError, TypeError, RuntimeError):  # others name what they are about
            raise
        raise type(error)(f"{name}: {error}") from error
