"""Exceptions of the pool."""

from __future__ import annotations


class PoolError(ValueError):
    """A pool that cannot be started, or an object that cannot be sent to its workers."""


class WorkerLostError(RuntimeError):
    """Work that killed its worker three times; names the images."""
