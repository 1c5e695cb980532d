"""Runs one call or one batch of user code and says, per item, how it ended. Knows nothing of Ray.

User code may do what it likes: raise anything, call `sys.exit`, fork and come back from the child, return
nonsense. Each of these is an outcome of that item and of nothing else. Only a KeyboardInterrupt passes:
it is how the engine interrupts a task. A coroutine is run to its end in an event loop of its own.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from lattice.execution import forks
from lattice.execution.code import Function
from lattice.execution.failures import describe, printable, shortened, type_name
from lattice.execution.source import readable
from lattice.workflow.checks import MAX_OUTPUT_KEY, is_output_key
from lattice.workflow.events import ErrorInfo

#: Most outputs of one call. Each output is pickled and kept by itself, so a result of many keys costs much more
#: than one output that is a large dict.
MAX_OUTPUTS = 1_000


@dataclass(frozen=True, slots=True)
class Succeeded:
    """A call returned a dict with at least the declared keys."""

    outputs: dict[str, object]


@dataclass(frozen=True, slots=True)
class Failed:
    """A call raised, or returned what is no result."""

    error: ErrorInfo


Outcome = Succeeded | Failed


def invoke(function: Function, *args: object, **kwargs: object) -> object:
    """What `function` returns; a coroutine or other awaitable is run to its end.

    A child process that user code forked and that comes back from `function` ends here: it must not go on
    to report a result in its parent's name.

    Raises:
        BaseException: whatever the function raises.
    """
    generation = forks.generation()
    try:
        returned = function(*args, **kwargs)
        if inspect.isawaitable(returned):
            return asyncio.run(_wait_for(returned, generation))
    except BaseException as error:
        forks.leave_if_forked(generation, error)
        raise
    forks.leave_if_forked(generation)
    return returned


async def _wait_for(awaitable: Awaitable[object], generation: int) -> object:
    # A forked child leaves from inside the loop: closing the loop would undo, in the selector that both
    # processes share, what the parent's loop registered.
    try:
        returned = await awaitable
    except BaseException as error:
        forks.leave_if_forked(generation, error)
        raise
    forks.leave_if_forked(generation)
    return returned


def run_call(
    function: Function, params: dict[str, object], output_keys: Sequence[str], name: str
) -> Outcome:
    """Runs `function(params)`. `output_keys` must be in the dict that it returns; more keys are kept."""
    try:
        returned = invoke(function, params)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return Failed(describe(error, name))
    return _check(function, returned, output_keys, name)


def run_batch(
    function: Function,
    items: Sequence[tuple[Callable[[], dict[str, object]], Sequence[str]]],
    name: str,
) -> list[Outcome]:
    """Runs `function(batch)`, which returns as many items in the same order; an exception is an item's error.

    If the call raises or the length is wrong, the batch is split and its halves run again, so that only
    the items that really fail fail.

    Args:
        items: for each what gives its parameters, which is asked anew for each call, as the one before may have
            changed them; and the output keys that it wants, in which tasks of one code may differ.
    """
    try:
        returned = invoke(function, [params() for params, _ in items])
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = Failed(describe(error, name))
    else:
        if isinstance(returned, (list, tuple)) and len(returned) == len(items):
            return [
                _check_item(function, item, output_keys, name)
                for item, (_, output_keys) in zip(returned, items, strict=True)
            ]
        found = (
            f"{len(returned)} items"
            if isinstance(returned, (list, tuple))
            else type_name(type(returned))
        )
        failure = _refuse(
            function,
            name,
            "TypeError",
            f"a batched task takes a list and returns a list of the same length; for {len(items)} "
            f"items it returned {found}",
        )
    if len(items) == 1:
        return [failure]
    middle = len(items) // 2
    return [
        outcome
        for half in (items[:middle], items[middle:])
        for outcome in run_batch(function, half, name)
    ]


def _check_item(
    function: Function, returned: object, output_keys: Sequence[str], name: str
) -> Outcome:
    if isinstance(returned, BaseException):
        return Failed(describe(returned, name))
    return _check(function, returned, output_keys, name)


def _check(function: Function, returned: object, output_keys: Sequence[str], name: str) -> Outcome:
    """A result, if `returned` is a dict with text as keys, among them all of `output_keys`."""
    if not isinstance(returned, Mapping):
        wanted = ", ".join(map(repr, output_keys)) or "none declared"
        return _refuse(
            function,
            name,
            "TypeError",
            f"the task returned {type_name(type(returned))}; a dict with its output keys is needed "
            f"({wanted})",
        )
    try:
        outputs = dict(returned.items())
    except BaseException as error:
        return Failed(describe(error, name))
    for key in outputs:
        if not is_output_key(key):
            return _refuse(
                function,
                name,
                "TypeError",
                f"the task returned the output key {_shown(key)}; keys must be text of at most "
                f"{MAX_OUTPUT_KEY:,} bytes in UTF-8, without the character NUL",
            )
    missing = [key for key in output_keys if key not in outputs]
    if missing:
        found = ", ".join(map(repr, outputs)) or "no keys"
        return _refuse(
            function,
            name,
            "KeyError",
            f"the task did not return the declared output {', '.join(map(repr, missing))}; "
            f"it returned {found}",
        )
    if len(outputs) > max(MAX_OUTPUTS, len(output_keys)):
        return _refuse(
            function,
            name,
            "ValueError",
            f"the task returned {len(outputs)} output keys; at most {MAX_OUTPUTS} are allowed: return "
            "such a dict as the value of one key",
        )
    return Succeeded({str.__str__(key): value for key, value in outputs.items()})


def _shown(value: object) -> str:
    try:
        return shortened(printable(repr(value)), 200)
    except BaseException:  # the user's __repr__ may do anything
        return f"of type {type_name(type(value))}"


def _refuse(function: Function, name: str, kind: str, message: str) -> Failed:
    """A failure that no line of user code raised; the traceback shows where the function is."""
    message = shortened(printable(message), 4_000)
    lines = [f"{kind}: {message}"]
    method = function if inspect.isroutine(function) else type(function).__call__
    code = getattr(inspect.unwrap(method), "__code__", None)
    if code is not None:
        where = f'  File "{code.co_filename}", line {code.co_firstlineno}, in {code.co_name}'
        lines.insert(0, printable(readable(where, name)))
    return Failed(ErrorInfo(kind, message, "\n".join(lines)))
