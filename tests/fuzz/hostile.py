"""Values that trouble whoever reads, keeps, compares or writes them, and JSON texts that hold them.

JSON is written here by hand, as what is sent need not be JSON: a number that no float holds, a key twice,
brackets by the ten thousand.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from random import Random
from typing import Any


class Raw(str):
    """A text that is written into JSON as it is."""


class Pairs(list[tuple[str, Any]]):
    """A JSON object by its members, which may have a key twice."""


def json_text(value: object) -> str:
    """`value` as JSON in ASCII, with what `Raw` and `Pairs` hold put in as it is."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs | dict):
        members = value if isinstance(value, Pairs) else value.items()
        return "{" + ",".join(f"{json_text(key)}:{json_text(item)}" for key, item in members) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(json_text, value)) + "]"
    return json.dumps(value)


def nested(depth: int, kind: str = "array", closed: bool = True) -> Raw:
    """Arrays or objects, one in the other, `depth` deep."""
    opening, closing = ("[", "]") if kind == "array" else ('{"a":', "}")
    return Raw(opening * depth + "1" + (closing * depth if closed else ""))


#: Texts for any place that takes one: ids, names, keys, references, source.
TEXTS = (
    "",
    " ",
    "\0",
    "a\0b",
    "\ud800",
    "\udfff\ud800",
    "\ufffe",
    "\ufeff",
    "\u202egnp.exe",
    "e\u0301\u0301\u0301",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "ſ",  # becomes `s` when its case is changed
    "İ",  # becomes longer
    "１２",  # digits, but not ASCII
    "\r\nX-Injected: yes\r\n\r\n",
    "../../../etc/passwd",
    "%00%2f..%2f",
    "%s%n%x",
    "{0.__class__}",
    "${jndi:ldap://127.0.0.1/a}",
    "'; DROP TABLE runs; --",
    "<script>alert(1)</script>",
    "\\",
    '"',
    "null",
    "NaN",
    "-1",
    "__class__",
    "a.b.c",
    ".",
    "..",
    "output.",
    "a" * 64,
    "a" * 65,
    "a" * 200,
    "a" * 201,
    "é" * 5_000,
    "x" * 100_000,
)

NUMBERS = (
    Raw("1e400"),
    Raw("-1e400"),
    Raw("1e-400"),
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("-0"),
    Raw("-0.0"),
    Raw("1.7976931348623157e308"),
    Raw("5e-324"),
    Raw("1" + "0" * 400),
    Raw("9" * 4_300),
    Raw("9" * 5_000),
    Raw("0." + "1" * 5_000),
    Raw("01"),
    Raw("+1"),
    Raw("1_000"),
    Raw("0x10"),
    Raw("1."),
    2**31,
    2**53 + 1,
    2**63,
    -(2**63) - 1,
    2**64,
    -1,
    0,
    1e15,
    0.1 + 0.2,
)

OTHERS = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    {"": ""},
    {"\0": 1},
    {"\ud800": 1},
    {"__proto__": {"a": 1}},
    [None] * 1_000,
    {str(number): number for number in range(1_000)},
    Pairs([("a", 1), ("a", 2)]),
    Raw("undefined"),
    Raw("'a'"),
    Raw(""),
    Raw("/* a */ 1"),
    Raw('"\\x41"'),
    Raw('"\\ud800\\u0041"'),
    Raw('"a\tb"'),
    Raw('"\x7f"'),
)

DEPTHS = (50, 99, 100, 101, 500, 990, 1_100, 10_000, 100_000)


def value(rng: Random) -> Any:
    """A hostile value of any kind."""
    dice = rng.random()
    if dice < 0.4:
        return rng.choice(TEXTS)
    if dice < 0.7:
        return rng.choice(NUMBERS)
    if dice < 0.95:
        return rng.choice(OTHERS)
    return deep(rng)


def deep(rng: Random) -> Raw:
    """Nesting, mostly too deep."""
    return nested(rng.choice(DEPTHS), rng.choice(("array", "object")), rng.random() < 0.9)


def text(rng: Random) -> str:
    """A hostile text."""
    if rng.random() < 0.8:
        return rng.choice(TEXTS)
    return "".join(chr(rng.randrange(0x110000)) for _ in range(rng.randrange(1, 40)))


def base64_text(rng: Random) -> Any:
    """What is no base64, or base64 of what is no pickle."""
    garbage = rng.randbytes(rng.randrange(200))
    good = base64.b64encode(garbage).decode()
    return rng.choice(
        (
            good,
            good[:-1],
            good + "=",
            good + "\n",
            base64.urlsafe_b64encode(b"\xff\xfe\xfd").decode(),
            "====",
            "é" + good,
            "A" * 100_001,
            base64.b64encode(garbage * 1_000).decode(),
            text(rng),
            None,
            1,
        )
    )


# -- bodies that are broken as a whole ---------------------------------------------------------


def broken_body(rng: Random, good: bytes) -> bytes:
    """A body that is not what it should be, made of a good one or of nothing."""
    makers: tuple[Callable[[], bytes], ...] = (
        lambda: b"",
        lambda: rng.choice(
            (b"null", b"true", b"0", b'""', b"[]", b"{}", b"[{}]", b"1e400", b"NaN")
        ),
        lambda: good[: rng.randrange(len(good) + 1)],
        lambda: good + rng.choice((b"}", b" x", good, b"\0", b",")),
        lambda: _flipped(rng, good),
        lambda: _spliced(rng, good),
        lambda: good.decode("latin-1").encode(rng.choice(("utf-16", "utf-32", "utf-16-le"))),
        lambda: b"\xef\xbb\xbf" + good,
        lambda: rng.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80")),
        lambda: rng.randbytes(rng.randrange(1, 2_000)),
        lambda: b"\0" * rng.randrange(1, 2_000),
        lambda: b" " * 100_000 + good,
        lambda: b"[" + b",".join([good] * 20) + b"]",
        lambda: str(deep(rng)).encode(),
        lambda: b"a=1&b=2",
        lambda: b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + good + b"\r\n--x--",
    )
    return rng.choice(makers)()


def _flipped(rng: Random, good: bytes) -> bytes:
    data = bytearray(good or b"{}")
    for _ in range(rng.randrange(1, 5)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _spliced(rng: Random, good: bytes) -> bytes:
    at = rng.randrange(len(good) + 1)
    piece = rng.choice((b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\u", b"\0", b"\xff"))
    return good[:at] + piece * rng.choice((1, 1, 2, 50)) + good[at:]


# -- documents with one hostile place ----------------------------------------------------------


def mutated(rng: Random, document: Any) -> Any:
    """`document` with one to three of its places changed."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = _mutated_once(rng, document)
    return document


def _mutated_once(rng: Random, document: Any) -> Any:
    """Walks down to a place by chance, changes it, and copies what is above it."""
    if isinstance(document, Raw) or not isinstance(document, dict | Pairs | list) or not document:
        return base64_text(rng) if rng.random() < 0.1 else value(rng)
    here = rng.random() < 0.1
    if isinstance(document, list) and not isinstance(document, Pairs):
        items = [*document]
        at = rng.randrange(len(items))
        if here:
            return rng.choice(([], items * 50, [items], {"0": items}, [*items, value(rng)]))
        items[at] = _mutated_once(rng, items[at])
        return items
    members = Pairs(document.items() if isinstance(document, dict) else document)
    at = rng.randrange(len(members))
    key, item = members[at]
    if not here:
        members[at] = key, _mutated_once(rng, item)
        return members
    match rng.randrange(5):
        case 0:
            del members[at]
        case 1:
            members.append((key, value(rng)))
        case 2:
            members[at] = text(rng), item
        case 3:
            members.append((text(rng), value(rng)))
        case _:
            return value(rng)
    return members
