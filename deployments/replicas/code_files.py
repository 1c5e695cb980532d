"""Code that is too large for Serve to keep: one file in the storage for each application."""

from __future__ import annotations

from collections.abc import Collection

from lattice.execution.storage import FsspecStorage

_FOLDER = "code"


class CodeFiles:
    """Files by the names of applications, which live as long as these. Methods block; raise OSError."""

    def __init__(self, storage: FsspecStorage) -> None:
        self._storage = storage

    def put(self, name: str, data: bytes) -> str:
        """Stores the code of an application; returns where."""
        location = f"{_FOLDER}/{name}"
        with self._storage.write(location) as file:
            file.write(data)
        return location

    def delete(self, names: Collection[str]) -> None:
        """Removes what there is of applications that are gone."""
        self._storage.delete([f"{_FOLDER}/{name}" for name in names])

    def sweep(self, prefix: str, names: Collection[str]) -> None:
        """Removes what applications under `prefix` have left that are not among `names`."""
        left = self._storage.names(_FOLDER)
        self.delete([name for name in left if name.startswith(prefix) and name not in names])
