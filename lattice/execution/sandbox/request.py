"""What goes into a sandbox and what comes out: one call with opaque bytes, and plain data."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lattice.execution.failures import (
    MAX_KIND,
    MAX_KINDS,
    MAX_MESSAGE,
    MAX_TRACEBACK,
    printable,
)
from lattice.execution.sandbox import plain
from lattice.workflow.events import ErrorInfo
from lattice.workflow.task import Code


@dataclass(frozen=True, slots=True)
class Given:
    """An argument: JSON text, or a pickle and its buffers. `named` is what refusals call it."""

    named: str
    json: str | None = None
    pickled: bytes = b""
    buffers: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """A call of a task.

    Attributes:
        name: the task's.
        data: the code.
        environment: variables beside the usual ones.
        hidden: those of their values that are secrets.
    """

    name: str
    code: Code
    data: bytes
    environment: Mapping[str, str]
    arguments: Mapping[str, Given]
    output_keys: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """For `decode_request`, in the sandbox."""
        return pickle.dumps(self, protocol=5)


def decode_request(data: Any) -> Request:
    """Our own classes, unpickled; what users sent is bytes inside."""
    request: Request = pickle.loads(data)
    return request


def encode_answer(answer: object) -> bytes:
    """What a call returned, or an ErrorInfo. Raises NotPlainError."""
    if isinstance(answer, ErrorInfo):
        return plain.dumps([False, answer.type, answer.message, answer.traceback, [*answer.kinds]])
    return plain.dumps([True, answer])


def decode_answer(data: bytes) -> tuple[bool, object]:
    """Whether it succeeded, and what it returned or its ErrorInfo. Raises NotPlainError."""
    found = plain.loads(data)
    if type(found) is list and len(found) == 2 and found[0] is True:
        return True, found[1]
    if type(found) is list and len(found) == 5 and all(type(each) is str for each in found[1:4]):
        kind, message, traceback, kinds = found[1:]
        if type(kinds) is list and all(type(each) is str for each in kinds):
            # No longer than honest ones, and text that can be encoded: they go to the orchestrator.
            return False, ErrorInfo(
                _text(kind, MAX_KIND),
                _text(message, MAX_MESSAGE),
                _text(traceback, MAX_TRACEBACK),
                tuple(_text(each, MAX_KIND) for each in kinds[:MAX_KINDS]),
            )
    raise plain.NotPlainError("it is no answer")


def _text(text: str, limit: int) -> str:
    # Twice, as an escape has more characters than what it stands for.
    return printable(text[:limit])[:limit]
