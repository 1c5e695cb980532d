"""Which object of a source text is a task's, as far as its tokens tell: nothing is executed.

The rule is that of the workers (`lattice.execution.code`): what the text binds at its top level to the
task's name, else the last function or class that it defines there.

Tokens, not a syntax tree: the parser holds the interpreter until it is done, which for a megabyte of
hostile text was measured as a minute, with a gigabyte of memory. Tokens come one by one.
"""

from __future__ import annotations

import io
import keyword
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass

#: Longer texts are not looked at, nor texts with a longer line: what is in them counts as functions.
MAX_CHARACTERS = 1024 * 1024
_MAX_LINE = 256 * 1024

#: A text without this has no class at its top level.
_CLASS = re.compile(r"(?:\A|[\n\r])[\f\ufeff]*class\b")

_SPACE = frozenset((tokenize.COMMENT, tokenize.NL, tokenize.ENCODING))

#: No rule needs more of a statement than its first tokens.
_HEAD = 8


@dataclass(frozen=True, slots=True)
class Outline:
    """The names that code binds at its top level to classes, and to anything else.

    Attributes:
        last_is_class: whether its last function or class is one; that is what a pickle comes to.
    """

    classes: frozenset[str] = frozenset()
    others: frozenset[str] = frozenset()
    last_is_class: bool = False

    def picks_class(self, name: str) -> bool:
        """Whether the object for a task of that name is a class."""
        return name in self.classes or (name not in self.others and self.last_is_class)


def may_have_class(text: str) -> bool:
    """Whether `outline` would have to look closely. Cheap."""
    return len(text) <= MAX_CHARACTERS and _CLASS.search(text) is not None


def outline(text: str) -> Outline:
    """The outline of a source text; an empty one where the text is malformed, which workers report."""
    if not may_have_class(text):
        return Outline()
    bound: dict[str, bool] = {}
    last = None
    try:
        for head in _statements(text):
            while head[0] == "async":
                head = head[1:]
            if head[0] in ("class", "def"):
                last = head[1]
                bound[last] = head[0] == "class"
            elif "=" in head[1:] and head[1] in ("=", ":"):
                value = head[head.index("=") + 1 :]
                bound[head[0]] = len(value) == 1 and bound.get(value[0], False)
    except (tokenize.TokenError, SyntaxError, IndexError):
        return Outline()
    classes = frozenset(name for name, is_class in bound.items() if is_class)
    return Outline(classes, frozenset(bound) - classes, last is not None and bound[last])


def _statements(text: str) -> Iterator[list[str]]:
    """The first tokens of each statement at the top level.

    Raises:
        TokenError, SyntaxError: the text is malformed.
    """
    lines = io.StringIO(text.lstrip("\ufeff"))

    def readline() -> str:
        line = lines.readline()
        if len(line) > _MAX_LINE:
            raise tokenize.TokenError("a long line", (0, 0))
        return line

    depth = 0
    head: list[str] = []
    for token in tokenize.generate_tokens(readline):
        if token.type == tokenize.INDENT:
            depth += 1
        elif token.type == tokenize.DEDENT:
            depth -= 1
        elif token.type == tokenize.ERRORTOKEN and not token.string.isspace():
            raise tokenize.TokenError(token.string, token.start)
        elif token.type in (tokenize.NEWLINE, tokenize.ENDMARKER) or (
            # After a colon, what follows a semicolon is still inside.
            token.string == ";" and head and not keyword.iskeyword(head[0])
        ):
            if head:
                yield head
            head = []
        elif depth == 0 and token.type not in _SPACE and len(head) < _HEAD:
            head.append(token.string)
