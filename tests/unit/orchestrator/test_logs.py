"""What tasks print: kept within bounds, told once, and ignored where it comes too late."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from lattice.errors import InvalidRequestError, RunNotFoundError, TaskNotFoundError
from lattice.execution import wire
from lattice.ids import RunId, TaskId
from lattice.orchestrator import Retention, reading
from lattice.orchestrator.housekeeping import Housekeeping
from lattice.orchestrator.logs import Part, stored
from lattice.ports.execution import LogEntry, TaskLogged
from lattice.ports.service import LogMessages
from lattice.ports.store import LogRecord
from tests.unit.orchestrator.world import LIMITS, World

pytestmark = pytest.mark.anyio

A = TaskId("a")
HALF = LIMITS.max_log_bytes // 2


async def start(world: World) -> RunId:
    return await world.orchestrator.run_workflow(await world.workflow("a", "b"))


def say(
    world: World,
    run_id: RunId,
    *texts: tuple[int, str],
    attempt: int = 1,
    final: bool = False,
    task_id: TaskId = A,
) -> None:
    """The dispatcher reports text at offsets."""
    entries = tuple(LogEntry(offset, 5.0, "stdout", text) for offset, text in texts)
    world.dispatcher.tell(run_id, TaskLogged(task_id, attempt, entries, final))


async def logs(world: World, run_id: RunId, **query: Any) -> list[tuple[int, str, int]]:
    """Offset, text and what was cut before it, from all pages."""
    found: list[tuple[int, str, int]] = []
    while True:
        page: Any = await world.orchestrator.task_logs(run_id, A, **query)
        found += [(entry["offset"], entry["text"], entry["cut"]) for entry in page["logs"]]
        if page["next"] is None:
            return found
        query["after"] = page["next"]


async def follow(
    world: World, run_id: RunId, after: int = 0, into: list[str] | None = None
) -> list[str]:
    """Types of messages and texts, until the run's last."""
    found: list[str] = [] if into is None else into
    async for group in world.orchestrator.follow(run_id, None, after, logs=True):
        if isinstance(group, LogMessages):
            found += [json.loads(text)["data"]["text"] for _, text in group.texts]
        else:
            found += [json.loads(text)["type"] for text in group]
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_each_text_is_kept_once(world: World) -> None:
    """However often it is told, and again at the end."""
    run_id = await start(world)
    say(world, run_id, (0, "one\n"))
    say(world, run_id, (0, "one\n"))
    say(world, run_id, (4, "two\n"), (8, "three\n"))
    say(world, run_id, (4, "two\n"))
    assert await logs(world, run_id) == [(0, "one\n", 0), (4, "two\n", 0), (8, "three\n", 0)]
    say(world, run_id, (0, "one\n"), (4, "two\n"), (8, "three\n"), (14, "end\n"), final=True)
    world.dispatcher.succeed(run_id, A, out=b"")
    expected = [(0, "one\n", 0), (4, "two\n", 0), (8, "three\n", 0), (14, "end\n", 0)]
    assert await logs(world, run_id) == expected
    # What a killed worker's mailbox gives up late.
    say(world, run_id, (18, "late\n"))
    assert await logs(world, run_id) == expected


async def test_of_much_text_beginning_and_end_are_kept(world: World) -> None:
    """The end is stored when the attempt ends; until then it is held, and read all the same."""
    run_id = await start(world)
    text = "x" * 1000
    for number in range(200):
        say(world, run_id, (number * 1000, text))
    held = await logs(world, run_id)
    stored = world.store.load_logs(run_id, 99)
    assert 0 < sum(len(json.loads(each.document)) for each in stored) < len(held)
    assert held[0] == (0, text, 0)
    assert held[-1][0] == 199_000
    assert sum(cut for _, _, cut in held) == 200_000 - 1000 * len(held)
    assert len([cut for _, _, cut in held if cut]) == 1
    assert LIMITS.max_log_bytes * 3 // 4 < 1000 * len(held) <= LIMITS.max_log_bytes
    world.dispatcher.fail(run_id, A)
    assert await logs(world, run_id) == held
    await world.restart()
    assert await logs(world, run_id) == held


async def test_the_end_of_an_attempt_fills_the_gaps_of_what_was_told(world: World) -> None:
    run_id = await start(world)
    for number in range(40):
        say(world, run_id, (number * 1000, "x" * 1000))
    say(world, run_id, (90_000, "y" * 500))
    whole = [(number * 1000, "z" * 1000) for number in range(60, 92)]
    say(world, run_id, *whole, final=True)
    world.dispatcher.succeed(run_id, A, out=b"")
    found = await logs(world, run_id)
    assert found[-25:] == [(offset, text, 0) for offset, text in whole[-25:]]


async def test_a_note_that_is_lost_is_made_up_for_at_the_end(world: World) -> None:
    """Also one of the beginning, which is stored as it comes."""
    run_id = await start(world)
    say(world, run_id, (0, "one\n"))
    say(world, run_id, (8, "three\n"))
    assert await logs(world, run_id) == [(0, "one\n", 0), (8, "three\n", 4)]
    say(world, run_id, (0, "one\n"), (4, "two\n"), (8, "three\n"), final=True)
    world.dispatcher.succeed(run_id, A, out=b"")
    assert await logs(world, run_id) == [(0, "one\n", 0), (4, "two\n", 0), (8, "three\n", 0)]


async def test_of_a_batch_that_keeps_less_there_is_one_gap(world: World) -> None:
    """Its calls tell parts of the end while the orchestrator still has room for a beginning."""
    run_id = await start(world)
    beginning = [(0, "one\n"), (4, "two\n")]
    say(world, run_id, *beginning)
    for offset in range(100, 200, 10):
        say(world, run_id, (offset, "part\n"))
    end = [(190, "part\n"), (195, "last\n")]
    say(world, run_id, *beginning, *end, final=True)
    world.dispatcher.succeed(run_id, A, out=b"")
    assert await logs(world, run_id) == [
        (0, "one\n", 0),
        (4, "two\n", 0),
        (190, "part\n", 182),
        (195, "last\n", 0),
    ]


async def test_only_attempts_that_run_are_heard(world: World) -> None:
    """Not those of before, of other runs, or of tasks that there are not."""
    run_id = await start(world)
    say(world, run_id, (0, "x"), attempt=2)
    say(world, RunId("nobody"), (0, "x"))
    say(world, run_id, (0, "x"), task_id=TaskId("nothing"))
    assert await logs(world, run_id) == []
    world.dispatcher.succeed(run_id, A, out=b"")
    say(world, run_id, (0, "x"))
    say(world, run_id, (0, "x"), final=True)
    assert await logs(world, run_id) == []
    assert world.store.leftovers(run_id, 9).logs == ()


async def test_a_cancelled_attempt_has_a_moment_for_its_last_words(world: World) -> None:
    """But not longer: rows of a run that was deleted meanwhile would stay for ever."""
    run_id = await start(world)
    say(world, run_id, (0, "before\n"))
    await world.orchestrator.cancel_run(run_id)
    say(world, run_id, (7, "last words\n"))
    assert await logs(world, run_id) == [(0, "before\n", 0), (7, "last words\n", 0)]
    world.clock.advance(5.0)
    # In memory nothing is left either, though nobody asks.
    assert world.orchestrator._parts.runs._logs._attempts == {}
    say(world, run_id, (18, "too late\n"))
    assert len(await logs(world, run_id)) == 2


async def test_last_words_are_under_way_until_the_end_of_the_service(world: World) -> None:
    """No timer stays behind."""
    run_id = await start(world)
    await world.orchestrator.cancel_run(run_id)
    say(world, run_id, (0, "last words\n"))
    await world.orchestrator.close()
    assert world.clock.armed == 0


async def test_much_that_is_said_after_a_cancellation_is_bounded(world: World) -> None:
    """What was stored of the tail does not count for what comes then."""
    run_id = await start(world)
    for number in range(50):
        say(world, run_id, (number * 1000, "x" * 1000))
    say(world, run_id, (50_000, "end\n"), final=True)
    attempt = world.orchestrator._parts.runs._logs._attempts[run_id, A, 1]
    assert attempt.tail_cost == sum(entry.size + LogEntry.OVERHEAD for entry in attempt.tail)
    await world.orchestrator.cancel_run(run_id)
    for number in range(60, 160):
        say(world, run_id, (number * 1000, "x" * 1000))
        assert attempt.tail_cost == 0


async def test_an_attempt_that_begins_anew_after_a_crash(world: World) -> None:
    """Has the same number, and takes the place of what it had printed."""
    run_id = await start(world)
    say(world, run_id, (0, "first\n"), (6, "time\n"))
    await world.orchestrator._parts.journal.barrier()
    await world.restart()
    say(world, run_id, (0, "again\n"), (6, "more\n"), (11, "and more\n"), attempt=1)
    say(world, run_id, (0, "unknown\n"), attempt=2)
    assert await logs(world, run_id) == [(0, "again\n", 0), (6, "more\n", 0), (11, "and more\n", 0)]


async def test_listeners_get_messages_and_logs_in_order(world: World) -> None:
    """Early and late; who does not ask gets none."""
    run_id = await start(world)
    seen: list[str] = []
    early = asyncio.ensure_future(follow(world, run_id, into=seen))
    silent = asyncio.ensure_future(world.messages(run_id))
    world.dispatcher.start_job(run_id, A)
    await until(lambda: seen == ["start_task"])
    say(world, run_id, (0, "one\n"))
    await until(lambda: seen == ["start_task", "one\n"])
    seen_late: list[str] = []
    middle = asyncio.ensure_future(follow(world, run_id, 1, seen_late))
    await until(lambda: seen_late == ["one\n"])
    say(world, run_id, (0, "one\n"), (4, "two\n"), final=True)
    world.dispatcher.succeed(run_id, A, out=b"")
    world.dispatcher.succeed(run_id, TaskId("b"), out=b"")
    rest = ["start_task", "finish_task", "finish_workflow"]
    assert await early == ["start_task", "one\n", "two\n", "finish_task", *rest]
    assert await middle == ["one\n", "two\n", "finish_task", *rest]
    assert await follow(world, run_id) == ["one\n", "two\n", "start_task", "finish_task", *rest]
    assert await silent == ["start_task", "finish_task", *rest]
    assert world.orchestrator._parts.feed._listeners == {}


async def test_a_listener_that_lags_gets_them_in_order_too(world: World) -> None:
    """What was printed comes after the message it came after, and before the next."""
    run_id = await start(world)
    b = TaskId("b")
    stream = world.orchestrator.follow(run_id, None, 0, logs=True)
    world.dispatcher.start_job(run_id, A)
    found = [str(await anext(aiter(stream)))]
    world.dispatcher.succeed(run_id, A, out=b"")
    world.dispatcher.start_job(run_id, b)
    say(world, run_id, (0, "words of b\n"), task_id=b)
    world.dispatcher.succeed(run_id, b, out=b"")
    await world.orchestrator._parts.journal.barrier()
    async for group in stream:
        texts = [text for _, text in group.texts] if isinstance(group, LogMessages) else group
        found += [json.loads(text)["type"] for text in texts]
    assert found[1:] == [
        "finish_task",
        "start_task",
        "task_log",
        "finish_task",
        "finish_workflow",
    ]


async def test_parts_that_overlap_are_read_once(world: World) -> None:
    """What an attempt tells again after it was cancelled is stored beside what was held."""
    run_id = await start(world)
    for number in range(50):
        say(world, run_id, (number * 1000, "x" * 1000))
    await world.orchestrator.cancel_run(run_id)
    say(world, run_id, (45_500, "z" * 1000), (46_500, "z" * 4000), final=True)
    end = 0
    for offset, text, cut in await logs(world, run_id):
        assert offset == end + cut
        end = offset + len(text)


async def test_a_slow_listener_is_bounded(world: World) -> None:
    """It loses the oldest, and sees by the offsets that it did."""
    run_id = await start(world)
    stream = world.orchestrator.follow(run_id, None, 0, logs=True)
    world.dispatcher.start_job(run_id, A)
    assert isinstance(await anext(aiter(stream)), list)
    for number in range(300):
        say(world, run_id, (number * 10_000, "x" * 10_000))
    await world.orchestrator._parts.journal.barrier()
    (listener,) = world.orchestrator._parts.feed._listeners[run_id]
    assert listener._size <= 1024 * 1024
    first = await anext(aiter(stream))
    assert isinstance(first, LogMessages)
    assert first.texts[0][0] > 0
    await stream.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_logs_are_not_read_on_the_loop(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page of them may be megabytes."""
    run_id = await start(world)
    say(world, run_id, (0, "x"))
    threads: list[threading.Thread] = []

    def spy(record: LogRecord) -> Part:
        threads.append(threading.current_thread())
        return stored(record)

    monkeypatch.setattr(reading, "stored", spy)
    following = aiter(world.orchestrator.follow(run_id, None, 0, logs=True))
    assert isinstance(await anext(following), LogMessages)
    assert await logs(world, run_id) == [(0, "x", 0)]
    assert len(threads) == 2
    assert threading.main_thread() not in threads
    await following.aclose()  # type: ignore[attr-defined]  # it is a generator


async def test_pages(world: World) -> None:
    """Of whole parts; what was cut is right across them."""
    run_id = await start(world)
    for number in range(120):
        say(world, run_id, (number * 10, "ten chars\n"))
    say(world, run_id, (1207, "end\n"))
    first: Any = await world.orchestrator.task_logs(run_id, A)
    assert len(first["logs"]) == 50
    found = await logs(world, run_id)
    assert [offset for offset, _, _ in found] == [*range(0, 1200, 10), 1207]
    assert [cut for _, _, cut in found] == [0] * 120 + [7]
    world.dispatcher.fail(run_id, A)
    assert await logs(world, run_id, attempt=2) == []
    assert await logs(world, run_id, attempt=1) == found


async def test_any_page_that_is_named_can_be_asked_for(world: World) -> None:
    """Wherever an entry that a worker may report begins and ends."""
    run_id = await start(world)
    last = LogEntry(wire.MAX_OFFSET - 1, 5.0, "stdout", "x" * HALF)
    assert wire.split_logs(wire.logs_before([last])) == ((last,), b"")
    assert await logs(world, run_id, after=f"1.{last.offset}.{last.end}") == []


async def test_what_is_not_there(world: World) -> None:
    run_id = await start(world)
    assert await logs(world, run_id) == []
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.task_logs(RunId("x"), A)
    with pytest.raises(TaskNotFoundError):
        await world.orchestrator.task_logs(run_id, TaskId("x"))
    for after in ("x", "1.2", "1.2.x", "1.-1.3", "1.2." + "9" * 30):
        with pytest.raises(InvalidRequestError, match="after"):
            await world.orchestrator.task_logs(run_id, A, None, after)
    await world.orchestrator.cancel_run(run_id)
    assert await logs(world, run_id) == []
    with pytest.raises(TaskNotFoundError):
        await world.orchestrator.task_logs(run_id, TaskId("x"))


async def test_logs_go_with_their_run(world: World) -> None:
    run_id = await start(world)
    for number in range(20):
        say(world, run_id, (number, "x"))
    await world.orchestrator.cancel_run(run_id)
    await world.orchestrator.delete_run(run_id)
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.task_logs(run_id, A)
    parts = world.orchestrator._parts
    housekeeping = Housekeeping(
        world.store,
        world.storage,
        parts.journal,
        world.clock,
        Retention(batch=7),
        parts._forget_nodes,
    )
    world.clock.advance(60.0)
    while await housekeeping.tidy():
        pass
    assert world.store.leftovers(run_id, 99).logs == ()
    assert world.store._printed == {}


async def test_a_limit_of_nothing_keeps_nothing(world: World) -> None:
    world.options = {"limits": type(LIMITS)(50, 1000, 5, max_log_bytes=0)}
    await world.restart()
    run_id = await start(world)
    say(world, run_id, (0, "x"))
    assert await logs(world, run_id) == []


async def test_what_is_held_is_stored_at_the_end_of_the_service(world: World) -> None:
    run_id = await start(world)
    for number in range(50):
        say(world, run_id, (number * 1000, "x" * 1000))
    await world.orchestrator.close()
    last = world.store.load_logs(run_id, 99)[-1]
    assert json.loads(last.document)[-1][0] == 49_000


async def test_a_forged_entry_is_cut(world: World) -> None:
    run_id = await start(world)
    say(world, run_id, (0, "x" * 10_000_000))
    ((_, text, _),) = await logs(world, run_id)
    assert len(text) == HALF
