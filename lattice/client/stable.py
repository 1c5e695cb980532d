"""Pickles whose bytes do not depend on the process that writes them.

The service knows a task by the hash of its code's bytes, so the same script must give the same bytes in
every process. cloudpickle does not promise that. `dumps` makes it so for
- sets and frozensets, whose order depends on PYTHONHASHSEED, wherever they are: constants, globals,
  defaults, closures, attributes. They are written in sorted order;
- classes, which cloudpickle marks with a random id. The id becomes a hash of the class's content, and is
  made known to cloudpickle, so that an instance that comes back is an instance of the class here;
- equal strings, bytes and tuples, which are one object or two by the accident of interning and of how a
  module was loaded. Equal ones are written as one;
- file names: of a path, its last part is kept, and `__file__` only where the code mentions it;
- the loaded submodules of a package and the registered subclasses of an abstract class: sorted.

Not covered is what really differs: a global that holds a time, a list made by iterating over a set, the
words that a dataclass without a docstring is given about a default that is a set.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import io
import operator
import pickle
import threading
import types
import typing
import weakref
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as internals

from lattice.client import sources
from lattice.client.modules import is_user_made

#: Functions carry their declaration as a task in this attribute; it stays at home.
DECLARATION = "__lattice_task__"

#: A function that stands for another carries that one in this attribute; the other is what is sent.
STANDS_FOR = "__lattice_stands_for__"

#: What cloudpickle writes in place of every file name.
_ANONYMOUS_FILE = "<dynamic-code>"

#: What a module's import leaves in it, and its making anew does not need.
IMPORT_TRACES = frozenset(
    ("__builtins__", "__cached__", "__file__", "__loader__", "__path__", "__spec__")
)

_ATOMS = (str, bytes, int, bool, float, complex, type(None), type(...))

#: Longest tuple that is compared by value with others.
_COMPARED_TUPLE = 1000

_lock = threading.RLock()
_class_ids: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def dumps(obj: object, names: frozenset[str], *, class_ids: bool = True) -> bytes:
    """The pickle of `obj`, with what is from the modules `names` by value.

    Without `class_ids`, classes get no ids: that is for making ids, and for comparing.
    """
    file = io.BytesIO()
    _StablePickler(file, names, class_ids=class_ids).dump(obj)
    return file.getvalue()


class _StablePickler(pickle._Pickler):
    """Asks cloudpickle how to take things apart, and writes the parts in a fixed form.

    The pickler written in Python is used (as joblib does to hash), as the one in C leaves no say in
    how sets and strings are written.
    """

    def __init__(self, file: io.BytesIO, names: frozenset[str], *, class_ids: bool) -> None:
        super().__init__(file, protocol=cloudpickle.DEFAULT_PROTOCOL)
        self._names = names
        self._ids = class_ids
        self._cloud = cloudpickle.Pickler(io.BytesIO())
        self._equals: dict[object, object] = {}
        self.dispatch_table: ChainMap[type, Callable[[Any], Any]] = ChainMap(
            {
                types.CodeType: self._reduce_code,
                types.ModuleType: self._reduce_module,
                typing.TypeVar: self._reduce_typevar,
                typing.NewType: self._reduce_new_type,
                type(functools.lru_cache(len)): self._reduce_cached,
            },
            self._cloud.dispatch_table,
        )

    def save(self, obj: object, save_persistent_id: bool = True) -> None:
        if type(obj) in (str, bytes, tuple, frozenset):
            key = _value_key(obj)
            if key is not None:
                obj = self._equals.setdefault(key, obj)
        super().save(obj, save_persistent_id)  # type: ignore[misc]  # typeshed leaves it out

    def save_global(self, obj: object, name: str | None = None) -> None:
        found = name or getattr(obj, "__qualname__", None) or getattr(obj, "__name__", "")
        module = pickle.whichmodule(obj, found)  # type: ignore[attr-defined]  # typeshed leaves it out
        if module == "__main__" or module in self._names:
            raise pickle.PicklingError(
                f"{found!r} of module {module!r} can only be named, and the service does not have "
                "that module"
            )
        super().save_global(obj, name)  # type: ignore[misc]  # typeshed leaves it out

    def reducer_override(self, obj: object) -> Any:
        if type(obj) in (set, frozenset):
            return type(obj), (self._sorted(typing.cast("set[object]", obj)),)
        if isinstance(obj, types.FunctionType):
            return self._reduce_function(obj)
        if isinstance(obj, type):
            return self._reduce_class(obj)
        return NotImplemented

    def _sorted(self, items: set[object]) -> list[object]:
        if all(type(item) is str for item in items):
            return sorted(items, key=str)
        return sorted(
            items,
            key=lambda item: (
                repr(item)
                if type(item) in _ATOMS
                else hashlib.sha256(dumps(item, self._names, class_ids=False)).hexdigest()
            ),
        )

    def _reduce_function(self, function: types.FunctionType) -> Any:
        if STANDS_FOR in function.__dict__:
            return _in_place(function.__dict__[STANDS_FOR], self.reducer_override)
        reduced = self._cloud.reducer_override(function)
        if not isinstance(reduced, tuple):
            return reduced
        construct, arguments, (attributes, slots), *rest = reduced
        for item in arguments:
            if isinstance(item, dict):  # the function's module globals, as far as imports need them
                item.pop("__file__", None)
                item.pop("__path__", None)
        attributes.pop(DECLARATION, None)
        slots["_cloudpickle_submodules"].sort(key=lambda module: module.__name__)
        return (construct, arguments, (attributes, slots), *rest)

    def _reduce_class(self, cls: type) -> object:
        reduced = self._cloud.reducer_override(cls)
        if not isinstance(reduced, tuple) or len(reduced) < 3:
            return reduced
        attributes = reduced[2][0]
        attributes.pop(DECLARATION, None)
        if "_abc_impl" in attributes:
            attributes["_abc_impl"].sort(key=lambda each: (each.__module__, each.__qualname__))
        if "__static_attributes__" in attributes:  # from Python 3.13 on, in the order of a set
            attributes["__static_attributes__"] = tuple(sorted(attributes["__static_attributes__"]))
        return _with_class_id(cls, reduced, _class_id(cls, self._names) if self._ids else None)

    def _reduce_code(self, code: types.CodeType) -> object:
        construct, arguments = self._cloud.dispatch_table[types.CodeType](code)
        label = sources.label(code.co_filename)
        return construct, tuple(label if item == _ANONYMOUS_FILE else item for item in arguments)

    def _reduce_module(self, module: types.ModuleType) -> object:
        if module.__name__ not in self._names:
            return self._cloud.dispatch_table[types.ModuleType](module)
        # In two steps, so that modules may import each other.
        state = {name: value for name, value in vars(module).items() if name not in IMPORT_TRACES}
        return types.ModuleType, (module.__name__,), state

    def _reduce_typevar(self, variable: typing.TypeVar) -> object:
        construct, arguments = self._cloud.dispatch_table[typing.TypeVar](variable)
        if construct is getattr:
            return construct, arguments
        return construct, (*arguments[:-1], None)

    def _reduce_new_type(self, kind: typing.NewType) -> object:
        if not is_user_made(kind, self._names):
            return kind.__reduce__()
        return typing.NewType, (kind.__name__, kind.__supertype__)

    def _reduce_cached(self, cached: functools._lru_cache_wrapper[object]) -> object:
        if not is_user_made(cached, self._names):
            return cached.__reduce__()
        parameters = cached.cache_parameters()
        return operator.call, (
            _CacheDecorator(parameters["maxsize"], parameters["typed"]),
            cached.__wrapped__,
        )


class _CacheDecorator:
    """Becomes `functools.lru_cache(maxsize, typed)` where it is unpickled."""

    def __init__(self, maxsize: int | None, typed: bool) -> None:
        self._parameters = (maxsize, typed)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[int | None, bool]]:
        return functools.lru_cache, self._parameters


def _value_key(obj: object) -> object | None:
    """A key that equal constants of equal type share; None where `obj` is not only made of atoms."""
    kind = type(obj)
    if kind in (float, complex):
        return kind, repr(obj)  # 0.0 and -0.0 are equal, and are not the same
    if kind in _ATOMS:
        return kind, obj
    if kind in (tuple, frozenset):
        items = typing.cast("tuple[object, ...]", obj)
        if len(items) > _COMPARED_TUPLE:
            return None
        keys = [_value_key(item) for item in items]
        if None in keys:
            return None
        return kind, (tuple(keys) if kind is tuple else frozenset(keys))
    return None


def _in_place(code: object, reduce: Callable[[object], Any]) -> Any:
    """How to make `code` where something that stands for it is pickled."""
    reduced = reduce(code)
    # What is pickled by name cannot be named in place of something else; a copy of a function is itself.
    return reduced if isinstance(reduced, tuple) else (copy.copy, (code,))


# -- classes ---------------------------------------------------------------------------------


def _class_id(cls: type, names: frozenset[str]) -> str:
    """A hash of the class's content, by which processes know it again."""
    with _lock:
        if cls not in _class_ids:
            content = dumps(cls, names, class_ids=False)
            _class_ids[cls] = hashlib.sha256(content).hexdigest()[:32]
        return _class_ids[cls]


def _with_class_id(cls: type, reduced: object, class_id: str | None) -> object:
    """What cloudpickle makes of a class, with `class_id` in place of its random one."""
    random_id = internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)
    if not isinstance(reduced, tuple) or random_id is None:
        return reduced
    if class_id is not None:
        with internals._DYNAMIC_CLASS_TRACKER_LOCK:
            internals._DYNAMIC_CLASS_TRACKER_BY_CLASS[cls] = class_id
            # The newest of equal classes is the one that a notebook's user means.
            internals._DYNAMIC_CLASS_TRACKER_BY_ID[class_id] = cls
    arguments = tuple(class_id if item is random_id else item for item in reduced[1])
    return (reduced[0], arguments, *reduced[2:])


class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle's own pickler, with class ids that agree with those in pickled code."""

    def __init__(self, file: io.BytesIO, names: frozenset[str]) -> None:
        super().__init__(file)
        self._names = names

    def reducer_override(self, obj: object) -> Any:
        if isinstance(obj, types.FunctionType) and STANDS_FOR in obj.__dict__:
            return _in_place(obj.__dict__[STANDS_FOR], self.reducer_override)
        reduced = super().reducer_override(obj)
        if isinstance(obj, type) and isinstance(reduced, tuple):
            return _with_class_id(obj, reduced, _class_id(obj, self._names))
        return reduced


class ValueUnpickler(pickle.Unpickler):
    """Loads values whose classes may be this process's own, and leaves those as they are.

    Values bring their classes along. Where cloudpickle knows a class, it sets all its attributes anew:
    here that would put copies of the methods, with copies of their globals, in place of the user's.
    """

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) == (internals.__name__, internals._class_setstate.__name__):
            return _complete_class
        return super().find_class(module, name)


def _complete_class(cls: type, state: object) -> type:
    with _lock:
        if cls not in _class_ids:
            internals._class_setstate(cls, state)
            # It keeps the id that it came with when it is sent back.
            class_id = internals._DYNAMIC_CLASS_TRACKER_BY_CLASS.get(cls)
            if class_id is not None:
                _class_ids[cls] = class_id
    return cls
