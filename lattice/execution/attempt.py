"""What a worker process does with an attempt, a call or a value to render. Knows nothing of Ray.

Here all that happens beside user code meets: code is loaded, arguments are unpickled, user code
runs, and what it returned is pickled, stored and summarised. What comes out is a frame of `wire`, and for
the next tasks the large outputs, pickled. Nothing that user code does makes these functions raise.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import math
import operator
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from lattice.execution import arguments, capture, pickling, sandboxed, spans, summary, wire
from lattice.execution.arguments import UnavailableError
from lattice.execution.assignment import Assignment
from lattice.execution.code import CodeLoadError, Function, load, loaded_apart
from lattice.execution.failures import describe, message_of, type_name
from lattice.execution.runner import Failed, Outcome, invoke, run_batch, run_call
from lattice.execution.sandbox.request import Request
from lattice.execution.secrets import in_environment, masked_error
from lattice.execution.storage import location_of
from lattice.ports.execution import Argument
from lattice.workflow.events import ErrorInfo, Placement, TaskFailed, TaskLost, TaskSucceeded, Value
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.task import Code

#: Bytes of all inline values of one attempt together; what goes beyond is stored.
MAX_INLINE_TOTAL = 1024 * 1024

Result = TypeVar("Result")
#: The large outputs of an attempt, for the next tasks.
Large = dict[str, pickling.Parts]


def run_attempt(
    assignment: Assignment,
    fetch_code: Callable[[], bytes],
    upstream: Sequence[Mapping[str, Any] | None],
    placement: Placement,
) -> tuple[bytes, Large | None]:
    """Runs an attempt to its end.

    Args:
        fetch_code: gives the code's bytes; called if this process has not loaded it yet.
        upstream: the large outputs of other tasks that `assignment.upstream` refers to.

    Returns:
        The frame of its end, and its large outputs if there are any.
    """
    try:
        # What code that saw secrets has kept goes once its outputs, perhaps of its classes, are packed.
        with contextlib.ExitStack() as until_packed:
            if assignment.sandbox is not None:
                outcome = _run_in_sandbox(assignment, assignment.sandbox, fetch_code, upstream)
            else:
                fetch = functools.partial(arguments.fetch, fetch_code)
                with _clean_process(assignment.has_gpu), in_environment(assignment.secrets):
                    if assignment.secrets:
                        apart = loaded_apart(assignment.code, fetch)
                        function = until_packed.enter_context(apart)
                    else:
                        function = load(assignment.code, fetch)
                    params = _arguments(assignment, upstream)
                    outcome = _run(assignment, function, params)
                del params
            if isinstance(outcome, Failed):
                return _failed(assignment, outcome.error, placement), None
            return _pack(assignment, outcome.outputs, placement)
    except CodeLoadError as error:
        return _failed(assignment, error.info, placement), None
    except UnavailableError as error:
        return _unavailable(assignment, error, placement), None
    except KeyboardInterrupt:
        # Meant for an attempt that somebody cancelled, whose report nobody reads, or, when it comes a
        # moment late, for the one before this.
        capture.flush()
        return _lost(assignment, ErrorInfo("KeyboardInterrupt", "the task was interrupted")), None
    except BaseException as error:
        return _failed(assignment, describe(error, assignment.name), placement), None


def open_function(code: Code, fetch_code: Callable[[], bytes], *, has_gpu: bool) -> Function:
    """What a replica calls for all of its attempts: a function, or the one instance of a class.

    Raises:
        CodeLoadError: the code does not load, or its class cannot be constructed.
    """
    with _clean_process(has_gpu):
        return load(code, fetch_code)


@contextlib.contextmanager
def function_with(
    code: Code, fetch_code: Callable[[], bytes], secrets: Mapping[str, str], *, has_gpu: bool
) -> Iterator[Function]:
    """The same where there are secrets: loaded while they are in the environment, and let go of at the end.

    Raises:
        CodeLoadError: as `open_function`; UnavailableError: the code cannot be had.
    """
    with contextlib.ExitStack() as until_end:
        with _clean_process(has_gpu), in_environment(secrets):
            fetch = functools.partial(arguments.fetch, fetch_code)
            function = until_end.enter_context(loaded_apart(code, fetch))
        yield function


def run_items_of(
    function: Function,
    assignments: Sequence[Assignment],
    upstream: Sequence[Sequence[Mapping[str, Any] | None]],
    placements: Sequence[Placement],
) -> list[tuple[bytes, Large | None]]:
    """Runs attempts of one definition together: as one batch if it is batched, else one after the other.

    Their secrets are in the environment already, and are masked here.

    Args:
        upstream: for each attempt the large outputs of other tasks that it refers to.

    Returns:
        For each attempt the frame of its end, and its large outputs; no failure is another's.
    """
    ends: dict[int, tuple[bytes, Large | None]] = {}
    ready: list[tuple[int, Callable[[], dict[str, object]]]] = []
    gone: dict[int, UnavailableError] = {}

    def again(position: int) -> dict[str, object]:
        gone.pop(position, None)
        try:
            return _arguments(assignments[position], upstream[position])
        except UnavailableError as error:
            gone[position] = error
            raise

    batched = assignments[0].batched
    with _clean_process(assignments[0].has_gpu):
        for position, assignment in enumerate(assignments):
            placement = placements[position]
            try:
                params = _arguments(assignment, upstream[position])
                if batched:
                    reload = functools.partial(again, position)
                    ready.append((position, _first_then(params, reload)))
                else:
                    ends[position] = _end_of(
                        assignment, _run(assignment, function, params), placement
                    )
            except UnavailableError as error:
                ends[position] = _unavailable(assignment, error, placement), None
            except BaseException as error:
                info = describe(error, assignment.name)
                ends[position] = _failed(assignment, info, placement), None
        if ready:
            items = [(params, assignments[position].output_keys) for position, params in ready]
            with spans.of_calls([assignments[position] for position, _ in ready]) as note:
                try:
                    outcomes = run_batch(function, items, assignments[0].name)
                except BaseException as error:  # a KeyboardInterrupt that user code itself raised
                    outcomes = [Failed(describe(error, assignments[0].name))] * len(items)
                # All have the same secrets, as they are of one definition.
                outcomes = [_hide_secrets(assignments[0], outcome) for outcome in outcomes]
                note([_error_of(outcome) for outcome in outcomes])
            for (position, _), outcome in zip(ready, outcomes, strict=True):
                assignment, placement = assignments[position], placements[position]
                if isinstance(outcome, Failed) and position in gone:
                    ends[position] = _unavailable(assignment, gone[position], placement), None
                else:
                    ends[position] = _end_of(assignment, outcome, placement)
    return [ends[position] for position in range(len(assignments))]


def _first_then(first: Result, again: Callable[[], Result]) -> Callable[[], Result]:
    """What gives `first` once, and then what `again` gives."""
    left = [first]
    return lambda: left.pop() if left else again()


def _end_of(
    assignment: Assignment, outcome: Outcome, placement: Placement
) -> tuple[bytes, Large | None]:
    if isinstance(outcome, Failed):
        return _failed(assignment, outcome.error, placement), None
    try:
        return _pack(assignment, outcome.outputs, placement)
    except BaseException as error:
        return _failed(assignment, describe(error, assignment.name), placement), None


def _run(assignment: Assignment, function: Function, params: dict[str, object]) -> Outcome:
    with spans.of_calls([assignment]) as note:
        if assignment.batched:
            item = (lambda: params), assignment.output_keys
            outcome = run_batch(function, [item], assignment.name)[0]
        else:
            outcome = run_call(function, params, assignment.output_keys, assignment.name)
        outcome = _hide_secrets(assignment, outcome)
        note([_error_of(outcome)])
    return outcome


def _run_in_sandbox(
    assignment: Assignment,
    limits: Sandbox,
    fetch_code: Callable[[], bytes],
    upstream: Sequence[Mapping[str, Any] | None],
) -> Outcome:
    request = Request(
        name=assignment.name,
        code=assignment.code,
        data=arguments.fetch(fetch_code),
        environment={**assignment.environment, **assignment.secrets},
        arguments=arguments.as_they_are(
            assignment.arguments, assignment.upstream, upstream, assignment.storage_url
        ),
        output_keys=assignment.output_keys,
        hidden=tuple(assignment.secrets.values()),
    )
    with spans.of_calls([assignment]) as note:
        outcome = _hide_secrets(assignment, sandboxed.run(request, limits))
        note([_error_of(outcome)])
    return outcome


def _hide_secrets(assignment: Assignment, outcome: Outcome) -> Outcome:
    if not isinstance(outcome, Failed):
        return outcome
    return Failed(masked_error(outcome.error, assignment.secrets.values()))


def _error_of(outcome: Outcome) -> ErrorInfo | None:
    return outcome.error if isinstance(outcome, Failed) else None


@contextlib.contextmanager
def _clean_process(has_gpu: bool) -> Iterator[None]:
    """Gives user code a process in order, and the next attempt one that this attempt left in order."""
    if not has_gpu:
        # The engine leaves the variable unset, and unset means all GPUs of the machine.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    folder = os.getcwd()
    streams = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        _return_to(folder)


def _return_to(folder: str) -> None:
    with contextlib.suppress(OSError):  # the user's folder may be gone
        if os.getcwd() == folder:
            return
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _arguments(
    assignment: Assignment, upstream: Sequence[Mapping[str, Any] | None]
) -> dict[str, object]:
    return arguments.load(
        assignment.arguments,
        assignment.upstream,
        upstream,
        assignment.storage_url,
        assignment.name,
    )


def _pack(
    assignment: Assignment, outputs: dict[str, object], placement: Placement
) -> tuple[bytes, Large | None]:
    """Pickles, stores and summarises what an attempt returned."""
    values: dict[str, Value] = {}
    large: Large = {}
    inline_left = max(MAX_INLINE_TOTAL, assignment.inline_value_bytes)
    room = math.inf if assignment.sandbox is None else assignment.sandbox.memory * 1024 * 1024
    for key, output in outputs.items():
        try:
            packed = pickling.pack(output, assignment.inline_value_bytes)
        except BaseException as error:
            message = (
                f"the output {key!r} ({type_name(type(output))}) cannot be pickled: "
                f"{type_name(type(error))}: {message_of(error)}; return data that other processes can "
                "take, not open files, locks or connections"
            )
            info = describe(error, assignment.name, message)
            return _failed(assignment, info, placement), None
        # One object under many keys came out of the sandbox once, and is here as often.
        room -= packed.size
        if room < 0:
            assert assignment.sandbox is not None
            message = f"its outputs, each by itself, are over {assignment.sandbox.memory} MiB"
            return _failed(assignment, ErrorInfo("SandboxLimit", message), placement), None
        if packed.size <= min(assignment.inline_value_bytes, inline_left):
            inline_left -= packed.size
            values[key] = Value(packed.size, inline=packed.data)
            continue
        location = location_of(assignment.run_id, assignment.task_id, assignment.attempt, key)
        try:
            with arguments.storage(assignment.storage_url).write(location) as file:
                size = packed.write(file)
        except OSError as error:
            message = f"the output {key!r} could not be written to the storage: {error}"
            return _lost(assignment, ErrorInfo(type_name(type(error)), message)), None
        values[key] = Value(size, location=location)
        large[key] = packed.parts()
    sizes = {key: value.size for key, value in values.items()}
    result = summary.summarise(assignment.run_id, assignment.task_id, outputs, sizes)
    end = TaskSucceeded(
        assignment.task_id, assignment.attempt, time.time(), placement, result, values
    )
    return wire.encode_end(end), large or None


def _failed(assignment: Assignment, error: ErrorInfo, placement: Placement) -> bytes:
    at = time.time()
    error = masked_error(error, assignment.secrets.values())
    end = TaskFailed(assignment.task_id, assignment.attempt, at, error, placement)
    return wire.encode_end(end)


def _unavailable(assignment: Assignment, error: UnavailableError, placement: Placement) -> bytes:
    if error.lost:
        return _lost(assignment, error.error)
    return _failed(assignment, error.error, placement)


def _lost(assignment: Assignment, error: ErrorInfo) -> bytes:
    error = masked_error(error, assignment.secrets.values())
    return wire.encode_end(TaskLost(assignment.task_id, assignment.attempt, time.time(), error))


def run_function(
    code: Code,
    fetch_code: Callable[[], bytes],
    args: bytes,
    kwargs: bytes,
    *,
    has_gpu: bool,
    limit: int,
    secrets: Mapping[str, str] | None = None,
) -> bytes:
    """Calls a function with pickled arguments; returns the frame of what it returned.

    Args:
        limit: most bytes of the pickled result.
        secrets: values by name, which are in the environment while it runs, and masked in its errors.
    """
    secrets = secrets or {}

    def failed(error: ErrorInfo) -> bytes:
        return wire.encode_call(masked_error(error, secrets.values()))

    try:
        # As with attempts: what code that saw secrets has kept goes once its result is packed.
        with contextlib.ExitStack() as until_packed:
            with _clean_process(has_gpu), in_environment(secrets):
                if secrets:
                    function = until_packed.enter_context(loaded_apart(code, fetch_code))
                else:
                    function = load(code, fetch_code)
                try:
                    given, named = pickling.loads(args), pickling.loads(kwargs)
                except BaseException as error:
                    message = (
                        "the call's arguments could not be unpickled: "
                        f"{type_name(type(error))}: {message_of(error)}"
                    )
                    return failed(describe(error, code.name, message))
                if not isinstance(given, (list, tuple)) or not isinstance(named, dict):
                    message = "the call's arguments are not a tuple and a dict"
                    return failed(ErrorInfo("TypeError", message))
                returned = invoke(function, *given, **named)
            pickled = pickling.dumps(returned)
            if len(pickled) > limit:
                return wire.encode_call(wire.TooLarge(len(pickled)))
            try:
                text = summary.json_text(returned, limit)
            except (summary.NotJsonError, summary.TooLongError):
                described = summary.description(returned, len(pickled))
                text = json.dumps(described).encode()
            return wire.encode_call((text, pickled))
    except CodeLoadError as error:
        return failed(error.info)
    except BaseException as error:
        return failed(describe(error, code.name))


def render(value: Value, storage_url: str, limit: int) -> bytes:
    """The frame of the JSON text, of at most `limit` bytes, of a stored value."""
    try:
        argument = Argument("value", None, None, value)
        with _clean_process(has_gpu=False):
            loaded = arguments.value(argument, None, storage_url)
        return wire.encode_rendering(summary.json_text(loaded, limit))
    except summary.NotJsonError as error:
        return wire.encode_rendering(wire.NotJson(str(error)))
    except summary.TooLongError as error:
        return wire.encode_rendering(wire.TooLarge(error.found))
    except UnavailableError as error:
        return wire.encode_rendering(describe(error.__cause__ or error, "value"))
    except BaseException as error:
        return wire.encode_rendering(describe(error, "value"))


def _by_fields(kind: type[Any]) -> Callable[[Any], tuple[Any, ...]]:
    names = [field.name for field in dataclasses.fields(kind)]
    values = operator.attrgetter(*names)
    return lambda instance: (kind, values(instance))


#: How what comes with each job is pickled: dataclasses with slots look up their fields at each instance.
_REDUCERS: dict[type, Callable[[Any], Any]] = {
    kind: _by_fields(kind) for kind in (Assignment, Argument, Code, Value)
}


def encode_group(assignments: Sequence[Assignment]) -> bytes:
    """Many at once, so that what they share, such as their code, is written once."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=5)
    pickler.dispatch_table = _REDUCERS
    pickler.dump([*assignments])
    return file.getvalue()


def decode_group(data: bytes) -> list[Assignment]:
    """The inverse of `encode_group`: our own classes, unpickled."""
    assignments: list[Assignment] = pickle.loads(data)
    return assignments
