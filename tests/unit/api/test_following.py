"""A stream that does not last is given up, however much it repeats."""

from __future__ import annotations

import asyncio

import pytest

from lattice.api.following import Group, StreamPolicy, follow_run
from lattice.errors import UnavailableError
from lattice.ids import RunId, TaskId
from lattice.ports.service import LogMessages
from tests.unit.api.scripted import ScriptedRun, ScriptedService

pytestmark = pytest.mark.anyio


async def test_a_stream_that_only_repeats_logs_is_given_up(service: ScriptedService) -> None:
    """It dies after each replay; who follows is told so, and until then it is opened ever less often."""
    printed = LogMessages(TaskId("t1"), 1, ((0, "a log"),))
    run = service.runs["r1"] = ScriptedRun(printed=[printed], reachable=False)
    policy = StreamPolicy(patience=2.0, first_delay=0.01, max_delay=10.0)
    found: list[Group] = []

    async def follow() -> None:
        async for group in follow_run(service, RunId("r1"), None, 0, policy, logs=True):
            found.append(group)

    with pytest.raises(UnavailableError):
        await asyncio.wait_for(follow(), 20)
    assert found == [[(None, "a log")]]
    # The wait is doubled each time: the eighth would end after 2.55 s.
    assert len(run.opened_after) <= 8
