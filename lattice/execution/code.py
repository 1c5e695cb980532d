"""Loading users' code: the trust boundary.

Bytes that users sent are unpickled and executed only in processes that run user tasks, and those are the
processes that use this module. Whoever handles code elsewhere (ingress, orchestrator, dispatcher) passes
it on as opaque bytes named by their digest.

What is loaded is kept, per process, by digest, form and name: code is loaded once per worker and
definition, and a class is constructed once and its instance called. Code that is loaded where a secret is to be
seen may keep it (`client = OpenAI()` at its top level), so it is loaded for its one attempt and let go.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle

from lattice.execution import forks, source
from lattice.execution.failures import describe, message_of, type_name
from lattice.workflow.events import ErrorInfo
from lattice.workflow.task import Code, CodeForm

#: Definitions kept in one process; the least recently used goes first.
MAX_LOADED = 64

Function = Callable[..., Any]


class CodeLoadError(Exception):
    """Code that does not load. `info` says why and what to do, with the user's own traceback."""

    def __init__(self, info: ErrorInfo) -> None:
        super().__init__(info)
        self.info = info


_functions: OrderedDict[Code, Function] = OrderedDict()
_lock = threading.RLock()


def load(code: Code, fetch: Callable[[], bytes]) -> Function:
    """What to call for `code`. `fetch` gives its bytes and is only called if it is not loaded yet.

    Raises:
        CodeLoadError: the code does not load, holds no function, or its class cannot be constructed.
            Nothing is kept then.
    """
    with _lock:
        if code in _functions:
            _functions.move_to_end(code)
            return _functions[code]
        function = _load(code, fetch())
        _functions[code] = function
        while len(_functions) > MAX_LOADED:
            old, _ = _functions.popitem(last=False)
            if not any(kept.digest == old.digest for kept in _functions):
                source.forget_module(old.digest)
        return function


@contextlib.contextmanager
def loaded_apart(code: Code, fetch: Callable[[], bytes]) -> Iterator[Function]:
    """As `load`, of code that nobody has called before, or will after.

    Raises:
        CodeLoadError: as `load`.
    """
    data = fetch()
    with source.set_aside(code.digest):
        with _lock:
            function = _load(code, data)
        yield function


def _load(code: Code, data: bytes) -> Function:
    generation = forks.generation()
    try:
        return _construct(_open(code, data), code.name)
    finally:
        forks.leave_if_forked(generation)


def _open(code: Code, data: bytes) -> object:
    """The object that `data` stands for: unpickled, or picked out of the module made from source."""
    try:
        if code.form is CodeForm.PICKLE:
            return cloudpickle.loads(data)
        module = source.load_module(code.digest, data)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = CodeLoadError(describe(error, code.name, _advice(error)))
        if code.form is CodeForm.SOURCE:
            source.forget_module(code.digest)
        raise failure from error
    return _pick(module, code.name)


def _pick(loaded: source.SourceModule, name: str) -> object:
    namespace = loaded.module.__dict__
    if name in namespace and (name in loaded.definitions or name in loaded.assigned):
        return namespace[name]
    for defined in reversed(loaded.definitions):
        if defined in namespace:
            return namespace[defined]
    raise CodeLoadError(
        ErrorInfo(
            "ValueError",
            f"the source of task {name!r} defines no function or class at its top level; "
            f"define one, for example: def run(params): ...",
        )
    )


def _construct(loaded: object, name: str) -> Function:
    """`loaded` itself, or an instance if it is a class."""
    function = loaded
    if isinstance(loaded, type):
        try:
            function = loaded()
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            message = f"constructing {type_name(loaded)} failed: {message_of(error)}"
            raise CodeLoadError(describe(error, name, message)) from error
    if callable(function):
        return function
    kind = type_name(type(function))
    what = (
        f"its class {kind} has no method __call__(self, params)"
        if isinstance(loaded, type)
        else f"it is a {kind}"
    )
    raise CodeLoadError(
        ErrorInfo("TypeError", f"the code of task {name!r} cannot be called: {what}")
    )


def _advice(error: BaseException) -> str:
    """Why code does not load, in words that say what to do."""
    text = message_of(error)
    if isinstance(error, SyntaxError):
        where = f" in line {error.lineno}" if error.lineno else ""
        return f"the task's source is not valid Python{where}: {error.msg}"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = error.name.partition(".")[0]
        return (
            f"the task's code needs the module {error.name!r}, which the workers do not have; install "
            f'it on the workers, ask for it with runtime_env {{"pip": ["{package}"]}}, or, if it is a '
            "file of your own, put what it defines into the task's code"
        )
    return f"the task's code could not be loaded: {type_name(type(error))}: {text}"
