"""The arguments of an attempt: loaded for code that runs in this process, or as they are for a sandbox."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, TypeVar, cast

from lattice.execution import pickling
from lattice.execution.failures import describe, message_of, type_name
from lattice.execution.sandbox.request import Given
from lattice.execution.storage import FsspecStorage
from lattice.ports.execution import Argument
from lattice.workflow.events import ErrorInfo, Value

#: The large outputs of a task, as they come along with an attempt.
Held = Mapping[str, Any]
Loaded = TypeVar("Loaded")


class UnavailableError(Exception):
    """Code or an argument that cannot be had; `error` says why, `lost` whether trying again may help."""

    def __init__(self, error: ErrorInfo, *, lost: bool) -> None:
        super().__init__(error)
        self.error = error
        self.lost = lost


def fetch(fetch_code: Callable[[], bytes]) -> bytes:
    """What `fetch_code` gives. Raises UnavailableError."""
    try:
        return fetch_code()
    except Exception as error:
        message = f"the task's code could not be fetched: {message_of(error)}"
        info = ErrorInfo(type_name(type(error)), message)
        raise UnavailableError(info, lost=True) from error


def load(
    arguments: Sequence[Argument],
    positions: Sequence[int | None],
    upstream: Sequence[Held | None],
    storage_url: str,
    name: str,
) -> dict[str, object]:
    """The values by key, for code that runs in this process. Raises UnavailableError.

    Args:
        positions: for each argument, which of the large outputs in `upstream` holds it, or None.
        name: the task's.
    """
    params: dict[str, object] = {}
    for argument, position in zip(arguments, positions, strict=True):
        if argument.json is not None:
            params[argument.key] = json.loads(argument.json)
            continue
        held = None if position is None else upstream[position]
        try:
            params[argument.key] = value(argument, held, storage_url)
        except UnavailableError:
            raise
        except BaseException as error:
            message = (
                f"the value of {_named(argument)} could not be unpickled: "
                f"{type_name(type(error))}: {message_of(error)}"
            )
            raise UnavailableError(describe(error, name, message), lost=False) from error
    return params


def as_they_are(
    arguments: Sequence[Argument],
    positions: Sequence[int | None],
    upstream: Sequence[Held | None],
    storage_url: str,
) -> dict[str, Given]:
    """The bytes of the values by key; as `load`, without unpickling anything. Raises UnavailableError."""
    found: dict[str, Given] = {}
    for argument, position in zip(arguments, positions, strict=True):
        held = None if position is None else upstream[position]
        read = functools.partial(_bytes, argument, held, storage_url)
        found[argument.key] = _found(argument, read)
    return found


def _found(argument: Argument, read: Callable[[], Loaded]) -> Loaded:
    """What `read` gives. Raises UnavailableError where the value is not there or cannot be read."""
    try:
        return read()
    except FileNotFoundError as error:
        message = f"the value of {_named(argument)} is not in the storage: {message_of(error)}"
        raise UnavailableError(ErrorInfo("FileNotFoundError", message), lost=False) from error
    except OSError as error:
        said = message_of(error)
        message = f"the value of {_named(argument)} could not be read from the storage: {said}"
        raise UnavailableError(ErrorInfo(type_name(type(error)), message), lost=True) from error


def _named(argument: Argument) -> str:
    task, output = argument.source or ("", "")
    return f"the input {argument.key!r} (output {output!r} of task {task})"


def value(argument: Argument, held: Held | None, storage_url: str) -> object:
    """The value of an argument, unpickled. Raises UnavailableError and what unpickling raises."""
    given = argument.value
    if given is None:
        raise ValueError("no value was given")
    if given.inline is not None:
        return pickling.loads(given.inline)
    if held is not None and argument.source is not None and argument.source[1] in held:
        return pickling.loads(*held[argument.source[1]])
    with _found(argument, lambda: _open(given, storage_url)) as file:
        return pickling.load(cast("IO[bytes]", _Stored(argument, file)))


def _open(given: Value, storage_url: str) -> IO[bytes]:
    if given.location is None:
        raise FileNotFoundError("it was not stored")
    return storage(storage_url).open(given.location)


class _Stored:
    """A file of the storage, whose errors are told from those of the user's classes that are made from it."""

    def __init__(self, argument: Argument, file: IO[bytes]) -> None:
        self._argument = argument
        self._file = file

    def read(self, size: int = -1) -> bytes:
        return _found(self._argument, lambda: self._file.read(size))

    def readline(self) -> bytes:
        return _found(self._argument, self._file.readline)

    def readinto(self, buffer: Any) -> int:
        return _found(self._argument, lambda: self._file.readinto(buffer))  # type: ignore[attr-defined,no-any-return]


def _bytes(argument: Argument, held: Held | None, storage_url: str) -> Given:
    named, given = _named(argument), argument.value
    if argument.json is not None:
        return Given(named, json=argument.json)
    if given is None:
        raise FileNotFoundError("no value was given")
    if given.inline is not None:
        return Given(named, pickled=given.inline)
    if held is not None and argument.source is not None and argument.source[1] in held:
        data, buffers = held[argument.source[1]]
        return Given(named, pickled=bytes(data), buffers=tuple(map(bytes, buffers)))
    if given.location is None:
        raise FileNotFoundError("it was not stored")
    return Given(named, pickled=storage(storage_url).read(given.location))


@functools.lru_cache(maxsize=8)
def storage(url: str) -> FsspecStorage:
    """The storage at a URL."""
    return FsspecStorage(url)
