"""Secrets in a folder, each in a file of its name, and how they are kept out of what is told of an attempt."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lattice.ports.secrets import SecretError, SecretNotFoundError, Secrets
from lattice.workflow.events import ErrorInfo
from lattice.workflow.task import is_secret_name

#: Longest value, in bytes: it is put into the environment of a process.
_MAX_SIZE = 32 * 1024
#: Of all values of an attempt together, in bytes. More would not go to the worker with its call, but by way of the
#: engine's object store, which writes to disk what it has no room for.
_MAX_TOGETHER = 64 * 1024
#: Shorter values are not masked, as they may stand in any text.
_SHORTEST_MASKED = 4
_MASK = "***"


class SecretFolder:
    """Each file of `folder` is a secret: its name, and as the value its text without line breaks at the end.

    Those of a tenant are in a folder of its name inside.

    It is read whenever a value is needed, so a file that is changed counts from the next attempt on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, key: str) -> bool:
        """Whether there is a file of that name."""
        tenant, _, name = key.rpartition("/")
        is_inside = "/" not in tenant and tenant not in (".", "..") and "\0" not in tenant
        try:
            return is_secret_name(name) and is_inside and (self._folder / key).is_file()
        except OSError:  # a folder that may not be entered, a name that is too long
            return False

    def value(self, key: str) -> str:
        """What is in the file. Raises SecretError."""
        if not self.has(key):
            raise SecretNotFoundError(key)
        try:
            with (self._folder / key).open("rb") as file:
                data = file.read(_MAX_SIZE + 1)
            if len(data) > _MAX_SIZE or b"\0" in data:
                raise SecretError(
                    f"the file of the secret {key!r} has more than {_MAX_SIZE} bytes, or a zero byte; text of at most "
                    f"{_MAX_SIZE} bytes is allowed"
                )
            text = data.decode().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            # Not as its cause, which may hold the value.
            reason = type(error).__name__
            raise SecretError(
                f"the file of the secret {key!r} cannot be read as text ({reason})"
            ) from None
        if not text:
            # So is a file that is just being written.
            raise SecretError(
                f"the file of the secret {key!r} is empty; put a new value into another file, and rename that to it"
            )
        return text


@dataclass(frozen=True, slots=True)
class SecretValues:
    """Values by name, as they were read at a time, in seconds since the epoch."""

    read_at: float
    by_name: Mapping[str, str] = field(repr=False)


def values_of(keys: Iterable[str], source: Secrets) -> dict[str, str]:
    """The values of the secrets of an attempt, by name. Raises SecretError."""
    values = {key.rpartition("/")[2]: source.value(key) for key in keys}
    size = sum(len(value.encode()) for value in values.values())
    if size > _MAX_TOGETHER:
        raise SecretError(
            f"the secrets {', '.join(values)} have {size} bytes together; a task may have {_MAX_TOGETHER}: let it ask "
            "for fewer, or keep long ones elsewhere, and what opens them in a secret"
        )
    return values


@contextlib.contextmanager
def in_environment(secrets: Mapping[str, str]) -> Iterator[None]:
    """Has `secrets` in the environment of this process inside, and afterwards what was there before."""
    before = {name: os.environ.get(name) for name in secrets}
    # Twice, as the interrupt of an attempt that is cancelled may meet anything, the first time too.
    try:
        try:
            os.environ.update(secrets)
            yield
        finally:
            _put_back(before)
    finally:
        _put_back(before)


def _put_back(before: Mapping[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
            # It is there alone if setting it was interrupted.
            os.unsetenv(name)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def hidden(values: Iterable[str]) -> Iterator[None]:
    """Has `hide` mask these values inside, in this process."""
    # Several batches may run at a time, which end in any order.
    mine = object()
    try:
        _hidden[mine] = tuple(values)
        yield
    finally:
        _hidden.pop(mine, None)


_hidden: dict[object, tuple[str, ...]] = {}


def hide(text: str) -> str:
    """`text` without the values that are hidden now. To be called before a text is cut: part of a value is not found."""
    # A copy that is made at once, as other threads change it.
    return masked(text, itertools.chain(*_hidden.copy().values())) if _hidden else text


def masked(text: str, values: Iterable[str]) -> str:
    """`text` without the values of secrets that stand in it as they are."""
    for value in _maskable(values):
        text = text.replace(value, _MASK)
    return text


def _maskable(values: Iterable[str]) -> list[str]:
    """Longest first, as a value may hold another."""
    return sorted({each for each in values if len(each) >= _SHORTEST_MASKED}, key=len, reverse=True)


class Masking:
    """Masks the values of secrets in a text that comes in pieces, also where one begins in a piece and ends in another.

    So the end of a piece is held back as long as it may be the beginning of a value.
    """

    def __init__(self, values: Iterable[str]) -> None:
        self._values = _maskable(values)
        # Of those that begin at one place, the first that is named: the longest.
        self._pattern = re.compile("|".join(map(re.escape, self._values)) or r"(?!)")
        self._held = ""

    def take(self, piece: str) -> str:
        """What can be told by now."""
        text = self._held + piece
        end = self._beginning(text)
        for found in self._pattern.finditer(text):
            if found.end() > end:
                end = min(end, found.start())
                break
        self._held = text[end:]
        return self._pattern.sub(_MASK, text[:end])

    def rest(self) -> str:
        """What was held back, as nothing follows; of a value that was cut, as little as of a whole one."""
        text, self._held = self._pattern.sub(_MASK, self._held), ""
        end = self._beginning(text)
        return text if len(text) - end < _SHORTEST_MASKED else text[:end] + _MASK

    def _beginning(self, text: str) -> int:
        """Where the first value begins that `text` does not hold to its end."""
        first = len(text)
        for value in self._values:
            at = text.find(value[0], max(0, len(text) - len(value) + 1))
            while 0 <= at < first:
                if value.startswith(text[at:]):
                    first = at
                at = text.find(value[0], at + 1)
        return first


def masked_error(error: ErrorInfo, values: Iterable[str]) -> ErrorInfo:
    """`error` without them."""
    kept = [*values]
    if not kept:
        return error
    return ErrorInfo(
        error.type, masked(error.message, kept), masked(error.traceback, kept), error.kinds
    )
