"""Editing a workflow: every refusal leaves it as it was, and a graph is what the edges and references say."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.errors import (
    CycleError,
    EdgeNotFoundError,
    InvalidRequestError,
    TaskNotFoundError,
)
from lattice.ids import Digest, TaskId, WorkflowId
from lattice.workflow.bindings import Input, Output, Reference
from lattice.workflow.graph import Binding, Graph, Upstream, Workflow
from lattice.workflow.task import Code, CodeForm, Task, TaskKind

A, B, C = TaskId("a"), TaskId("b"), TaskId("c")
CODE = Code(Digest("d"), CodeForm.SOURCE, "f")


def task(task_id: TaskId, *references: str, outputs: str = "out") -> Task:
    """A saved task with an input for each reference."""
    inputs = tuple(
        Input(f"in{number}", Reference.parse(text, "value"), None, "Any")
        for number, text in enumerate(references)
    )
    return Task(task_id, task_id, code=CODE, inputs=inputs, outputs=(Output(outputs, "Any"),))


def workflow(*ids: TaskId) -> Workflow:
    made = Workflow(WorkflowId("w"))
    for task_id in ids:
        made.add_task(Task(task_id, task_id))
        made.save_task(task(task_id), add_edges=False)
    return made


def state(made: Workflow) -> object:
    return made.tasks, made.edges, made.graph() if made.tasks else None


def test_references_and_edges_make_the_order() -> None:
    """A run's order is explicit edges and references together."""
    made = workflow(A, B, C)
    made.save_task(task(B, "a.out"), add_edges=False)
    made.add_edge(B, C)
    graph = made.graph()
    assert list(graph.tasks) == [A, B, C]
    assert graph.upstream == {A: (), B: (A,), C: (B,)}
    assert graph.bindings(B) == (Binding("in0", None, Upstream(A, "out")),)


def test_saving_with_edges_makes_references_explicit() -> None:
    """Each reference becomes an edge once, however often it is saved."""
    made = workflow(A, B)
    assert made.save_task(task(B, "a.out", "a.output.out"), add_edges=True) == ((A, B),)
    assert made.save_task(task(B, "a.out"), add_edges=True) == ()
    assert made.edges == ((A, B),)


def test_deleting_an_edge_that_a_reference_implies_keeps_the_order() -> None:
    """The value is still needed, so the order stays."""
    made = workflow(A, B)
    made.save_task(task(B, "a.out"), add_edges=True)
    assert made.del_edge(A, B) is True
    assert made.del_edge(A, B) is False
    assert made.graph().upstream[B] == (A,)
    with pytest.raises(EdgeNotFoundError):
        made.del_edge(B, A)


def test_an_edge_that_closes_a_cycle_is_refused_with_the_cycle() -> None:
    """The cycle is named, and nothing changed."""
    made = workflow(A, B, C)
    made.add_edge(A, B)
    made.save_task(task(C, "b.out"), add_edges=False)
    before = state(made)
    with pytest.raises(CycleError) as caught:
        made.add_edge(C, A)
    assert caught.value.cycle == (C, A, B, C)
    assert state(made) == before


def test_a_reference_that_closes_a_cycle_is_refused_and_the_old_ones_stay() -> None:
    """The former references of the task still count."""
    made = workflow(A, B, C)
    made.save_task(task(B, "a.out"), add_edges=False)
    made.save_task(task(C, "b.out"), add_edges=False)
    before = state(made)
    with pytest.raises(CycleError):
        made.save_task(task(B, "c.out"), add_edges=True)
    assert state(made) == before
    with pytest.raises(CycleError):
        made.add_edge(B, A)


def test_a_long_cycle_is_told_in_few_words() -> None:
    """Its beginning and its end; the error has all of it."""
    cycle = [f"t{number}" for number in range(10_000)]
    error = CycleError("edges", [*cycle, "t0"])
    assert len(str(error)) < 400
    assert "t8 -> t9 -> (9981 more) -> t9991" in str(error)
    assert "t9999 -> t0;" in str(error)
    assert error.cycle == (*cycle, "t0")


def test_a_task_that_refers_to_itself_is_refused() -> None:
    """The shortest cycle."""
    made = workflow(A)
    with pytest.raises(CycleError) as caught:
        made.save_task(task(A, "a.out"), add_edges=True)
    assert caught.value.cycle == (A, A)
    with pytest.raises(CycleError):
        made.add_edge(A, A)


@pytest.mark.parametrize("reference", ["nobody.out", "a.nothing", "a.output.nothing"])
def test_a_reference_to_nothing_is_refused(reference: str) -> None:
    """Neither an unknown task nor an output that a saved task does not declare."""
    made = workflow(A, B)
    before = state(made)
    with pytest.raises(InvalidRequestError, match="in0"):
        made.save_task(task(B, reference), add_edges=True)
    assert state(made) == before


def test_outputs_of_a_task_without_code_are_checked_at_the_run() -> None:
    """Tasks may be saved in any order; what is missing is said when a run is asked for."""
    made = workflow(B)
    made.add_task(Task(A, A))
    made.save_task(task(B, "a.out"), add_edges=True)
    with pytest.raises(InvalidRequestError, match="without code"):
        made.graph()
    made.save_task(task(A, outputs="other"), add_edges=True)
    with pytest.raises(InvalidRequestError, match="declares other"):
        made.graph()


def test_deleting_a_task_takes_its_edges_and_leaves_references_dangling() -> None:
    """A run says which reference dangles; an unknown task is refused."""
    made = workflow(A, B)
    made.add_edge(A, B)
    made.del_task(A)
    assert made.edges == ()
    assert list(made.graph().tasks) == [B]
    with pytest.raises(TaskNotFoundError):
        made.del_task(A)
    made = workflow(A, B)
    made.save_task(task(B, "a.out"), add_edges=True)
    made.del_task(A)
    with pytest.raises(InvalidRequestError, match="in0"):
        made.graph()


def test_unknown_tasks_are_not_found() -> None:
    """In edges, and when saved."""
    made = workflow(A)
    for source, target in ((A, B), (B, A)):
        with pytest.raises(TaskNotFoundError):
            made.add_edge(source, target)
        with pytest.raises(TaskNotFoundError):
            made.del_edge(source, target)
    with pytest.raises(TaskNotFoundError):
        made.save_task(task(B), add_edges=False)


def test_langgraph_tasks_are_not_part_of_runs() -> None:
    """They are called by themselves: no edges, no references, nothing to run."""
    made = Workflow(WorkflowId("w"))
    made.add_task(Task(A, A, TaskKind.LANGGRAPH, CODE))
    with pytest.raises(InvalidRequestError, match="without a task to run"):
        made.graph()
    made.add_task(Task(B, B, code=CODE))
    with pytest.raises(InvalidRequestError, match="langgraph"):
        made.add_edge(A, B)
    with pytest.raises(InvalidRequestError, match="type 'code'"):
        made.save_task(task(B, "a.out"), add_edges=True)
    assert list(made.graph().tasks) == [B]


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), max_size=40))
def test_no_sequence_of_edges_makes_a_cycle(pairs: list[tuple[int, int]]) -> None:
    """Whatever is asked for, what was accepted can be put in an order, and is read back the same."""
    ids = [TaskId(str(number)) for number in range(8)]
    made = workflow(*ids)
    for source, target in pairs:
        cycle: tuple[str, ...] = ()
        try:
            made.add_edge(ids[source], ids[target])
        except CycleError as error:
            cycle = error.cycle
        steps = {*made.edges, (ids[source], ids[target])}
        assert all(step in steps for step in itertools.pairwise(cycle))
        assert cycle[:1] == cycle[-1:]
    graph = made.graph()
    place = {task_id: number for number, task_id in enumerate(graph.tasks)}
    assert all(place[source] < place[target] for source, target in made.edges)
    assert Graph.from_document(json.loads(json.dumps(graph.document()))) == graph
    assert set(Workflow(made.workflow_id, made.tasks, made.edges).edges) == set(made.edges)


def test_a_long_chain_needs_no_recursion() -> None:
    """10,000 tasks in a row are built, checked and ordered without deep calls."""
    ids = [TaskId(str(number)) for number in range(10_000)]
    made = workflow(*ids)
    for source, target in itertools.pairwise(ids):
        made.add_edge(source, target)
    assert list(made.graph().tasks) == ids
    with pytest.raises(CycleError):
        made.add_edge(ids[-1], ids[0])
