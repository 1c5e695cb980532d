"""What people get to see of a result: bounded JSON.

A value is given as it is if it is strictly JSON (text as keys, no NaN, nothing that a JSON parser
elsewhere would stumble over) and small enough; otherwise a description stands in its place.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from urllib.parse import quote

from lattice.execution.failures import type_name
from lattice.ids import RunId, TaskId

#: The JSON text of a whole result, in bytes.
MAX_SUMMARY = 64 * 1024
#: A pickle this many times larger than the text allowed cannot become a text within it.
_PICKLE_FACTOR = 16
#: Parsers of JSON recurse; this is well within what all of them take.
_MAX_DEPTH = 100
#: Python itself refuses to read integers of more than 4,300 digits.
_MAX_INTEGER_BITS = 14_000

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class NotJsonError(Exception):
    """A value that is not strictly JSON; the text says why."""


class TooLongError(Exception):
    """The JSON text of a value is longer than allowed. `found` is its length in bytes, or a lower bound."""

    def __init__(self, found: int) -> None:
        super().__init__(found)
        self.found = found


def json_text(value: object, limit: int) -> bytes:
    """The JSON text of `value` in UTF-8, at most `limit` bytes; tuples become lists.

    The work is bounded by `limit` too: a small object that refers to itself many times over is given up
    as soon as its text would be too long.

    Raises:
        NotJsonError: the value is not JSON.
        TooLongError: the text would be longer than `limit`.
    """
    return _plain_and_text(value, limit)[1]


def _plain_and_text(value: object, limit: int) -> tuple[object, bytes]:
    plain = _Copy(limit).of(value, 0)
    text = _ENCODER.encode(plain).encode()
    if len(text) > limit:
        raise TooLongError(len(text))
    return plain, text


class _Copy:
    """Copies a value into plain builtins as long as its text may stay within `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._left = limit

    def _spend(self, length: int) -> None:
        self._left -= length
        if self._left < 0:
            raise TooLongError(self._limit + 1)

    def of(self, value: object, depth: int) -> object:
        # Subclasses are read through the methods of their builtin base: what a user's class overrides
        # must not get past the checks.
        if value is None or value is True or value is False:
            self._spend(4)
            return value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int):
            number = int.__int__(value)
            if number.bit_length() > _MAX_INTEGER_BITS:
                raise NotJsonError("an integer of thousands of digits")
            self._spend(max(1, number.bit_length() // 4))  # a digit has more than three bits
            return number
        if isinstance(value, float):
            real = float.__float__(value)
            if not math.isfinite(real):
                raise NotJsonError(f"the number {real}")
            self._spend(1)
            return real
        if depth >= _MAX_DEPTH:
            raise NotJsonError(f"lists or dicts more than {_MAX_DEPTH} deep")
        self._spend(2)
        if isinstance(value, list):
            return [self.of(item, depth + 1) for item in list.__iter__(value)]
        if isinstance(value, tuple):
            return [self.of(item, depth + 1) for item in tuple.__iter__(value)]
        if isinstance(value, dict):
            return {
                self._key(key): self.of(item, depth + 1) for key, item in list(dict.items(value))
            }
        raise NotJsonError(f"a {type_name(type(value))}")

    def _key(self, key: object) -> str:
        if not isinstance(key, str):
            raise NotJsonError(f"a dict with a key of type {type_name(type(key))}")
        return self._text(key)

    def _text(self, value: str) -> str:
        self._spend(str.__len__(value))
        text = str.__str__(value)
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise NotJsonError("text with half a surrogate pair") from None
        return text


def result_url(run_id: RunId, task_id: TaskId, key: str) -> str:
    """Where the service gives the whole value of an output."""
    run, task, output = (
        quote(part, safe="", errors="surrogatepass") for part in (run_id, task_id, key)
    )
    return f"/runs/{run}/tasks/{task}/result/{output}"


def description(value: object, size: int, url: str | None = None) -> dict[str, object]:
    """What stands for a value that is not shown. `size` is that of the pickled value, in bytes.

    `url` is where the whole value can be fetched, if it can.
    """
    found: dict[str, object] = {"type": type_name(type(value)), "size": size}
    shape = _shape(value)
    if shape is not None:
        found["shape"] = shape
    if url is not None:
        found["url"] = url
    return found


def _shape(value: object) -> list[int] | None:
    try:
        shape = getattr(value, "shape", None)
        if isinstance(shape, tuple) and len(shape) <= 32:
            numbers = [int(length) for length in shape if isinstance(length, int)]
            if len(numbers) == len(shape) and all(0 <= number < 2**63 for number in numbers):
                return numbers
    except Exception:  # a property of a user's class
        return None
    return None


def summarise(
    run_id: RunId, task_id: TaskId, outputs: Mapping[str, object], sizes: Mapping[str, int]
) -> dict[str, object]:
    """The summary of a result: what is too large is described, beginning with the largest.

    `sizes` are those of the pickled outputs, in bytes.
    """
    shown: dict[str, object] = {}
    lengths: dict[str, int] = {}
    for key, value in outputs.items():
        if sizes[key] <= MAX_SUMMARY * _PICKLE_FACTOR:
            with contextlib.suppress(NotJsonError, TooLongError):
                shown[key], text = _plain_and_text(value, MAX_SUMMARY)
                lengths[key] = len(text)

    def describe(key: str) -> dict[str, object]:
        return description(outputs[key], sizes[key], result_url(run_id, task_id, key))

    descriptions = {key: describe(key) for key in outputs if key not in shown}
    total = sum(_text_length(key) + 2 for key in outputs) + sum(lengths.values())
    total += sum(map(_text_length, descriptions.values()))
    for key in sorted(lengths, key=lengths.__getitem__, reverse=True):
        if total <= MAX_SUMMARY:
            break
        del shown[key]
        descriptions[key] = describe(key)
        total += _text_length(descriptions[key]) - lengths[key]
    return {key: shown[key] if key in shown else descriptions[key] for key in outputs}


def _text_length(document: object) -> int:
    return len(_ENCODER.encode(document).encode())
