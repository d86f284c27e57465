"""A network where it runs, and loaders over image files as it wants them: what the commands on one's own images share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..errors import SettingError
from .folders import ImageFiles, find_broken, find_images
from .networks import Loaded, load_network

Say = Callable[[str], Any]
"""Takes a line for people."""


class Reading:
    """One network, and how images are read for it.

    Args:
        chosen: options by their names (``network``, ``weights``, ``transform``, ``device``, ``batch_size``, ``workers``,
            ``skip_broken``, ``quiet``); those left out, or None, are at their defaults.
        say: is told what is loaded, found and left out.

    Raises:
        SettingError: an option that cannot be used.
    """

    def __init__(self, chosen: Mapping[str, Any], say: Say) -> None:
        self._say = say
        self._batch = _count(chosen, "batch_size", 64)
        self._workers = _count(chosen, "workers", 2, least=0)
        self._skips = bool(chosen.get("skip_broken"))
        self.progress = False if chosen.get("quiet") else None
        """Of bars: False hides them, None shows them in a terminal."""
        self.loaded: Loaded = load_network(chosen["network"], chosen.get("weights"), chosen.get("transform"))
        say(f"{self.loaded.name}: {self.loaded.description}")
        self.loaded.network.to(_device(chosen.get("device")))

    def files(self, name: str, where: str, labels: str | None = None) -> ImageFiles:
        """The images in a folder or list, as the network wants them.

        Args:
            name: what they are, for people.
            where, labels: as :func:`~.folders.find_images` takes them.
        """
        files = find_images(where, labels).with_transform(self.loaded.transform)
        return self.without_broken(name, files) if self._skips else files

    def without_broken(self, name: str, files: ImageFiles) -> ImageFiles:
        """Those that can be read; the others are named.

        Raises:
            SettingError: there are no others.
        """
        broken = find_broken(files, self._workers, self.progress)
        for path, why in broken:
            self._say(f"{name}: left out: {path}: {why}")
        if broken:
            self._say(f"{name}: left out {len(broken)} of {len(files)} images, which cannot be read")
        if len(broken) == len(files):
            raise SettingError(name, files.root, "images of which at least one can be read")
        return files.without(broken)

    def loader(self, name: str, where: str, labels: str | None = None) -> DataLoader[Any]:
        """A loader over :meth:`files`."""
        return self.loader_of(name, self.files(name, where, labels))

    def loader_of(self, name: str, files: ImageFiles) -> DataLoader[Any]:
        """A loader in the files' order, of which it is said how many there are."""
        self._say(f"{name}: {len(files)} images")
        return self.loader_over(files)

    def loader_over(self, files: ImageFiles) -> DataLoader[Any]:
        """A loader in the files' order."""
        return DataLoader(files, batch_size=self._batch, num_workers=min(self._workers, len(files)))


def _count(chosen: Mapping[str, Any], name: str, default: int, least: int = 1) -> int:
    value = chosen.get(name)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise SettingError(f"--{name.replace('_', '-')}", value, f"a whole number from {least} on")
    return value


def _device(named: str | None) -> torch.device:
    if named is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=named).device
    except Exception as error:  # what torch raises differs from device to device
        reason = str(error).splitlines()[0]
        raise SettingError(
            "--device", named, f"cpu, cuda, cuda:1, mps or the like that is here ({reason})"
        ) from error
