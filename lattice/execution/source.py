"""Modules made from source that users uploaded, and the classes that such modules define.

The whole source becomes one module, executed once per process and digest and shared by all tasks that
were saved with the same text, so that they see the same classes. Nobody can import such a module by its
name; a value of one of its classes travels to other processes with the class itself: `reduce_class`
pickles the class by value, and `resolve_class` prefers the class of the loaded module where there is one,
so that `isinstance` and the identity of enum members hold from task to task.

The module is executed here: this is part of the trust boundary that `code.py` describes.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType

import cloudpickle

from lattice.ids import Digest

_MODULE_PREFIX = "lattice_task_"
#: How much of a digest names a module; enough that two sources never meet.
_DIGEST_CHARACTERS = 32
#: Classes of modules that are not loaded here, which were unpickled by value, are kept up to this many.
_MAX_FOREIGN_CLASSES = 256

#: Where the libraries lie that load user code, to be left out of tracebacks.
LOADERS = (
    os.path.dirname(os.path.abspath(cloudpickle.__file__)) + os.sep,
    os.path.abspath(ast.__file__),
)

#: Of the file that a pickled function is from, cloudpickle keeps nothing but this.
_NO_FILE = "<dynamic-code>"

_INTERNAL_NAMES = re.compile(
    rf"{_MODULE_PREFIX}[0-9a-f]+\."
    rf"|(<lattice task [0-9a-f]{{{_DIGEST_CHARACTERS}}}>|{re.escape(_NO_FILE)})"
)


@dataclass(frozen=True, slots=True)
class SourceModule:
    """A module made from source. `defined` are its own top-level names, oldest definition first.

    Attributes:
        definitions: names of top-level functions and classes.
        assigned: names that are assigned at top level.
        pickled: classes of the module pickled by value, made on demand.
    """

    module: ModuleType
    filename: str
    definitions: tuple[str, ...]
    assigned: frozenset[str]
    pickled: dict[str, bytes] = field(default_factory=dict)


_loaded: dict[str, SourceModule] = {}
_foreign_classes: dict[tuple[str, str], type] = {}


def readable(text: str, name: str) -> str:
    """`text` with the internal names of source modules replaced by what users know: the task's name."""

    def shown(match: re.Match[str]) -> str:
        return f"<lattice task {name}>" if match[1] else ""

    return _INTERNAL_NAMES.sub(shown, text)


def load_module(digest: Digest, data: bytes) -> SourceModule:
    """The module made from the source `data`; executed if it is not loaded yet.

    Raises:
        BaseException: whatever compiling or executing the source raises; the module is then not kept.
    """
    name = _MODULE_PREFIX + digest[:_DIGEST_CHARACTERS]
    if name in _loaded:
        return _loaded[name]
    filename = f"<lattice task {digest[:_DIGEST_CHARACTERS]}>"
    text = importlib.util.decode_source(data)
    # Tracebacks quote lines through linecache. An entry without a time is never checked against a file.
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    tree = ast.parse(text, filename)
    module = ModuleType(name)
    module.__file__ = filename
    loaded = SourceModule(module, filename, _definitions(tree), _assigned(tree))
    sys.modules[name] = module
    try:
        exec(compile(tree, filename, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    cloudpickle.register_pickle_by_value(module)
    _loaded[name] = loaded
    return loaded


def forget_module(digest: Digest) -> None:
    """Lets go of the module of `digest`, loaded or failed; does nothing if there is none."""
    name = _MODULE_PREFIX + digest[:_DIGEST_CHARACTERS]
    linecache.cache.pop(f"<lattice task {digest[:_DIGEST_CHARACTERS]}>", None)
    loaded = _loaded.pop(name, None)
    if loaded is not None:
        cloudpickle.unregister_pickle_by_value(loaded.module)
        sys.modules.pop(name, None)


@contextlib.contextmanager
def set_aside(digest: Digest) -> Iterator[None]:
    """Inside, the module of `digest` is not loaded, and what is loaded of it there is forgotten at the end."""
    name = _MODULE_PREFIX + digest[:_DIGEST_CHARACTERS]
    filename = f"<lattice task {digest[:_DIGEST_CHARACTERS]}>"
    kept, lines = _loaded.get(name), linecache.cache.get(filename)
    try:
        forget_module(digest)
        yield
    finally:
        forget_module(digest)
        if kept is not None and lines is not None:
            linecache.cache[filename] = lines
            sys.modules[name] = kept.module
            cloudpickle.register_pickle_by_value(kept.module)
            _loaded[name] = kept


def _definitions(tree: ast.Module) -> tuple[str, ...]:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return tuple(node.name for node in tree.body if isinstance(node, kinds))


def _assigned(tree: ast.Module) -> frozenset[str]:
    targets: list[ast.expr] = []
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets += node.targets
        elif isinstance(node, ast.AnnAssign):
            targets.append(node.target)
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


def reduce_class(
    value: object,
) -> tuple[Callable[[str, str, bytes], type], tuple[str, str, bytes]] | None:
    """How to pickle `value` if it is a top-level class of a source module, or None."""
    if not isinstance(value, type):
        return None
    loaded = _loaded.get(value.__module__)
    qualname = value.__qualname__
    if loaded is None or loaded.module.__dict__.get(qualname) is not value:
        return None
    if qualname not in loaded.pickled:
        loaded.pickled[qualname] = cloudpickle.dumps(value, protocol=5)
    return resolve_class, (value.__module__, qualname, loaded.pickled[qualname])


def resolve_class(module: str, qualname: str, pickled: bytes) -> type:
    """The class `qualname` of the source module `module`, or the one in `pickled` if that is not loaded.

    Pickled values name this function: neither its name nor its parameters may change.
    """
    loaded = _loaded.get(module)
    if loaded is not None:
        found = loaded.module.__dict__.get(qualname)
        if isinstance(found, type):
            return found
    key = (module, qualname)
    if key not in _foreign_classes:
        if len(_foreign_classes) >= _MAX_FOREIGN_CLASSES:
            del _foreign_classes[next(iter(_foreign_classes))]
        _foreign_classes[key] = cloudpickle.loads(pickled)
    return _foreign_classes[key]
