"""Settings that come to the orchestrator."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lattice.assembly import build_orchestrator
from lattice.ids import TaskId
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
