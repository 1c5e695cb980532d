"""Notes of starts: written by a thread only for attempts that last, and kept until they are collected."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from lattice.execution.announcer import Announcer
from lattice.execution.mailbox import (
    MAX_LOG_BYTES,
    MAX_NOTES,
    Mailbox,
    new_name,
    new_owner,
    owner_of,
)

#: What may stand for `time.sleep`.
nap = threading.Event().wait

#: Longer than any test waits for something that does happen.
LONG = 60.0


def test_an_attempt_that_lasts_is_announced() -> None:
    """Each one once."""
    announcer = Announcer(0.0, nap)
    for _ in range(3):
        announced = threading.Event()
        announcer.begin(announced.set)
        assert announced.wait(LONG)
        announcer.end()


def test_what_others_have_announced_is_announced_again() -> None:
    """As the note may be lost, on which a time-out depends; and the next attempt is not kept waiting for that."""
    announced = threading.Event()
    announcer = Announcer(0.0, nap, again=0.05)
    announcer.begin(announced.set, announced=True)
    assert announced.wait(LONG)
    announcer = Announcer(0.0, nap, again=LONG)
    announced.clear()
    first = threading.Event()
    announcer.begin(first.set, announced=True)
    announcer.begin(announced.set)
    assert announced.wait(LONG / 2)
    assert not first.is_set()


def test_an_attempt_that_ends_at_once_is_not_announced() -> None:
    """The next one, which lasts, is."""
    announcer = Announcer(3.0, nap)
    calls: list[int] = []
    last = threading.Event()
    for number in range(20):
        announcer.begin(lambda number=number: calls.append(number))  # type: ignore[misc]  # bound now
        announcer.end()
    announcer.begin(last.set)
    assert last.wait(LONG)
    assert calls == []


def test_the_thread_sleeps_while_it_waits() -> None:
    """It costs the attempt nothing: it does not look again and again."""
    sleeps: list[float] = []

    def sleep(seconds: float) -> None:
        sleeps.append(seconds)
        nap(seconds)

    announcer = Announcer(0.05, sleep)
    for number in range(3):
        announced = threading.Event()
        announcer.begin(announced.set)
        assert announced.wait(LONG)
        announcer.end()
        assert len(sleeps) <= 2 * (number + 1)


def test_an_announced_attempt_is_left_alone_for_a_while() -> None:
    """The thread waits meanwhile to be woken, and announces again, more and more rarely, what goes on."""

    class CountingEvent(threading.Event):
        waits = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.waits += 1
            return super().wait(timeout)

    announcer = Announcer(0.0, nap, again=0.5)
    woken = announcer._wake = CountingEvent()
    for number in range(3):
        times: list[float] = []
        third = threading.Event()

        def announce(times: list[float] = times, third: threading.Event = third) -> None:
            times.append(time.monotonic())
            if len(times) == 3:
                third.set()

        announcer.begin(announce)
        assert third.wait(LONG)
        announcer.end()
        # They are due half a second and a second after the one before, which may itself be late.
        assert times[1] - times[0] >= 0.3
        assert times[2] - times[1] >= 0.7
        assert woken.waits <= 4 * (number + 1)


def test_an_announcement_that_fails_does_not_stop_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged."""
    announcer = Announcer(0.0, nap)
    tried, announced = threading.Event(), threading.Event()

    def fail() -> None:
        tried.set()
        raise RuntimeError("no mailbox")

    announcer.begin(fail)
    assert tried.wait(LONG)
    announcer.end()
    announcer.begin(announced.set)
    assert announced.wait(LONG)
    assert "could not be announced" in caplog.text


@pytest.mark.anyio
async def test_the_mailbox_gives_all_that_waits() -> None:
    """In order, once, and as soon as there is one."""
    mailbox = Mailbox()
    waiting = asyncio.ensure_future(mailbox.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    await mailbox.push(b"1")
    await mailbox.push(b"2")
    assert await waiting == ([b"1", b"2"], [])
    await mailbox.push(b"3")
    await mailbox.push_logs(b"4")
    assert await mailbox.drain() == ([b"3"], [b"4"])


@pytest.mark.anyio
async def test_the_mailbox_is_bounded() -> None:
    """While nobody collects, the oldest notes go."""
    mailbox = Mailbox()
    for number in range(MAX_NOTES + 1):
        await mailbox.push(str(number).encode())
    half = b"x" * (MAX_LOG_BYTES // 2)
    for each in (b"first", half, half):
        await mailbox.push_logs(each)
    notes, logs = await mailbox.drain()
    assert len(notes) == MAX_NOTES
    assert notes[0] == b"1"
    assert logs == [half, half]


def test_owners_of_mailboxes_have_an_order() -> None:
    """Whose calls are given up is whose turn was before."""
    first, second = new_owner(), new_owner()
    assert owner_of(new_name(second)) == second > first == owner_of(new_name(first))
    assert new_name(first) != new_name(first)
    # As they were called before that.
    assert owner_of(f"mailbox-{'f' * 32}") < first
