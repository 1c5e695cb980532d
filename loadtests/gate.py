"""Tasks that wait until a benchmark lets them end: for a file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from loadtests.driving import task

_WAITS = """
import os, time

def work(given):
    while not os.path.exists({path!r}):
        time.sleep(0.05)
    return {{"out": given["x"]}}
"""
#: So much that one at a time runs on two CPUs, and tasks of other kinds beside it.
_CPUS = 1.5


class Gate:
    """Shut until it is opened."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def task(self, name: str, x: object) -> dict[str, Any]:
        """A task of a document that waits, and hands on its input."""
        return task(name, _WAITS.format(path=str(self._path)), cpu=_CPUS, x=x)

    def open(self) -> None:
        """Lets all tasks end."""
        self._path.touch()


@contextmanager
def gate() -> Iterator[Gate]:
    """A gate of one's own."""
    with TemporaryDirectory() as folder:
        yield Gate(Path(folder) / "open")
