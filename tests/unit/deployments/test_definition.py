"""Which jobs share replicas, and what is a class."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployments.definition import Definition
from deployments.dispatching import is_class
from lattice.ids import Digest, NodeId, RunId, TaskId
from lattice.ports import Job
from lattice.workflow.task import Code, CodeForm, Resources

JOB = Job(
    run_id=RunId("r"),
    task_id=TaskId("t"),
    attempt=1,
    name="run",
    code=Code(Digest("d"), CodeForm.SOURCE, "run"),
    arguments=(),
    output_keys=("a",),
    resources=Resources(),
    gpus=0.0,
    batched=True,
    timed=False,
    runtime_env={},
    excluded=frozenset(),
    batch_size=8,
)


def name(job: Job, scope: str = "s") -> str:
    return Definition.of(job).name(scope)


def test_where_a_job_comes_from_does_not_count() -> None:
    """Runs, tasks, attempts and declared outputs share replicas."""
    other = replace(JOB, run_id=RunId("r2"), task_id=TaskId("t2"), attempt=2, output_keys=("b",))
    assert name(other) == name(JOB)


def test_what_the_calls_need_counts() -> None:
    """Each of these makes another definition; and services keep apart."""
    others = [
        replace(JOB, code=replace(JOB.code, digest=Digest("e"))),
        replace(JOB, resources=Resources(cpu=2)),
        replace(JOB, gpus=0.5),
        replace(JOB, batch_size=9),
        replace(JOB, batch_timeout=1.0),
        replace(JOB, runtime_env={"pip": ["x"]}),
        replace(JOB, excluded=frozenset({NodeId("n")})),
        replace(JOB, batched=False),
    ]
    names = {name(JOB), name(JOB, "other"), *map(name, others)}
    assert len(names) == len(others) + 2


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("class A: pass", True),
        ("def f(): pass\nclass A: pass", True),
        ("class A: pass\ndef f(): pass", False),
        ("class A: pass\ndef run(): pass\nclass B: pass", False),
        ("class run: pass\ndef f(): pass", True),
        ("x = 1", False),
        ("def (", False),
    ],
)
def test_source_that_ends_in_a_class_is_one(source: str, expected: bool) -> None:
    """As a worker would pick: the one of the task's name, else the last."""
    assert is_class(source.encode(), "run") is expected
