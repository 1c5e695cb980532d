"""Errors of user code as people and tools see them.

An `ErrorInfo` made here is bounded and is text that can be encoded, whatever the exception does: its
`__str__` may raise, its message may be gigabytes, its chain may be a thousand frames. The traceback
shows the user's own frames; those of Lattice, and of what loads and calls user code for it, are left out.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable

from lattice.execution import source
from lattice.execution.secrets import hide
from lattice.workflow.events import ErrorInfo

#: Longest message and traceback, in characters.
MAX_MESSAGE = 4 * 1024
MAX_TRACEBACK = 16 * 1024
#: Most classes named of an exception, its own first, and longest of their names.
MAX_KINDS = 32
MAX_KIND = 500

_NOT_USERS = (
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
    os.path.dirname(os.path.abspath(asyncio.__file__)) + os.sep,
    *source.LOADERS,
)


def shortened(text: str, limit: int) -> str:
    """`text` without secrets, and if it has more than `limit` characters, only its beginning and its end."""
    text = hide(text)
    if len(text) <= limit:
        return text
    half = (limit - 40) // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters ...\n{text[-half:]}"


def printable(text: str) -> str:
    """`text` with what UTF-8 cannot encode (lone surrogates) written as escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def type_name(kind: type) -> str:
    """The qualified name of a class; plain for builtins and for classes of a task's own source."""
    name = str(kind.__qualname__)
    module = kind.__module__
    if module not in ("builtins", "__main__"):
        name = f"{module}.{name}"
    return printable(source.readable(name, ""))


def kinds_of(kind: type) -> tuple[str, ...]:
    """The qualified names of an exception class and of its bases, as retry policies name them."""
    try:
        names = (type_name(base) for base in kind.__mro__[:MAX_KINDS] if base is not object)
        return tuple(name for name in names if len(name) <= MAX_KIND)
    except BaseException:  # a metaclass of the user's may do anything when it is looked at
        return ()


def message_of(error: BaseException) -> str:
    """The text of an exception; for `sys.exit`, what was called."""
    if isinstance(error, SystemExit):
        argument = "" if error.code is None else repr(error.code)
        return shortened(printable(f"called sys.exit({argument})"), MAX_MESSAGE)
    return shortened(printable(str(error)), MAX_MESSAGE)


def describe(error: BaseException, name: str, message: str | None = None) -> ErrorInfo:
    """What happened, with the user's own traceback. `name` is the task's.

    `message` replaces the exception's own text.
    """

    def text() -> str:
        return source.readable(message_of(error), name)

    return ErrorInfo(
        type=type_name(type(error)),
        message=printable(message) if message is not None else _or_placeholder(text),
        traceback=_or_placeholder(lambda: _traceback(error, name)),
        kinds=kinds_of(type(error)),
    )


def _or_placeholder(make: Callable[[], str]) -> str:
    try:
        return make()
    except (
        BaseException
    ) as error:  # the user's exception class may do anything when it is looked at
        return f"<the exception cannot be shown: {type_name(type(error))}>"


def _traceback(error: BaseException, name: str) -> str:
    captured = traceback.TracebackException.from_exception(error)
    _trim(captured, set())
    text = printable(source.readable("".join(captured.format()), name))
    return shortened(text.rstrip("\n"), MAX_TRACEBACK)


def _trim(captured: traceback.TracebackException, seen: set[int]) -> None:
    """Drops the frames before the user's first, in the whole chain and in groups."""
    if id(captured) in seen:
        return
    seen.add(id(captured))
    while captured.stack and captured.stack[0].filename.startswith(_NOT_USERS):
        del captured.stack[0]
    related = [captured.__cause__, captured.__context__, *(captured.exceptions or ())]
    for other in related:
        if other is not None:
            _trim(other, seen)
