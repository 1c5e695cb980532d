"""Following a run across interruptions, for as long as its reader stays.

The orchestrator may be replaced while it is followed. The stream is then opened again behind the last
message that was handed on, so that the reader sees each message once and nothing of the interruption.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import dataclass
from typing import Any

from lattice.errors import InvalidRequestError, UnavailableError
from lattice.ids import RunId, TaskId, WorkflowId
from lattice.ports.service import LogMessages, OrchestratorService
from lattice.workflow import checks

#: Messages with their numbers; those about what tasks print have none.
Group = list[tuple[int | None, str]]

#: More than any run has; what JavaScript counts up to.
_MAX_SEQ = 2**53


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """How streams of messages are kept up. All times are in seconds.

    Attributes:
        patience: how long the orchestrator may be unavailable before the stream is given up.
        first_delay, max_delay: the wait before opening a stream again, doubled from one to the other.
        heartbeat: after this much silence a server-sent comment is sent.
        opening: how long a stream of server-sent events waits to learn whether the run exists.
    """

    patience: float = 30.0
    first_delay: float = 0.1
    max_delay: float = 2.0
    heartbeat: float = 15.0
    opening: float = 1.0


def parse_seq(text: str, field: str) -> int:
    """The number of a message, 0 for before the first. Raises InvalidRequestError."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 16 and int(text) < _MAX_SEQ):
        raise InvalidRequestError(field, checks.shown(text), "a message's number or 0 is allowed")
    return int(text)


async def follow_run(
    service: OrchestratorService,
    run_id: RunId,
    workflow_id: WorkflowId | None,
    after: int,
    policy: StreamPolicy,
    *,
    logs: bool = False,
) -> AsyncGenerator[Group, None]:
    """Yields the messages of a run after `after`, numbered, in groups, until the last.

    Messages are numbered without gaps, so their numbers are counted and not read. With `logs` there are also
    messages about what tasks print, which have no number.

    Raises:
        RunNotFoundError: there is no such run.
        UnavailableError: the orchestrator has been unavailable for longer than `policy.patience`.
    """
    now = asyncio.get_running_loop().time
    lost_since: float | None = None
    told: dict[tuple[TaskId, int], int] = {}
    delay = policy.first_delay
    while True:
        opened = now()
        stream = service.follow(run_id, workflow_id, after, logs=logs)
        try:
            async for texts in stream:
                group: Group
                if isinstance(texts, LogMessages):
                    # A stream that is opened again tells all that is kept once more.
                    new = texts.unseen(told)
                    if new is None:
                        continue
                    group = [(None, text) for _, text in new.texts]
                else:
                    group = [*enumerate(texts, after + 1)]
                    after += len(group)
                lost_since, delay = None, policy.first_delay
                yield group
            return
        except UnavailableError:
            # A stream that was open for long had been reached, though the run said nothing.
            if lost_since is None or now() - opened >= policy.patience:
                lost_since, delay = now(), policy.first_delay
            if now() + delay - lost_since > policy.patience:
                raise
        finally:
            if isinstance(stream, AsyncGenerator):
                await stream.aclose()
        await asyncio.sleep(delay)
        delay = min(2 * delay, policy.max_delay)


async def run_while(work: Coroutine[Any, Any, None], *ends: Coroutine[Any, Any, Any]) -> bool:
    """Runs `work` until it is done or one of `ends` is; whatever then still runs is cancelled.

    Returns whether `work` was done; its error is raised. Nothing is left running in any case.
    """
    tasks = [asyncio.ensure_future(one) for one in (work, *ends)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return False
        tasks[0].result()
        return True
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
