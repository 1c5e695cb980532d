"""Values too large for the database, as files under an fsspec URL that every node can reach.

A location is a path below the URL: `runs/{run}/{task}/{attempt}/{output}`. A file is written under another
name and renamed when it is complete, so nobody ever sees half a value; local files are also synced.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import IO
from urllib.parse import quote, unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem

from lattice.ids import RunId, TaskId

#: Longest part of a path that every file system takes, less what the temporary name adds.
_MAX_PART = 180


def location_of(run_id: RunId, task_id: TaskId, attempt: int, output: str) -> str:
    """Where an output of an attempt is stored."""
    return "/".join(("runs", _part(run_id), _part(task_id), str(attempt), _part(output)))


def _part(name: str) -> str:
    """A file name for any text; different texts have different names."""
    encoded = quote(name, safe="", errors="surrogatepass").replace(".", "%2E")
    if 0 < len(encoded) <= _MAX_PART:
        return encoded
    # "=" is never in an encoded name, so a digest is never taken for one.
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{encoded[:100]}={digest}"


class FsspecStorage:
    """Reads and writes values below `url`, such as `file:///var/lattice/values` or `s3://bucket/values`."""

    def __init__(self, url: str) -> None:
        filesystem, root = fsspec.core.url_to_fs(url)
        self._filesystem = filesystem
        self._root = str(root).rstrip("/")
        self._local = isinstance(filesystem, LocalFileSystem)

    def read(self, location: str, start: int = 0, size: int = -1) -> bytes:
        """Up to `size` bytes under `location` from `start`, all for -1. Raises FileNotFoundError."""
        with self.open(location) as file:
            file.seek(start)
            return file.read(size)

    def open(self, location: str) -> IO[bytes]:
        """The file under `location`, to be read. Raises FileNotFoundError."""
        path = self._path(location)
        try:
            opened: IO[bytes] = self._filesystem.open(path, "rb")
        except (IsADirectoryError, NotADirectoryError, FileExistsError):  # how file systems put it
            raise FileNotFoundError(location) from None
        return opened

    def owner(self, location: str) -> RunId:
        """The run whose task stored what is under `location`."""
        return RunId(unquote(location.split("/")[1]))

    def stored_by(self, run_id: RunId) -> list[str]:
        """Every location under which tasks of a run have left something, be it whole or not."""
        top = f"{self._root}/runs/{_part(run_id)}"
        if not self._local:
            paths = self._filesystem.find(top)
        elif os.path.islink(top):
            paths = [top]
        else:
            # Links, which only user code makes, are what is removed, not what they lead to.
            paths = [
                os.path.join(folder, name)
                for folder, folders, files in os.walk(top)
                for name in [*files, *(each for each in folders if _is_link(folder, each))]
            ]
        return [str(path)[len(self._root) + 1 :] for path in paths]

    def names(self, folder: str) -> list[str]:
        """What is in a folder below the root. Raises OSError."""
        try:
            paths = self._filesystem.ls(self._path(folder), detail=False)
        except FileNotFoundError:
            return []
        return [str(path).rpartition("/")[2] for path in paths]

    def delete(self, locations: Sequence[str]) -> None:
        """Removes what is under `locations`, and folders that become empty. Raises OSError."""
        folders: set[str] = set()
        for location in locations:
            folder, _, name = location.rpartition("/")
            # The folder must be inside the root; the name may be that of a link to anywhere.
            path = f"{self._path(folder)}/{name}"
            with contextlib.suppress(FileNotFoundError):
                if self._local:
                    os.unlink(path)
                else:
                    self._filesystem.rm_file(path)
            folders.add(folder)
        if self._local:
            for folder in folders:
                self._remove_empty(folder)

    def _remove_empty(self, folder: str) -> None:
        while folder.count("/"):  # not the folder of all runs
            try:
                os.rmdir(f"{self._root}/{folder}")
            except FileNotFoundError:
                pass
            except OSError:
                return  # something is in it
            folder = folder.rpartition("/")[0]

    @contextlib.contextmanager
    def write(self, location: str) -> Iterator[IO[bytes]]:
        """A file whose content is under `location` once the block is left; not if the block raises."""
        path = self._path(location)
        folder = path.rpartition("/")[0]
        temporary = f"{folder}/.{uuid.uuid4().hex}"
        self._filesystem.makedirs(folder, exist_ok=True)
        try:
            with self._filesystem.open(temporary, "wb") as file:
                yield file
                if self._local:
                    file.flush()
                    os.fsync(file.fileno())
            if self._local:
                os.replace(temporary, path)
                _sync_folder(folder)
            else:
                self._filesystem.mv(temporary, path)
        except BaseException:
            with contextlib.suppress(Exception):
                self._filesystem.rm_file(temporary)
            raise

    def _path(self, location: str) -> str:
        """The path of `location`. Raises FileNotFoundError if it would be outside the root."""
        parts = location.split("/")
        if any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
            raise FileNotFoundError(location)
        path = f"{self._root}/{location}"
        if self._local:
            # User code can write where its worker can, links too.
            root = os.path.realpath(self._root)
            if os.path.commonpath([root, os.path.realpath(path)]) != root:
                raise FileNotFoundError(location)
        return path


def _is_link(folder: str, name: str) -> bool:
    return os.path.islink(os.path.join(folder, name))


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
