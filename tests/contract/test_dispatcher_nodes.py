"""What every dispatcher does on a cluster of several nodes: where it places jobs, and what it survives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray.cluster_utils import Cluster

from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.workflow.events import TaskLost, TaskSucceeded
from lattice.workflow.task import Resources
from tests.contract.dispatching import Bench, output_of, short_folder

pytestmark = pytest.mark.anyio

Params = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose head, where the dispatcher is, has two CPUs; it soon sees that a node is dead."""
    # Where Ray notes the newest cluster, whatever folder that has; it does not make the folder here.
    Path(get_default_ray_temp_dir()).mkdir(exist_ok=True)
    with short_folder() as folder:
        cluster = Cluster(
            initialize_head=True,
            connect=True,
            shutdown_at_exit=False,
            head_node_args={
                "num_cpus": 2,
                "include_dashboard": False,
                # Any port: Ray leaves a socket open when it finds its usual one taken.
                "dashboard_port": 0,
                "temp_dir": folder,
                "_system_config": {
                    "health_check_period_ms": 200,
                    "health_check_failure_threshold": 3,
                },
            },
        )
        yield cluster
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray's own gap


async def test_excluded_nodes_get_nothing_and_a_dead_node_loses_little(
    cluster: Cluster, tmp_path: Path
) -> None:
    """What ran on the node is lost, what it held is read from storage, and the rest goes on."""
    bench = Bench(RayTaskDispatcher((tmp_path / "values").as_uri(), inline_value_bytes=1024))
    await bench.start()
    (head,) = await bench.dispatcher.nodes()
    worker = cluster.add_node(num_cpus=2)
    only_head, only_worker = frozenset({worker.node_id}), frozenset({head.node_id})
    assert {node.node_id for node in await bench.dispatcher.nodes()} == only_head | only_worker

    def where(params: Params) -> Params:
        time.sleep(0.05)
        return {}

    for excluded, allowed in ((only_head, head.node_id), (only_worker, worker.node_id)):
        jobs = [bench.job(where, f"{allowed} {number}", excluded=excluded) for number in range(6)]
        for job in jobs:
            bench.dispatcher.submit(job)
        for job in jobs:
            end = await bench.end(job)
            assert isinstance(end, TaskSucceeded), end
            assert end.placement.node_id == allowed

    made = await bench.succeed(lambda p: {"x": b"a" * 1_000_000}, "make", excluded=only_worker)

    def sleep(params: Params) -> Params:
        time.sleep(1000)
        return {}

    running = bench.job(sleep, "running", excluded=only_worker)
    bench.dispatcher.submit(running)
    await bench.started(running)
    cluster.remove_node(worker, allow_graceful=False)
    lost = await bench.end(running)
    assert isinstance(lost, TaskLost), lost
    assert "died" in lost.error.message

    arguments = (output_of("make", "x", made.values["x"]),)
    used = await bench.succeed(
        lambda p: {"n": len(p["x"])}, "use", arguments, resources=Resources(cpu=2)
    )
    assert used.result == {"n": 1_000_000}
    await bench.dispatcher.close()
