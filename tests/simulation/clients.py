"""People: they make workflows, run them, change them meanwhile, cancel, and look at how things are.

Each is the only one who edits the workflows that it has made, so it knows what they must be.
"""

from __future__ import annotations

import asyncio
from functools import partial

from lattice.errors import EdgeNotFoundError, TaskNotFoundError
from lattice.ids import RunId, TaskId, Tenant, WorkflowId
from lattice.orchestrator import Orchestrator
from tests.simulation.graphs import Draft, connect
from tests.simulation.ledger import Ledger
from tests.simulation.nature import Nature
from tests.simulation.requests import Requests, Service
from tests.simulation.subscribers import Subscriber


class Client:
    """One person with a few errands, whose workflows are of `tenant`."""

    def __init__(
        self, name: str, service: Service, ledger: Ledger, nature: Nature, tenant: Tenant | None
    ) -> None:
        self._tenant = tenant
        self._requests = Requests(name, service, ledger, nature)
        self._service = service
        self._ledger = ledger
        self._nature = nature
        self._watching: list[asyncio.Task[None]] = []

    async def live(self) -> None:
        """Runs the errands, and stays until all that was watched has ended."""
        nature = self._nature
        await asyncio.sleep(nature.delay(1.0))
        for _ in range(nature.choice((1, 1, 2))):
            workflow_id, draft, runs = await (
                self._build() if nature.flips(0.5) else self._submit()
            )
            for run_id in runs:
                self._watch(run_id, workflow_id)
            for _ in range(nature.choice((0, 1, 2))):
                await asyncio.sleep(nature.delay(2.0))
                errand = nature.choice((self._edit, self._run, self._run, self._cancel, self._look))
                await errand(workflow_id, draft, runs)
        for task in self._watching:
            await task

    # -- errands -----------------------------------------------------------------------------

    async def _build(self) -> tuple[WorkflowId, Draft, list[RunId]]:
        """A workflow made step by step, and a run of it."""
        workflow_id = await self._requests.keyed(
            "create", lambda o, once: o.create_workflow(once, tenant=self._tenant), str
        )
        draft = Draft()
        tasks = [await self._add(workflow_id, number) for number in range(self._count())]
        connect(draft, tasks, self._nature)
        edges, draft.edges = draft.edges, {}
        for task_id in tasks:
            await self._save(workflow_id, draft, task_id)
        for edge in edges:
            await self._requests.send(
                partial(
                    Orchestrator.add_edge, workflow_id=workflow_id, source=edge[0], target=edge[1]
                )
            )
            draft.edges[edge] = None
        runs: list[RunId] = []
        await self._run(workflow_id, draft, runs)
        return workflow_id, draft, runs

    async def _submit(self) -> tuple[WorkflowId, Draft, list[RunId]]:
        """A workflow and a run of it in one request."""
        draft = Draft()
        tasks = [TaskId(f"t{number}") for number in range(self._count())]
        connect(draft, tasks, self._nature)
        uploads = [draft.upload(task_id, self._nature) for task_id in tasks]
        edges = [*draft.edges]
        workflow_id, run_id = await self._requests.keyed(
            "submit",
            lambda o, once: o.submit_workflow(uploads, edges, once, tenant=self._tenant),
            lambda answer: answer[0],
            lambda answer: answer[1],
        )
        self._check_plan(run_id, draft)
        return workflow_id, draft, [run_id]

    async def _run(self, workflow_id: WorkflowId, draft: Draft, runs: list[RunId]) -> None:
        """One more run of the workflow as it is now."""
        run_id = await self._requests.keyed(
            "run", lambda o, once: o.run_workflow(workflow_id, once), str
        )
        self._check_plan(run_id, draft)
        self._watch(run_id, workflow_id)
        runs.append(run_id)

    async def _edit(self, workflow_id: WorkflowId, draft: Draft, runs: list[RunId]) -> None:
        """Adds, deletes or cuts something, while runs go on as they were begun."""
        nature = self._nature
        kind = nature.choice(("add", "delete", "cut"))
        referred = {source for each in draft.references.values() for source, _ in each.values()}
        free = [task_id for task_id in draft.references if task_id not in referred]
        if kind == "add":
            task_id = await self._add(workflow_id, len(draft.references))
            draft.references[task_id] = {}
            source = nature.choice([*draft.references])
            if source != task_id:
                draft.references[task_id]["late"] = source, "out"
            await self._save(workflow_id, draft, task_id)
        elif kind == "delete" and len(draft.references) > 1:
            task_id = nature.choice(free)
            await self._requests.send(
                lambda o: o.del_task(workflow_id, task_id), done=TaskNotFoundError
            )
            del draft.references[task_id]
            draft.edges = {edge: None for edge in draft.edges if task_id not in edge}
        elif draft.edges:
            edge = nature.choice([*draft.edges])
            await self._requests.send(
                lambda o: o.del_edge(workflow_id, *edge), done=EdgeNotFoundError
            )
            del draft.edges[edge]
        await self._look(workflow_id, draft, runs)

    async def _cancel(self, workflow_id: WorkflowId, draft: Draft, runs: list[RunId]) -> None:
        """Ends a run, if it has not ended."""
        run_id = self._nature.choice(runs)
        status = await self._requests.send(lambda o: o.cancel_run(run_id))
        if status != self._ledger.logs[run_id].status:
            self._ledger.fail(f"{run_id} was said to be {status} after its cancellation")

    async def _look(self, workflow_id: WorkflowId, draft: Draft, runs: list[RunId]) -> None:
        """Asks how things are; whoever answers must know all that was acknowledged."""
        tasks = await self._requests.send(lambda o: o.workflow_tasks(workflow_id))
        assert tasks is not None
        found = [task["id"] for task in tasks]
        if found != [*draft.references]:
            self._ledger.fail(f"{workflow_id} has the tasks {found}, and not {[*draft.references]}")
        for run_id in runs:
            described = await self._requests.send(partial(Orchestrator.describe_run, run_id=run_id))
            assert described is not None
            if int(str(described["last_seq"])) > len(self._ledger.logs[run_id].texts):
                self._ledger.fail(f"{run_id} is described beyond what is stored")
            await self._look_at_values(run_id)

    async def _look_at_values(self, run_id: RunId) -> None:
        """Asks for an output of a task that is known to have finished."""
        finished = self._ledger.logs[run_id].finished
        if not finished:
            return
        task_id = self._nature.choice([*finished])
        key = self._nature.choice([*finished[task_id]])
        value = await self._requests.send(
            partial(Orchestrator.value_pickle, run_id=run_id, task_id=task_id, key=key)
        )
        result = await self._requests.send(
            partial(Orchestrator.task_result, run_id=run_id, task_id=task_id)
        )
        stored = finished[task_id][key]
        if value != stored or result is None or str(result[key]).encode() != stored:
            self._ledger.fail(f"{task_id}.{key} of {run_id} is {value!r} and {result}")

    async def _add(self, workflow_id: WorkflowId, number: int) -> TaskId:
        return await self._requests.keyed(
            "add", lambda o, once: o.add_task(workflow_id, "code", f"task {number}", once)
        )

    async def _save(self, workflow_id: WorkflowId, draft: Draft, task_id: TaskId) -> None:
        upload = draft.upload(task_id, self._nature)
        add_edges = self._nature.flips(0.5)
        await self._requests.send(lambda o: o.save_task(workflow_id, upload, add_edges=add_edges))
        if add_edges:
            for source, _ in draft.references[task_id].values():
                draft.edges[source, task_id] = None

    def _check_plan(self, run_id: RunId, draft: Draft) -> None:
        """A run works on the workflow as it was when it was requested."""
        if self._ledger.logs[run_id].plan.upstream != draft.upstream():
            self._ledger.fail(f"{run_id} runs another graph than was saved")

    def _watch(self, run_id: RunId, workflow_id: WorkflowId) -> None:
        for number in range(self._nature.choice((0, 1, 1, 2))):
            subscriber = Subscriber(run_id, workflow_id, self._service, self._ledger, self._nature)
            name = f"subscriber {number} of {run_id}"
            self._watching.append(asyncio.create_task(subscriber.live(), name=name))

    def _count(self) -> int:
        return self._nature.choice((1, 2, 3, 4, 4, 5, 6))
