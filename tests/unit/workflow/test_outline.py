"""What is a class in a source text, read from its tokens."""

from __future__ import annotations

import ast
import hashlib
import time

import pytest

from lattice.execution import code, source
from lattice.ids import Digest
from lattice.workflow.outline import MAX_CHARACTERS, Outline, outline

SOURCES = [
    ("class A: pass", True),
    ("def f(): pass\nclass A: pass", True),
    ("class A: pass\ndef f(): pass", False),
    ("class A: pass\nasync def f(): pass", False),
    ("class A: pass\ndef run(): pass\nclass B: pass", False),
    ("class run: pass\ndef f(): pass", True),
    ("def f(): pass\nclass A:\n    def run(self): pass", True),
    ("def f(): pass\nif True:\n    class A: pass", False),
    ("text = '''\nclass A: pass\n'''\ndef f(): pass", False),
    ("def f(x=[\n1]): pass\n\fclass A(object,\n metaclass=type):\n  # words\n  x = 1", True),
    ("import functools\n@functools.lru_cache(\n)\ndef f(): pass\nclass A: pass\nrun = A", True),
    ("class A: pass\nrun = A()", False),
    ("class A: pass\nrun: type = A\ndef f(): pass", True),
    ("class A: pass\nrun: object = A()", False),
    ("class A: pass\nA = A()", False),
    ("class A: pass\nx = 1; run = A\ndef f(): pass", True),
    ("def g(): x = 1; run = 2\nclass A: pass", True),
    ("class A: y = 1; run = 1\n", True),
    ("\ufeffclass A: pass", True),
    ("class A:\r\n  pass\r\n", True),
]


@pytest.mark.parametrize(("text", "expected"), SOURCES, ids=range(len(SOURCES)))
def test_the_outline_picks_what_a_worker_picks(text: str, expected: bool) -> None:
    """The one of the task's name, else the last; each compared with what the module then holds."""
    assert outline(text).picks_class("run") is expected
    data = text.encode()
    digest = Digest(hashlib.sha256(data).hexdigest())
    picked = code._pick(source.load_module(digest, data), "run")
    source.forget_module(digest)
    assert isinstance(picked, type) is expected


@pytest.mark.parametrize(
    "text",
    ["x = 1", "def (", "class A: pass\nf(", "class A: pass\nx = 'a", "class", "class A:\n\0", ""],
)
def test_malformed_text_is_left_to_the_worker(text: str) -> None:
    assert outline(text) == Outline()


def test_long_texts_and_lines_are_not_looked_at() -> None:
    """They count as functions."""
    long = "x = 1\n" * (MAX_CHARACTERS // 6) + "class A: pass"
    assert outline(long[12:]).last_is_class
    assert outline(long) == Outline()
    assert outline("x = " + "1" * 300_000 + "\nclass A: pass\n") == Outline()


def test_hostile_text_takes_little_time() -> None:
    """This one holds the parser for a minute; others have it fill the memory."""
    text = 'f"' + "{a}" * 300_000 + '"\nclass A: pass\n'
    began = time.perf_counter()
    outline(text)
    assert time.perf_counter() - began < 5


def test_this_repository_is_read_as_the_parser_reads_it() -> None:
    """All its modules: the last function or class of each."""
    from pathlib import Path

    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted((Path(__file__).parents[3] / "lattice").rglob("*.py")):
        text = path.read_text()
        found = [node for node in ast.parse(text).body if isinstance(node, kinds)]
        for node in found:
            assert outline(text).picks_class(node.name) == isinstance(node, ast.ClassDef), path
