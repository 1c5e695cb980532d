"""The gate in front of `@serve.batch`: who gets through, in which order, and what cancelling leaves."""

from __future__ import annotations

import asyncio

import pytest

from deployments.replicas.gate import Gate

pytestmark = pytest.mark.anyio


async def settle() -> None:
    """Lets everything that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def callers(
    gate: Gate, number: int, *, alone: bool = False
) -> list[asyncio.Task[tuple[bool, float]]]:
    return [asyncio.ensure_future(gate.enter(alone=alone)) for _ in range(number)]


async def test_a_batch_gets_through_at_once_and_the_rest_behind_it() -> None:
    """Up to the size while none runs, none while one runs, in order."""
    gate = Gate(2)
    tasks = callers(gate, 5)
    await settle()
    assert [task.done() for task in tasks] == [True, True, False, False, False]
    gate.begin()
    gate.end()
    await settle()
    assert [task.done() for task in tasks] == [True, True, True, True, False]
    gate.begin()
    await settle()
    assert not tasks[4].done()
    gate.end()
    assert (await tasks[4])[0]


async def test_a_full_batch_goes_ahead_of_time() -> None:
    """One more than can run, not two; what would not fill a batch waits."""
    gate = Gate(2)
    tasks = callers(gate, 2)
    await settle()
    gate.begin()
    tasks += callers(gate, 5)
    await settle()
    assert [task.done() for task in tasks] == [True] * 4 + [False] * 3
    gate.begin()
    await settle()
    assert not tasks[4].done()
    gate.end()
    await settle()
    assert [task.done() for task in tasks] == [True] * 6 + [False]
    firsts = [task.result()[0] for task in tasks[:6]]
    assert firsts == [True, False] * 3
    tasks[6].cancel()


async def test_as_many_batches_run_as_are_allowed() -> None:
    """A part-full batch may form while another runs, if two may."""
    gate = Gate(2, concurrency=2)
    tasks = callers(gate, 3)
    await settle()
    gate.begin()
    await settle()
    assert all(task.done() for task in tasks)


async def test_alone_means_alone() -> None:
    """It waits for an empty place, and nobody follows until its batch has ended."""
    gate = Gate(3)
    first, alone, last = callers(gate, 1) + callers(gate, 1, alone=True) + callers(gate, 1)
    await settle()
    assert (first.done(), alone.done(), last.done()) == (True, False, False)
    gate.begin()
    gate.end()
    await settle()
    assert (alone.done(), last.done()) == (True, False)
    gate.begin()
    gate.end()
    await last


async def test_who_is_cancelled_takes_no_room() -> None:
    """In the queue, at the very moment of being let through, or before the batch began."""
    gate = Gate(1)
    (first,) = callers(gate, 1)
    await first
    waiting, next_one, last = callers(gate, 3)
    await settle()
    waiting.cancel()
    await settle()
    gate.leave()
    next_one.cancel()
    await settle()
    assert last.done()
