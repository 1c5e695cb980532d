"""Messages as the SDK's events."""

from __future__ import annotations

import json

from lattice.client.events import FinishTask, StartTask, TaskException, parse

DATA = {"seq": 1, "time": "t", "run_id": "r", "task_id": "a", "attempt": 1}
WAITED = {"queued": 0.5, "starting": 2.0, "batching": 0.0}


def message(kind: str, **data: object) -> str:
    return json.dumps({"type": kind, "data": DATA | data})


def test_where_the_time_went_is_told() -> None:
    """At the start and at the end; empty where a service does not tell it."""
    start = parse(message("start_task", waited=WAITED), {})
    assert isinstance(start, StartTask)
    assert start.waited == WAITED
    timing = WAITED | {"running": 1.0}
    finish = parse(message("finish_task", result={}, timing=timing), {})
    failed = parse(message("task_exception", result="no", timing=timing), {})
    assert isinstance(finish, FinishTask)
    assert isinstance(failed, TaskException)
    assert finish.timing == failed.timing == timing
    old = parse(message("finish_task", result={}), {})
    assert isinstance(old, FinishTask)
    assert old.timing == {}
