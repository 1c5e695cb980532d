"""Looking at folders in which others make, rename and remove files at the same time."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def files(folder: Path) -> list[Path]:
    """The files below a folder."""
    # Unlike `Path.rglob`, it passes over folders that are gone when their turn comes.
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return [path for path in found if path.is_file() and not path.is_symlink()]


def contents(folder: Path) -> dict[Path, bytes]:
    """What is in the files below a folder, but for those that go meanwhile."""
    found: dict[Path, bytes] = {}
    for path in files(folder):
        with suppress(FileNotFoundError):
            found[path] = path.read_bytes()
    return found
