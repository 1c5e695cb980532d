"""Plain data: what comes out of a sandbox. Reading it runs nothing, whoever wrote it.

It travels as a pickle, of which only what makes plain data is read: a pickle runs code through the classes and
functions that it names, and all but a few harmless ones are refused.
"""

from __future__ import annotations

import contextlib
import datetime
import decimal
import io
import pickle
import resource
from collections.abc import Iterator
from pathlib import Path

_MIB = 1024 * 1024
_CLASSES: dict[tuple[str, str], type] = {
    ("builtins", "complex"): complex,
    ("datetime", "date"): datetime.date,
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "time"): datetime.time,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
}


class NotPlainError(Exception):
    """Something else than plain data; its text says what."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> type:
        found = _CLASSES.get((module, name))
        if found is None:
            raise NotPlainError(f"it holds {module}.{name}")
        return found


def dumps(value: object) -> bytes:
    """`value` as bytes. Raises NotPlainError."""
    try:
        data = pickle.dumps(value, protocol=5)
        loads(data)
    except NotPlainError:
        raise
    except Exception as error:
        raise NotPlainError(f"{type(error).__name__}: {error}") from error
    return data


def loads(data: bytes) -> object:
    """The inverse of `dumps`, for bytes of anybody. Raises NotPlainError."""
    try:
        return _Unpickler(io.BytesIO(data)).load()
    except NotPlainError:
        raise
    except Exception as error:
        raise NotPlainError(f"{type(error).__name__} where it is read") from error


@contextlib.contextmanager
def bounded_memory(size: int) -> Iterator[None]:
    """Reading so many bytes inside raises MemoryError where it takes much more than plain data does.

    A few bytes of a pickle can ask for a table of gigabytes.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = now + 64 * size + 256 * _MIB
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
