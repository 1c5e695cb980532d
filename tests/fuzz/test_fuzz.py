"""Ten thousand random and hostile requests: no 5xx but 503, no crash, no growth, and pickles stay pickles.

More of them, or others: `python -m tests.fuzz --requests 100000 --seed 7`.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import httpx
import pytest

from tests.fuzz.campaign import Campaign
from tests.fuzz.pickles import RETURNS, Mark, Marks
from tests.fuzz.pool import Pool
from tests.fuzz.requests import Generator
from tests.fuzz.settings import MAX_BODY
from tests.fuzz.watch import Heap, Watch, defects_in, heaps
from tests.running import Service
from tests.service.rest import Rest, inputs, outputs

_SEED = "lattice"
_REQUESTS = 10_000
#: The first of them warm up what is made at the first need of it.
_WARM = 4_000

#: Growth for each request that passes for noise. One small object, or 1 KiB, kept of each would be above.
_BLOCKS = 0.7
_BYTES = 600.0
#: Seconds in which all has ended that requests have left behind.
_ENDS = 90.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the requests came to."""

    campaign: Campaign
    watch: Watch
    before: dict[str, Heap]
    after: dict[str, Heap]


def grows(before: Heap, after: Heap) -> bool:
    """Whether a process holds more for each request than passes for noise."""
    requests = _REQUESTS - _WARM
    blocks, data = after.blocks - before.blocks, after.data - before.data
    return blocks / requests >= _BLOCKS or data / requests >= _BYTES


@pytest.fixture(scope="module")
def marks(tmp_path_factory: pytest.TempPathFactory) -> Marks:
    """What hostile pickles leave."""
    return Marks(tmp_path_factory.mktemp("marks") / "marks")


@pytest.fixture(scope="module")
def outcome(service: Service, rest: Rest, marks: Marks) -> Outcome:
    """All requests sent, and everything quiet again."""
    watch = Watch(service)
    campaign = Campaign(service.url, _SEED, marks, MAX_BODY)
    campaign.fill()
    campaign.run(0, _WARM)
    campaign.settle()
    before = heaps(rest)
    campaign.run(_WARM, _REQUESTS - _WARM)
    campaign.settle()
    after = heaps(rest)
    end = time.monotonic() + _ENDS
    while any(grows(before[name], after[name]) for name in before):
        # What is still ending goes, such as a replica's application that nobody uses any more; a leak stays.
        if time.monotonic() > end:
            break
        time.sleep(5)
        after = heaps(rest)
    return Outcome(campaign, watch, before, after)


def test_every_answer_is_as_documented(outcome: Outcome) -> None:
    """A status that the OpenAPI document has for the operation; a detail where something is refused."""
    assert not outcome.campaign.faults, "\n".join(map(str, outcome.campaign.faults))


def test_there_were_all_kinds_of_requests(outcome: Outcome) -> None:
    """Else the other tests show less than they seem to: good ones succeed, and the others do not all fail."""
    answers = outcome.campaign.answers
    kinds = Counter[str]()
    for (kind, _), count in answers.items():
        kinds[kind] += count
    assert sum(kinds.values()) >= _REQUESTS
    assert kinds["good"] + kinds["good, with a key"] + kinds["websocket"] > _REQUESTS / 6
    assert answers["good", "200"] > kinds["good"] / 3
    assert answers["mutated body", "200"] > 100
    assert {status for _, status in answers} >= {
        "200",
        "204",
        "400",
        "403",
        "404",
        "409",
        "413",
        "422",
    }


def test_the_processes_are_the_same(outcome: Outcome) -> None:
    """Nothing crashed and was started again."""
    assert not outcome.watch.changes()


def test_nothing_went_unhandled(outcome: Outcome) -> None:
    """The logs of ingress and orchestrator tell of no defect."""
    assert not outcome.watch.defects()


@pytest.mark.parametrize("process", ["ingress", "orchestrator"])
def test_memory_does_not_grow(outcome: Outcome, process: str) -> None:
    """What a process holds does not depend on how many requests it has answered."""
    before, after = outcome.before[process], outcome.after[process]
    assert not grows(before, after), (before, after)


#: What is sent where, and what it stands for once it has left its mark.
_CODE = {"code_ser": RETURNS, "serialized_code": RETURNS}


def test_hostile_pickles_run_only_where_tasks_run(
    outcome: Outcome, rest: Rest, marks: Marks
) -> None:
    """From every place that takes one: as code, as arguments, as what a task returns, raises and is given."""
    for place, after in _CODE.items():
        rest.outcome("", code_str=None, **{place: marks.pickle(place, after)})
    rest.outcome(
        "",
        code_str=None,
        code_ser=marks.pickle("batched", "(lambda batch: [{'out': 1} for _ in batch])"),
        batch_config={"enabled": True, "batch_size": 2},
        autoscaling={"warm_up": True},
    )
    _call(rest, marks)
    rest.outcome(marks.raising("raised"))
    workflow_id = rest.workflow()
    source = rest.task(workflow_id, "trap", marks.returning("returned"))
    rest.task(workflow_id, "next", "def next(p): ...", task_input=inputs(a=f"@{source}.out"))
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)
    rest.http.get(f"/runs/{run_id}/tasks/{source}/result/out")
    assert rest.http.get(f"/runs/{run_id}/tasks/{source}/result/out?format=pickle").content

    left = marks.read()
    assert not outcome.watch.trespasses(left)
    # They do run: what is not seen to run would prove nothing.
    assert {mark.place for mark in left} >= {
        *_CODE,
        "batched",
        "langgraph_code",
        "args",
        "kwargs",
        "returned",
    }
    assert not outcome.watch.changes()


def _call(rest: Rest, marks: Marks) -> None:
    workflow_id = rest.workflow()
    code = marks.pickle("langgraph_code", "(lambda *a, **k: [len(a), len(k)])")
    add = {"workflow_id": workflow_id, "task_name": "node", "code_ser": code}
    call = {
        "workflow_id": workflow_id,
        "task_id": rest.post("/add_langgraph_task", add)["task_id"],
        "args": marks.pickle("args", "(1, 2)"),
        "kwargs": marks.pickle("kwargs", "{'a': 1}"),
    }
    assert rest.post("/run_langgraph_task", call)["result"] == [2, 1]


def test_the_service_works_after_all_that(outcome: Outcome, rest: Rest) -> None:
    """A run of two tasks, from its first message to its last."""
    assert httpx.get(f"{rest.url}/readyz", timeout=60).status_code == 200
    workflow_id = rest.workflow()
    first = rest.task(workflow_id, "first", "def first(p):\n    return {'out': 20}\n")
    second = rest.task(
        workflow_id,
        "second",
        "def second(p):\n    return {'out': p['a'] + 1}\n",
        task_input=inputs(a=f"@{first}.out"),
        task_output=outputs("out"),
    )
    run_id = rest.run(workflow_id)
    messages = rest.messages(workflow_id, run_id)
    assert messages[-1]["data"]["status"] == "succeeded"
    assert rest.get(f"/runs/{run_id}/tasks/{second}/result")["result"] == {"out": 21}


# -- what the tests above rest on --------------------------------------------------------------


def test_a_number_is_always_the_same_request(marks: Marks) -> None:
    """So that a failure can be looked into."""
    for number in range(300):
        first, second = (
            Generator(_SEED, Pool(), marks, 10_000).request(number).data for _ in range(2)
        )
        assert first == second


def test_marks_of_the_control_plane_are_told_apart(outcome: Outcome) -> None:
    """A process that runs no user code, by its title or by its id."""
    (ingress, *_) = (pid for pid, name in outcome.watch.control.items() if "ingress" in name)
    bad = [
        Mark("code_ser", 1, "ray::ServeReplica:lattice:ingress"),
        Mark("code_ser", 1, "ray::ServeReplica:lattice:orchestrator"),
        Mark("code_ser", 1, "ray::ServeController.listen_for_change"),
        Mark("code_ser", 1, "/usr/bin/python serve run"),
        Mark("code_ser", ingress, "ray::run_attempt"),
    ]
    good = [
        Mark("code_ser", 1, "ray::run_attempt"),
        Mark("code_ser", 1, "ray::ServeReplica:lattice-task-1:task"),
    ]
    assert outcome.watch.trespasses(good + bad) == bad


def test_defects_are_found_in_logs() -> None:
    """Tracebacks with a frame of ours, in groups and causes, too; not those of the engine alone."""
    ours = (
        "Traceback (most recent call last):\n"
        '  File "/x/site-packages/ray/serve/replica.py", line 1, in f\n    g()\n'
        '  File "/x/lattice/api/server.py", line 1, in g\n    h()\n'
        "ValueError: x\n"
    )
    engine = ours.replace("/lattice/api", "/site-packages/uvicorn")
    forgotten = "ERROR Task exception was never retrieved\n"
    assert len(defects_in(f"INFO a\n{ours}INFO b\n{engine}{forgotten}INFO c\n")) == 2
    assert not defects_in(f"INFO a\n{engine}INFO /lattice/\n")
