"""Requests as a client would send them, on shared ids: one plan for each operation of the API."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz import pickles
from tests.fuzz.pickles import Marks
from tests.fuzz.pool import Pool
from tests.fuzz.request import Plan


class Planner:
    """Makes plans on the ids that the pool holds, with code that leaves marks."""

    def __init__(self, pool: Pool, marks: Marks) -> None:
        self._pool = pool
        self._marks = marks

    def plan(self, rng: Random) -> Plan:
        """A good request on shared ids."""
        (make,) = rng.choices([make for make, _ in _PLANS], [weight for _, weight in _PLANS])
        return make(self, rng)

    def create_workflow(self, rng: Random) -> Plan:
        slot, _ = self._pool.workflow(rng)
        return Plan("POST /create_workflow", "/create_workflow", learns="workflow", slot=slot)

    def add_task(self, rng: Random) -> Plan:
        slot, workflow_id = self._pool.workflow(rng)
        body = {"workflow_id": workflow_id, "task_type": "code", "task_name": "good"}
        return Plan(
            "POST /add_task",
            "/add_task",
            body,
            learns="task",
            slot=slot,
            place=rng.randrange(100),
            sent=workflow_id,
        )

    def save_task(self, rng: Random) -> Plan:
        slot, workflow_id = self._pool.workflow(rng)
        source, target = self._pool.task(rng, slot), self._pool.task(rng, slot)
        body = {"workflow_id": workflow_id, "task_id": target, **self._definition(rng, source)}
        path = rng.choice(("/save_task", "/save_task_and_add_edge"))
        return Plan(f"POST {path}", path, body)

    def _definition(self, rng: Random, source: str) -> dict[str, Any]:
        """What a task does, takes, returns and needs."""
        inputs: dict[str, Any] = {
            "1": {
                "key": "text",
                "input_schema": "from_user",
                "data_type": "str",
                "value": rng.choice(("a", 1, [1, {"a": None}], 0.5)),
            }
        }
        if rng.random() < 0.4:
            value = f"{source}.{rng.choice(('out', 'output.out'))}"
            inputs["2"] = {
                "key": "before",
                "input_schema": "from_task",
                "data_type": "Any",
                "value": value,
            }
        definition = {
            **self._marks.code(rng),
            "task_input": {"input_params": inputs},
            "task_output": {"output_params": {"1": {"key": "out", "data_type": "Any"}}},
            "resources": {"cpu": 0.25, "cpu_mem": 16},
        }
        if rng.random() < 0.2:
            # As they are by default; a mutation makes something of them.
            definition["batch_config"] = {"enabled": False, "batch_size": 4, "batch_timeout": 0.1}
            definition |= {"runtime_env": {}, "autoscaling": None, "code_is_class": False}
        if rng.random() < 0.2:
            definition["retry"] = {"max_attempts": 2, "backoff": 0.05, "on": ["ValueError"]}
        if rng.random() < 0.1:
            definition["timeout"] = rng.choice((0.1, 5))
        return definition

    def edge(self, rng: Random) -> Plan:
        slot, workflow_id = self._pool.workflow(rng)
        body = {
            "workflow_id": workflow_id,
            "source_task_id": self._pool.task(rng, slot),
            "target_task_id": self._pool.task(rng, slot),
        }
        path = rng.choice(("/add_edge", "/add_edge", "/del_edge"))
        return Plan(f"POST {path}", path, body)

    def del_task(self, rng: Random) -> Plan:
        slot, workflow_id = self._pool.workflow(rng)
        body = {"workflow_id": workflow_id, "task_id": self._pool.task(rng, slot)}
        return Plan("POST /del_task", "/del_task", body)

    def workflow_tasks(self, rng: Random) -> Plan:
        _, workflow_id = self._pool.workflow(rng)
        path = f"/get_workflow_tasks/{workflow_id}"
        return Plan("GET /get_workflow_tasks/{workflow_id}", path)

    def run_workflow(self, rng: Random) -> Plan:
        _, workflow_id = self._pool.workflow(rng)
        body: dict[str, Any] = {
            "workflow_id": workflow_id,
            "deadline": rng.choice((None, 20, 0.05)),
        }
        return Plan(
            "POST /run_workflow",
            "/run_workflow",
            body,
            learns="run",
            place=rng.randrange(100),
            sent=workflow_id,
        )

    def submit_workflow(self, rng: Random) -> Plan:
        names = [f"t{number}" for number in range(rng.randrange(1, 5))]
        tasks = [
            {"task_id": name, **self._definition(rng, names[max(0, place - 1)])}
            for place, name in enumerate(names)
        ]
        # The first takes nothing of itself.
        tasks[0]["task_input"]["input_params"].pop("2", None)
        body = {"tasks": tasks, "edges": [*itertools.pairwise(names)][:2]}
        slot, _ = self._pool.workflow(rng)
        return Plan(
            "POST /submit_workflow",
            "/submit_workflow",
            body,
            # Most are for one run only, so that the shared workflows last for a while.
            learns="whole" if rng.random() < 0.3 else "run",
            slot=slot,
            place=rng.randrange(100),
        )

    def cancel_run(self, rng: Random) -> Plan:
        run_id, _ = self._pool.run(rng)
        return Plan("POST /runs/{run_id}/cancel", f"/runs/{run_id}/cancel")

    def retry_run(self, rng: Random) -> Plan:
        run_id, workflow_id = self._pool.run(rng)
        return Plan(
            "POST /runs/{run_id}/retry",
            f"/runs/{run_id}/retry",
            learns="run",
            place=rng.randrange(100),
            sent=workflow_id,
        )

    def delete_run(self, rng: Random) -> Plan:
        run_id, _ = self._pool.run(rng)
        return Plan("DELETE /runs/{run_id}", f"/runs/{run_id}")

    def delete_runs(self, rng: Random) -> Plan:
        _, workflow_id = self._pool.workflow(rng)
        path = f"/workflows/{workflow_id}/runs"
        limit = rng.choice(("", "?limit=1"))
        return Plan("DELETE /workflows/{workflow_id}/runs", path, query=limit)

    def delete_workflow(self, rng: Random) -> Plan:
        _, workflow_id = self._pool.workflow(rng)
        return Plan("DELETE /workflows/{workflow_id}", f"/workflows/{workflow_id}")

    def describe_run(self, rng: Random) -> Plan:
        run_id, _ = self._pool.run(rng)
        return Plan("GET /runs/{run_id}", f"/runs/{run_id}")

    def list_runs(self, rng: Random) -> Plan:
        run_id, workflow_id = self._pool.run(rng)
        query = rng.choice(
            (
                "",
                "?limit=3",
                f"?workflow_id={workflow_id}",
                f"?before={run_id}",
                f"?status=failed&limit=5&before={run_id}",
            )
        )
        return Plan("GET /runs", "/runs", query=query)

    def task_result(self, rng: Random) -> Plan:
        run_id, _ = self._pool.run(rng)
        task_id = rng.choice(("t0", "t1", self._pool.task(rng, rng.randrange(6))))
        if rng.random() < 0.5:
            template = "/runs/{run_id}/tasks/{task_id}/result"
            return Plan(f"GET {template}", f"/runs/{run_id}/tasks/{task_id}/result")
        template = "/runs/{run_id}/tasks/{task_id}/result/{key}"
        query = rng.choice(("", "?format=pickle", "?format=json"))
        path = f"/runs/{run_id}/tasks/{task_id}/result/out"
        return Plan(f"GET {template}", path, query=query)

    def run_events(self, rng: Random) -> Plan:
        run_id, _ = self._pool.run(rng)
        query = rng.choice(("", "?after=0", "?after=2", "?after=1000"))
        path = f"/runs/{run_id}/events"
        stream = rng.choice((0.01, 0.3))
        return Plan("GET /runs/{run_id}/events", path, query=query, stream=stream)

    def add_langgraph_task(self, rng: Random) -> Plan:
        slot, workflow_id = self._pool.workflow(rng)
        code = rng.choice(
            (
                self._marks.pickle("langgraph_code", "(lambda *a, **k: [len(a), len(k)])"),
                base64.b64encode(b"cbuiltins\nrepr\n.").decode(),
                base64.b64encode(b"cbuiltins\nexit\n.").decode(),
                base64.b64encode(b"cbuiltins\nlist\n.").decode(),
                base64.b64encode(b"cno_such\nthing\n.").decode(),
            )
        )
        body = {
            "workflow_id": workflow_id,
            "task_type": "langgraph",
            "task_name": "node",
            rng.choice(("code_ser", "serialized_code")): code,
            "resources": {"cpu": 0.25},
        }
        return Plan(
            "POST /add_langgraph_task",
            "/add_langgraph_task",
            body,
            learns="node",
            slot=slot,
            sent=workflow_id,
        )

    def run_langgraph_task(self, rng: Random) -> Plan:
        slot, workflow_id = self._pool.workflow(rng)
        body = {
            "workflow_id": workflow_id,
            "task_id": self._pool.node(slot),
            "args": pickles.arguments(rng, self._marks, "args", "((),)"),
            "kwargs": pickles.arguments(rng, self._marks, "kwargs", "{}"),
            "result_format": rng.choice(("json", "pickle")),
        }
        return Plan("POST /run_langgraph_task", "/run_langgraph_task", body)

    def worker(self, rng: Random) -> Plan:
        # Not a node of the engine: a test in which every node was taken out of use would run nothing.
        node_id = f"node-{rng.randrange(5)}"
        if rng.random() < 0.3:
            return Plan("POST /disconnect_worker", "/disconnect_worker", {"node_id": node_id})
        body = {
            "node_id": node_id,
            "node_ip": "10.255.255.1",
            "resources": {
                "cpu": 8,
                "cpu_mem": 16384,
                "gpu_resource": {"0": {"gpu_id": 0, "gpu_mem": 8192, "gpu_num": 1}},
            },
        }
        return Plan("POST /connect_worker", "/connect_worker", body)

    def reading(self, rng: Random) -> Plan:
        path = rng.choice(("/workers", "/healthz", "/readyz", "/metrics"))
        return Plan(f"GET {path}", path)

    def head_port(self, rng: Random) -> Plan:
        return Plan("POST /get_head_ray_port", "/get_head_ray_port")


#: What is planned, and how often.
_PLANS: tuple[tuple[Callable[[Planner, Random], Plan], float], ...] = (
    (Planner.create_workflow, 1),
    (Planner.add_task, 3),
    (Planner.save_task, 16),
    (Planner.edge, 10),
    (Planner.del_task, 4),
    (Planner.workflow_tasks, 3),
    (Planner.run_workflow, 14),
    (Planner.submit_workflow, 6),
    (Planner.cancel_run, 6),
    (Planner.retry_run, 7),
    (Planner.delete_run, 10),
    (Planner.delete_runs, 3),
    (Planner.delete_workflow, 1),
    (Planner.describe_run, 5),
    (Planner.list_runs, 4),
    (Planner.task_result, 6),
    (Planner.run_events, 3),
    (Planner.add_langgraph_task, 3),
    (Planner.run_langgraph_task, 4),
    (Planner.worker, 2),
    (Planner.reading, 2),
    (Planner.head_port, 1),
)
