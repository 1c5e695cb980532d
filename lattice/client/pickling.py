"""Pickles of the user's code and values, for processes that have none of the user's modules.

Functions and classes of the user's own modules travel by value: those that are neither part of the
standard library, nor installed in site-packages, nor Lattice itself. Code has the same bytes from every
process that runs the same script, as far as `stable` says; data in it that is nested more than about a
hundred levels deep goes through plain cloudpickle, without that promise.
"""

from __future__ import annotations

import base64
import inspect
import io
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager

import cloudpickle

from lattice.client import stable
from lattice.client.errors import UnpicklableError
from lattice.client.modules import user_modules

#: That of cloudpickle.
VERSION: str = cloudpickle.__version__

#: Steps from a function to what of it cannot be pickled that an error names.
_LONGEST_PATH = 10

_lock = threading.RLock()


def dumps_code(code: object) -> bytes:
    """Pickles a function or class, with the same bytes from every process that runs the same script.

    Raises:
        UnpicklableError: something that it uses cannot be pickled; the message names it.
    """
    with _by_value() as names:
        try:
            try:
                return stable.dumps(code, names)
            except RecursionError:
                return bytes(cloudpickle.dumps(code))
        except Exception as error:
            raise _explained(code, _name(code), error, names) from error


def dumps_value(value: object, name: str) -> bytes:
    """Pickles a value that errors call `name`. Raises UnpicklableError."""
    with _by_value() as names:
        file = io.BytesIO()
        try:
            stable.ValuePickler(file, names).dump(value)
        except Exception as error:
            raise _explained(value, name, error, names) from error
        return file.getvalue()


def text(pickled: bytes) -> str:
    """The form in which the API takes a pickle."""
    return base64.b64encode(pickled).decode()


def loads(data: bytes) -> object:
    """The object in a pickle. Only for what the user's own tasks returned: loading runs code."""
    loaded: object = stable.ValueUnpickler(io.BytesIO(data)).load()
    return loaded


@contextmanager
def _by_value() -> Iterator[frozenset[str]]:
    """Has cloudpickle take the user's modules by value for a while; yields their names."""
    # The registration is global in cloudpickle, so two threads must not undo each other's.
    with _lock:
        modules = user_modules()
        before = cloudpickle.list_registry_pickle_by_value()
        added = [module for module in modules if module.__name__ not in before]
        for module in added:
            cloudpickle.register_pickle_by_value(module)
        try:
            yield frozenset(module.__name__ for module in modules) | before
        finally:
            for module in added:
                cloudpickle.unregister_pickle_by_value(module)


def _explained(obj: object, name: str, error: Exception, names: frozenset[str]) -> UnpicklableError:
    """`error` with the way from `obj` to what cannot be pickled."""
    path: list[str] = []
    step: object = obj
    while len(path) < _LONGEST_PATH:
        found = next(
            ((name, part) for name, part in _parts(step, names) if not _picklable(part, names)),
            None,
        )
        if found is None:
            break
        path.append(found[0])
        step = found[1]
    return UnpicklableError(name, " -> ".join(path), type(step).__qualname__, str(error))


def _name(code: object) -> str:
    return str(getattr(code, "__qualname__", None) or type(code).__qualname__)


def _parts(obj: object, names: frozenset[str]) -> Iterator[tuple[str, object]]:
    """What `obj` takes with it, each part with a name."""
    if isinstance(obj, types.FunctionType):
        variables = inspect.getclosurevars(obj)
        yield from {**variables.globals, **variables.nonlocals}.items()
        for name, value in (obj.__kwdefaults__ or {}).items():
            yield f"default of {name}", value
        yield from ((f"default {number}", v) for number, v in enumerate(obj.__defaults__ or (), 1))
    elif isinstance(obj, types.ModuleType):
        if obj.__name__ in names:
            yield from ((key, v) for key, v in vars(obj).items() if key not in stable.IMPORT_TRACES)
    elif isinstance(obj, type):
        yield from (
            (key, v) for key, v in vars(obj).items() if not key.startswith("__") or callable(v)
        )
    elif isinstance(obj, dict):
        yield from ((f"[{key!r}]", value) for key, value in obj.items())
    elif isinstance(obj, list | tuple | set | frozenset):
        yield from ((f"[{number}]", value) for number, value in enumerate(obj))
    elif hasattr(obj, "__dict__") and "__reduce__" not in type(obj).__dict__:
        yield from vars(obj).items()


def _picklable(obj: object, names: frozenset[str]) -> bool:
    try:
        stable.dumps(obj, names, class_ids=False)
    except Exception:
        return False
    return True
