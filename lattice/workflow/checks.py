"""Reading values of JSON documents, each refusal naming the field, what was found and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import TypeGuard

from lattice.errors import InvalidRequestError

#: Longest excerpt of a user's value in an error.
_EXCERPT = 80
#: Longest output key, in bytes as UTF-8. With the ids of run and task it is a key of an index, whose entries may have
#: 2,704 bytes in PostgreSQL ("Index Row Size" in its manual's limits of B-trees).
MAX_OUTPUT_KEY = 1_000


def shown(value: object) -> str:
    """A short text for `value` in an error: its type and the beginning of its repr."""
    text = repr(value)
    if len(text) > _EXCERPT:
        text = text[: _EXCERPT - 3] + "..."
    return f"{text} ({type(value).__name__})"


def mapping(value: object, field: str) -> Mapping[str, object]:
    """`value` as a JSON object. Raises InvalidRequestError if it is none."""
    if not isinstance(value, Mapping):
        raise InvalidRequestError(field, shown(value), "an object is allowed")
    return value


def known_keys(value: Mapping[str, object], field: str, allowed: Collection[str]) -> None:
    """Raises InvalidRequestError for the first key of `value` that is not in `allowed`."""
    for key in value:
        if key not in allowed:
            raise InvalidRequestError(
                f"{field}.{key}", "an unknown key", f"allowed are {', '.join(sorted(allowed))}"
            )


def text(value: object, field: str) -> str:
    """`value` as a non-empty string. Raises InvalidRequestError if it is none."""
    if not isinstance(value, str) or not value:
        raise InvalidRequestError(field, shown(value), "a non-empty string is allowed")
    if not value.isprintable():
        raise InvalidRequestError(field, shown(value), "only printable characters are allowed")
    return value


def is_storable(text: str) -> bool:
    """Whether a column of every database can hold `text`: no NUL, and no half of a surrogate pair."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def is_output_key(key: object) -> TypeGuard[str]:
    """Whether an output can have this key."""
    return isinstance(key, str) and is_storable(key) and len(key.encode()) <= MAX_OUTPUT_KEY


def number(
    value: object, field: str, *, minimum: float = 0.0, above: bool = False, maximum: float = 1e15
) -> float:
    """`value` as a finite number from `minimum` (exclusive if `above`) up to `maximum`.

    Raises InvalidRequestError if it is none.
    """
    allowed = f"a number {'above' if above else 'of at least'} {minimum:g} is allowed"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequestError(field, shown(value), allowed)
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result) or result > maximum:
        raise InvalidRequestError(field, shown(value), f"{allowed}, {maximum:g} at most")
    if result < minimum or (above and result == minimum):
        raise InvalidRequestError(field, shown(value), allowed)
    return result


def whole(value: object, field: str, *, minimum: int, maximum: int = 2**31) -> int:
    """`value` as a whole number from `minimum` to `maximum`. Raises InvalidRequestError if it is none."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise InvalidRequestError(
            field, shown(value), f"a whole number from {minimum} to {maximum} is allowed"
        )
    return value


def within(value: float | None, field: str, most: float | None, setting: str) -> float | None:
    """`value`, or `most` where there is none. Raises InvalidRequestError if it is above `most`."""
    if most is None:
        return value
    if value is not None and value > most:
        raise InvalidRequestError(
            field, f"{value:g} s", f"at most {most:g} s are allowed (setting {setting})"
        )
    return most if value is None else value
