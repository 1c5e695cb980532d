"""Settings that come to the orchestrator."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from lattice.assembly import build_orchestrator
from lattice.ids import RunId, TaskId
from lattice.orchestrator import Orchestrator
from lattice.settings import LatticeSettings
from lattice.testing.fakes import FakeClock, HeldDispatcher
from tests.unit.orchestrator.world import upload

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("warm_up", [False, True])
async def test_the_setting_of_warm_up(tmp_path: Path, warm_up: bool) -> None:
    """Saving a task with replicas gets it ready, where `replica_warm_up` says so."""
    held = HeldDispatcher(FakeClock())
    settings = LatticeSettings(store_url="memory:", data_dir=tmp_path, replica_warm_up=warm_up)
    orchestrator = build_orchestrator(settings, around=lambda *_: held)
    await orchestrator.start_monitor()
    workflow_id = await orchestrator.create_workflow()
    task_id = TaskId(await orchestrator.add_task(workflow_id, "code", "a"))
    saved = replace(upload("a", batch_config={"enabled": True}), task_id=task_id)
    await orchestrator.save_task(workflow_id, saved, add_edges=False)
    assert len(held.prepared) == warm_up
    await orchestrator.close()


async def test_a_long_default_wait_is_not_cut(tmp_path: Path) -> None:
    """`default_retry_backoff` may be longer than the usual bound of waits."""
    held = HeldDispatcher(FakeClock())
    settings = LatticeSettings(
        store_url="memory:",
        data_dir=tmp_path,
        default_retry_attempts=2,
        default_retry_backoff=300.0,
    )
    orchestrator = build_orchestrator(settings, around=lambda *_: held)
    await orchestrator.start_monitor()
    _, run_id = await orchestrator.submit_workflow([upload("a")], [])
    held.fail(run_id, TaskId("a"))
    messages = [json.loads(text) async for group in _first(orchestrator, run_id) for text in group]
    (retry,) = (each["data"] for each in messages if each["type"] == "task_retry")
    assert 150 <= retry["delay"] <= 300
    await orchestrator.close()


async def _first(orchestrator: Orchestrator, run_id: RunId) -> AsyncIterator[list[str]]:
    stream = orchestrator.follow(run_id, None, 0)
    yield await anext(aiter(stream))
