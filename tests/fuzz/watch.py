"""One case is run: under an alarm, with an eye on what it writes and starts, and its error, if any, is judged."""

from __future__ import annotations

import linecache
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openood_adascale
from openood_adascale import errors

PACKAGE = str(Path(openood_adascale.__file__).parent)
FUZZ = str(Path(__file__).parent)
SECONDS = 20
"""A case that takes longer hangs."""
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_STARTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "subprocess.Popen",
    "socket.connect",
)
_CHANGES = {
    "os.mkdir": 0,
    "os.remove": 0,
    "os.rmdir": 0,
    "os.rename": 1,
    "os.link": 1,
    "os.symlink": 1,
    "os.chmod": 0,
}
"""Events, and which of their arguments is the path that is made or changed."""


class Hangs(BaseException):
    """No ``except Exception`` of the package's catches it."""


class Wrong(AssertionError):
    """A result that is not right."""


class Watcher:
    """Notes what this thread of the process writes outside of a folder, and what it starts."""

    def __init__(self) -> None:
        self._allowed: str | None = None
        self._thread = 0
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._allowed is None or threading.get_ident() != self._thread:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = bool(mode and set(mode) & set("wax+")) or bool((flags or 0) & _WRITING)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._note(event, path)
        elif event in _STARTS:
            self.seen.append(event)
        elif event in _CHANGES:
            self._note(event, arguments[_CHANGES[event]])

    def _note(self, event: str, path: Any) -> None:
        if isinstance(path, int):
            return
        whole = os.path.abspath(os.fsdecode(path))
        if whole not in (os.devnull, self._allowed) and not whole.startswith(f"{self._allowed}{os.sep}"):
            self.seen.append(f"{event} {whole}")

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Only ``folder`` may be written to."""
        self.seen, self._thread = [], threading.get_ident()
        self._allowed = str(folder)
        try:
            yield
        finally:
            self._allowed = None


_watchers: list[Watcher] = []


def watcher() -> Watcher:
    """The process's; an audit hook stays as long as it."""
    if not _watchers:
        _watchers.append(Watcher())
    return _watchers[0]


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """:class:`Hangs` after so long, where the platform has alarms."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(*_: Any) -> None:
        raise Hangs(f"it takes more than {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run_case(case: Callable[[Path], str], folder: Path) -> tuple[str, str]:
    """Run a case, which may write to ``folder`` alone.

    Returns:
        What it came to, in a word, and the finding, if it is one.
    """
    eye = watcher()
    came_to, finding = "", ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with alarm(SECONDS), eye.watching(folder):
                came_to = case(folder)
        except (Wrong, Hangs) as error:
            came_to, finding = type(error).__name__, f"{error}\n{_told(error)}"
        except Exception as error:
            came_to = type(error).__name__
            if why := not_ours(error):
                finding = f"{why}\n{_told(error)}"
    if eye.seen:
        finding += f"\nit wrote outside of its folder, or started something: {eye.seen[:5]}"
    return came_to, finding.strip()


def not_ours(error: BaseException) -> str:
    """Why an exception is no clear error of this package; empty if it is one."""
    kind, text = type(error), str(error)
    if not text.strip():
        return f"{kind.__name__} without a message"
    if kind.__module__ == errors.__name__:
        return "" if ":" in text else f"{kind.__name__} that names nothing: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1]
    raised = linecache.getline(last.filename, last.lineno or 0).strip().startswith("raise ")
    if (
        last.filename.startswith(PACKAGE)
        and raised
        and isinstance(error, ValueError | TypeError | RuntimeError)
    ):
        return "" if ":" in text else f"{kind.__name__} that names nothing: {text}"
    return f"{kind.__module__}.{kind.__name__} surfaces: {text[:300]}"


def _told(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    near = [f for f in frames if f.filename.startswith((PACKAGE, FUZZ)) and f.filename != __file__]
    shown = [f"  {f.filename}:{f.lineno} {f.line}" for f in (*near[-6:], *frames[-1:])]
    return "\n".join(dict.fromkeys(shown))


def require(right: Any, what: str) -> None:
    """Raise :class:`Wrong` unless ``right``."""
    if not right:
        raise Wrong(what)
