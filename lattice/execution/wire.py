"""How a worker's answers travel to the dispatcher: JSON and opaque bytes, never a pickle.

A frame is the length of a JSON header, the header, and the blobs that it counts. Whatever user code does
in its process, the dispatcher parses JSON and slices bytes, and unpickles nothing.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lattice.errors import UserCodeError
from lattice.ids import NodeId, RunId, TaskId
from lattice.ports.execution import CallResult, LogEntry, TaskLogged
from lattice.workflow.checks import is_output_key
from lattice.workflow.events import (
    ErrorInfo,
    Placement,
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    Value,
)

_LENGTH = struct.Struct("<I")
#: In place of the length of a header: what was printed comes before the frame.
_WITH_LOGS = b"\xff\xff\xff\xff"
_ERROR = re.compile(r"\[lattice-error:([A-Za-z0-9+/=]+)\]")

#: More than anything prints; what JavaScript counts up to.
MAX_OFFSET = 2**53
#: Longest name of a level or a logger; latest time of anything.
_MAX_NAME = 200
_MAX_TIME = 2.5e11

# Made here, so that user code that replaces functions of `json` in its process does not matter.
_encode = json.JSONEncoder(separators=(",", ":")).encode
_decode = json.JSONDecoder().decode


class FrameError(Exception):
    """Bytes that are no frame: user code has damaged its process. What they are is not repeated."""


@dataclass(frozen=True, slots=True)
class TooLarge:
    """An answer over the limit; `found` in bytes."""

    found: int


@dataclass(frozen=True, slots=True)
class NotJson:
    """A value that was asked for as JSON and is none."""

    reason: str


End = TaskSucceeded | TaskFailed | TaskLost
Rendering = bytes | NotJson | TooLarge | ErrorInfo


def _frame(header: object, blobs: Sequence[bytes] = ()) -> bytes:
    text = _encode([header, [len(blob) for blob in blobs]]).encode()
    return b"".join((_LENGTH.pack(len(text)), text, *blobs))


def _unframe(frame: bytes) -> tuple[Any, list[bytes]]:
    (length,) = _LENGTH.unpack_from(frame)
    position = _LENGTH.size + length
    header, lengths = _decode(frame[_LENGTH.size : position].decode())
    blobs = []
    for length in lengths:
        blobs.append(frame[position : position + length])
        position += length
    return header, blobs


def encode_end(end: End) -> bytes:
    """The frame of an attempt's end."""
    header: dict[str, object] = {"task": end.task_id, "attempt": end.attempt, "at": end.at}
    if not isinstance(end, TaskLost) and end.placement is not None:
        header["placement"] = _placement(end.placement)
    if not isinstance(end, TaskSucceeded):
        header["error"] = _error(end.error)
        header["lost"] = isinstance(end, TaskLost)
        return _frame(header)
    header["result"] = end.result
    header["values"] = [
        (key, value.size, value.location, value.inline is not None)
        for key, value in end.values.items()
    ]
    return _frame(
        header, [value.inline for value in end.values.values() if value.inline is not None]
    )


def decode_end(frame: bytes) -> End:
    """The end that a worker reported. Raises FrameError."""
    try:
        header, blobs = _unframe(frame)
        task_id, attempt, at = (
            TaskId(str(header["task"])),
            int(header["attempt"]),
            _time(header["at"]),
        )
        placement = _decode_placement(header["placement"]) if "placement" in header else None
        if "error" in header:
            error = _decode_error(header["error"])
            if header["lost"]:
                return TaskLost(task_id, attempt, at, error)
            return TaskFailed(task_id, attempt, at, error, placement)
        if placement is None:
            raise KeyError("placement")
        inline = iter(blobs)
        values = {
            _key(key): Value(
                _size(size),
                next(inline) if is_inline else None,
                None if location is None else _location(location),
            )
            for key, size, location, is_inline in header["values"]
        }
        return TaskSucceeded(task_id, attempt, at, placement, dict(header["result"]), values)
    except Exception as error:
        raise FrameError(type(error).__name__) from error


def encode_ends(ends: Mapping[int, bytes]) -> bytes:
    """Frames of the ends of attempts that shared a call, by their places in it, each with its logs before it."""
    return _frame([*ends], [*ends.values()])


def decode_ends(frame: bytes, attempts: int, *, first: bool) -> dict[int, bytes]:
    """The inverse of `encode_ends`, for a call of so many attempts. Raises FrameError.

    `first`: the attempt that is first in the call has to have ended, as it runs always.
    """
    try:
        places, frames = _unframe(frame)
        if not all(type(place) is int and 0 <= place < attempts for place in places):
            raise FrameError("a place that no attempt has")
        if first and 0 not in places:
            raise FrameError("no end of the first")
        return dict(zip(places, frames, strict=True))
    except Exception as error:
        raise FrameError(type(error).__name__) from error


@dataclass(frozen=True, slots=True)
class StartNote:
    """The note that an attempt has begun.

    `call` is the number that the dispatcher gave to its call, `ends` the frame of the ends of those that shared the
    call and came before it.
    """

    run_id: RunId
    started: TaskStarted
    call: int = 0
    ends: bytes = b""


def encode_start(note: StartNote) -> bytes:
    """The frame of a note."""
    started = note.started
    where = _placement(started.placement)
    return _frame([note.run_id, started.task_id, started.attempt, note.call, *where], [note.ends])


def decode_start(frame: bytes) -> StartNote:
    """The note that a worker left. Raises FrameError."""
    try:
        header, (ends,) = _unframe(frame)
        run_id, task_id, attempt, call, *where = header
        started = TaskStarted(TaskId(str(task_id)), int(attempt), _decode_placement(where))
        return StartNote(RunId(str(run_id)), started, int(call), ends)
    except Exception as error:
        raise FrameError(type(error).__name__) from error


def encode_logs(
    attempts: Sequence[tuple[RunId, TaskId, int]], entries: Sequence[LogEntry]
) -> bytes:
    """The note that attempts, which share a batch if they are many, have printed something."""
    return _frame([attempts, [entry.fields() for entry in entries]])


def decode_logs(frame: bytes) -> list[tuple[RunId, TaskLogged]]:
    """What was printed, for each attempt with its run. Raises FrameError."""
    try:
        (attempts, found), _ = _unframe(frame)
        entries = _decode_entries(found)
        return [
            (RunId(str(run_id)), TaskLogged(TaskId(str(task_id)), int(attempt), entries))
            for run_id, task_id, attempt in attempts
        ]
    except Exception as error:
        raise FrameError(type(error).__name__) from error


def logs_before(entries: Sequence[LogEntry]) -> bytes:
    """What goes before the frame of an attempt's end, to say what it has printed.

    Nothing for nothing, and where it cannot be said, as the end counts more.
    """
    if not entries:
        return b""
    try:
        text = _encode([entry.fields() for entry in entries]).encode()
    except Exception:  # user code has put something into a record of a logger that is no text
        return b""
    return b"".join((_WITH_LOGS, _LENGTH.pack(len(text)), text))


def split_logs(frame: bytes) -> tuple[tuple[LogEntry, ...], bytes]:
    """What was printed, if that is readable, and the frame of the end alone. Raises FrameError."""
    if not frame.startswith(_WITH_LOGS):
        return (), frame
    start = len(_WITH_LOGS) + _LENGTH.size
    end = start + int.from_bytes(frame[len(_WITH_LOGS) : start], "little")
    if end > len(frame):
        raise FrameError("the logs are cut off")
    try:
        return _decode_entries(_decode(frame[start:end].decode())), frame[end:]
    except Exception:  # what is printed must not decide how the attempt has ended
        return (), frame[end:]


def encode_call(answer: tuple[bytes, bytes] | ErrorInfo | TooLarge) -> bytes:
    """The frame of a call's end: the JSON text and the pickle of what it returned, or why it did not."""
    if isinstance(answer, ErrorInfo):
        return _frame({"error": _error(answer)})
    if isinstance(answer, TooLarge):
        return _frame({"too_large": answer.found})
    return _frame({}, answer)


def decode_call(frame: bytes) -> CallResult | UserCodeError | TooLarge:
    """What a call came to. Raises FrameError."""
    try:
        header, blobs = _unframe(frame)
        if "error" in header:
            return UserCodeError(*header["error"][:3])
        if "too_large" in header:
            return TooLarge(header["too_large"])
        text, pickled = blobs
        return CallResult(_decode(text.decode()), pickled)
    except Exception as error:
        raise FrameError(type(error).__name__) from error


def encode_rendering(rendering: Rendering) -> bytes:
    """The frame of a value's JSON text, or of why there is none."""
    if isinstance(rendering, NotJson):
        return _frame({"not_json": rendering.reason})
    if isinstance(rendering, TooLarge):
        return _frame({"too_large": rendering.found})
    if isinstance(rendering, ErrorInfo):
        return _frame({"error": _error(rendering)})
    return _frame({}, [rendering])


def decode_rendering(frame: bytes) -> Rendering:
    """The inverse of `encode_rendering`. Raises FrameError."""
    try:
        header, blobs = _unframe(frame)
        if "not_json" in header:
            return NotJson(header["not_json"])
        if "too_large" in header:
            return TooLarge(header["too_large"])
        if "error" in header:
            return _decode_error(header["error"])
        (text,) = blobs
        return text
    except Exception as error:
        raise FrameError(type(error).__name__) from error


def error_text(error: ErrorInfo, printed: Sequence[LogEntry] = ()) -> str:
    """`error` as text for people, from which `find_error` takes it out of whatever text is around it.

    `printed`: what the code had printed by then.
    """
    exact = base64.b64encode(logs_before(printed) + _encode(_error(error)).encode()).decode()
    return f"{error.type}: {error.message}\n{error.traceback}\n[lattice-error:{exact}]"


def find_error(text: str) -> tuple[ErrorInfo, tuple[LogEntry, ...]] | None:
    """The last error that `error_text` has put into `text`, and what was printed before, if there is one."""
    found = _ERROR.findall(text)
    try:
        if not found:
            return None
        printed, exact = split_logs(base64.b64decode(found[-1]))
        return _decode_error(_decode(exact.decode())), printed
    except Exception:  # cut off, or written by user code
        return None


def _placement(placement: Placement) -> list[object]:
    where: list[object] = [placement.node_id, placement.node_ip, placement.at]
    if placement.replica is not None:
        where += [
            placement.replica,
            placement.batch_size,
            round(placement.starting, 6),
            round(placement.batching, 6),
        ]
    return where


def _decode_placement(fields: list[Any]) -> Placement:
    node_id, node_ip, at, *replica = fields
    if not replica:
        return Placement(NodeId(str(node_id)), str(node_ip), _time(at))
    name, size, starting, batching = replica
    return Placement(
        NodeId(str(node_id)),
        str(node_ip),
        _time(at),
        str(name),
        int(size),
        starting=_time(starting),
        batching=_time(batching),
    )


def _key(found: Any) -> str:
    if not is_output_key(found):
        raise ValueError("a key")
    return found


def _size(found: Any) -> int:
    if not 0 <= int(found) < MAX_OFFSET:
        raise ValueError("a size")
    return int(found)


def _location(found: Any) -> str:
    if not is_output_key(found) or not found:
        raise ValueError("a location")
    return found


def _time(found: Any) -> float:
    """Seconds that can be counted with, whatever user code has made of its process's clock."""
    seconds = float(found)
    if not 0 <= seconds < _MAX_TIME:
        raise ValueError("a time")
    return seconds


def _decode_entries(found: list[Any]) -> tuple[LogEntry, ...]:
    """Entries that can be stored and shown, whatever user code has forged."""
    entries = tuple(
        LogEntry(
            int(offset),
            float(time),
            str(stream),
            str(text),
            None if level is None else str(level)[:_MAX_NAME],
            None if logger is None else str(logger)[:_MAX_NAME],
        )
        for offset, time, stream, text, level, logger in found
    )
    for entry in entries:
        in_bounds = 0 <= entry.offset < MAX_OFFSET and 0 <= entry.time < _MAX_TIME
        if not in_bounds or not entry.text or entry.stream not in LogEntry.STREAMS:
            raise ValueError("an entry of a log")
    return entries


def _error(error: ErrorInfo) -> list[object]:
    return [error.type, error.message, error.traceback, error.kinds]


def _decode_error(fields: list[Any]) -> ErrorInfo:
    kind, message, traceback, kinds = fields
    return ErrorInfo(kind, message, traceback, tuple(map(str, kinds)))
