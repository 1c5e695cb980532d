"""Worker processes as they are found by what they are busy with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from lattice.execution import process_names
from lattice.execution.process_names import name_of

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="processes have names on Linux only"
)

NAMED = """
import sys
from lattice.execution import process_names
for call in sys.argv[1:]:
    process_names.take(call)
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(*calls: str) -> Iterator[subprocess.Popen[str]]:
    """A process that was busy with `calls`, the last of which goes on."""
    command = [sys.executable, "-c", NAMED, *calls]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child


def test_only_who_is_busy_with_the_call_is_killed() -> None:
    """Neither who was before, nor who is with another, nor this process, which has no such name."""
    with ExitStack() as stack:
        busy, another, later = (
            stack.enter_context(process(*calls)) for calls in (["a/1"], ["a/11"], ["a/1", "a/2"])
        )
        assert process_names.kill(name_of("a/1")) == [busy.pid]
        assert busy.wait() == -9
        assert another.poll() is None
        assert later.poll() is None
        assert process_names.kill(name_of("a/1")) == []
        assert process_names.kill(name_of("a/2")) == [later.pid]


def test_a_name_is_as_long_as_the_kernel_keeps() -> None:
    """Fifteen bytes at most, whatever the call is called."""
    names = {name_of(call) for call in ("", "x" * 1000, "ü", "mailbox-1/1", "mailbox-1/2")}
    assert len(names) == 5
    assert all(len(name.encode()) <= 15 for name in names)
