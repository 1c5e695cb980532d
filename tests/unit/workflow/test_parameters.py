"""Reading what users send about a task: every refusal names the field, and what is read is written back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.errors import InvalidRequestError
from lattice.ids import Digest, TaskId
from lattice.workflow.bindings import Reference, parse_inputs, parse_outputs
from lattice.workflow.task import (
    BatchPolicy,
    Code,
    CodeForm,
    Resources,
    Task,
    parse_timeout,
)


def param(**changes: object) -> dict[str, object]:
    return {
        "input_params": {
            "1": {"key": "a", "input_schema": "from_user", "data_type": "str", "value": 1} | changes
        }
    }


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ([], "task_input"),
        ({"input_parms": {}}, "task_input.input_parms"),
        ({"input_params": []}, "task_input.input_params"),
        ({"input_params": {"one": {}}}, "task_input.input_params"),
        ({"input_params": {"²": {}}}, "task_input.input_params"),
        ({"input_params": {"1": 5}}, "task_input.input_params.1"),
        ({"input_params": {"1": {"key": "a"}}}, "task_input.input_params.1.value"),
        (param(key=""), "task_input.input_params.1.key"),
        (param(key=3), "task_input.input_params.1.key"),
        (param(key="a\0"), "task_input.input_params.1.key"),
        (param(data_type=None), "task_input.input_params.1.data_type"),
        (param(input_schema="from_space"), "task_input.input_params.1.input_schema"),
        (param(input_schema="from_task"), "task_input.input_params.1.value"),
        (param(input_schema="from_task", value="no-dot"), "task_input.input_params.1.value"),
        (param(input_schema="from_task", value=".key"), "task_input.input_params.1.value"),
        (param(input_schema="from_task", value="id."), "task_input.input_params.1.value"),
        (param(typo=1), "task_input.input_params.1.typo"),
    ],
)
def test_bad_inputs_name_their_field(document: object, field: str) -> None:
    """A malformed input is refused with the path of the field at fault."""
    with pytest.raises(InvalidRequestError) as caught:
        parse_inputs(document)
    assert caught.value.field == field


def test_inputs_come_in_the_order_of_their_numbers() -> None:
    """ "10" comes after "9", whatever the order in the document."""
    document = {
        "input_params": {str(number): {"key": f"k{number}", "value": None} for number in (10, 9, 1)}
    }
    assert [item.key for item in parse_inputs(document)] == ["k1", "k9", "k10"]


def test_a_key_twice_is_refused() -> None:
    """One value would silently win otherwise."""
    twice = {"1": {"key": "a", "value": 1}, "2": {"key": "a", "value": 2}}
    with pytest.raises(InvalidRequestError, match="twice"):
        parse_inputs({"input_params": twice})
    with pytest.raises(InvalidRequestError, match="twice"):
        parse_outputs({"output_params": {"1": {"key": "a"}, "2": {"key": "a"}}})


@pytest.mark.parametrize(
    ("path", "declared", "key"),
    [
        ("x", ("x",), "x"),
        ("output.x", ("x",), "x"),
        ("output.x", ("x", "output.x"), "output.x"),
        ("y", ("x",), None),
        ("output.y", ("x",), None),
    ],
)
def test_both_forms_of_a_reference(path: str, declared: tuple[str, ...], key: str | None) -> None:
    """`id.key` and `id.output.key` mean the same, but a declared key wins over the longer reading."""
    assert Reference(TaskId("t"), path).key(declared) == key


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"cpus": 1}, "resources.cpus"),
        ({"cpu": -1}, "resources.cpu"),
        ({"cpu": "1"}, "resources.cpu"),
        ({"cpu": True}, "resources.cpu"),
        ({"cpu": float("nan")}, "resources.cpu"),
        ({"cpu": 10**400}, "resources.cpu"),
        ({"gpu": 1.5}, "resources.gpu"),
        ({"gpu_mem": None}, "resources.gpu_mem"),
        (3, "resources"),
    ],
)
def test_bad_resources_name_their_field(document: object, field: str) -> None:
    """Unknown keys, wrong types, negative and infinite values, and fractions above one GPU."""
    with pytest.raises(InvalidRequestError) as caught:
        Resources.parse(document)
    assert caught.value.field == field


def test_resources_default_to_one_cpu() -> None:
    """Nothing said means one CPU and nothing else; fractions and zero are as given."""
    assert Resources.parse(None) == Resources(cpu=1, cpu_mem=0, gpu=0, gpu_mem=0)
    assert Resources.parse({"cpu": 0, "gpu": 0.25}) == Resources(cpu=0, gpu=0.25)


@pytest.mark.parametrize(
    "document",
    [{"batch_size": 0}, {"batch_size": 2.5}, {"batch_timeout": -1}, {"enabled": 1}, {"size": 1}],
)
def test_bad_batches_are_refused(document: object) -> None:
    """Sizes are whole and at least one, time-outs not negative."""
    with pytest.raises(InvalidRequestError):
        BatchPolicy.parse(document)


@pytest.mark.parametrize("value", [0, -1, "1", float("inf")])
def test_bad_timeouts_are_refused(value: object) -> None:
    """A time-out is a positive number of seconds."""
    with pytest.raises(InvalidRequestError):
        parse_timeout(value)


@pytest.mark.parametrize(
    "document",
    [
        {"env_vars": {"A": 1}},
        {"env_vars": {"A=B": "1"}},
        {"pip": "numpy"},
        {"conda": "x"},
        {"pip": ["-r /etc/passwd"]},
    ],
)
def test_bad_runtime_envs_are_refused(document: object) -> None:
    """Only what is handed on is accepted."""
    with pytest.raises(InvalidRequestError):
        Task.from_document({"task_id": "t", "task_name": "t", "runtime_env": document})


@pytest.mark.parametrize("document", ["KEY", [1], ["a-b"], ["../KEY"], [""], ["KEY"] * 101])
def test_bad_secrets_are_refused(document: object) -> None:
    """A list of names that variables may have, and so files of a folder."""
    with pytest.raises(InvalidRequestError, match="secrets"):
        Task.from_document({"task_id": "t", "task_name": "t", "secrets": document})


def test_secrets_are_kept_by_name() -> None:
    """In what is stored, and each once."""
    task = Task.from_document({"task_id": "t", "task_name": "t", "secrets": ["B", "A", "B"]})
    assert task.secrets == ("B", "A")
    assert Task.from_document(task.document()) == task


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(value=_json, cpu=st.floats(0, 100), timeout=st.none() | st.floats(0.1, 100))
def test_a_task_survives_its_document(value: object, cpu: float, timeout: float | None) -> None:
    """What is stored is read back as the same task."""
    task = Task(
        TaskId("t"),
        "name",
        code=Code(Digest("d"), CodeForm.PICKLE, "name"),
        inputs=parse_inputs(param(value=value)),
        outputs=parse_outputs({"output_params": {"1": {"key": "r"}}}),
        resources=Resources(cpu=cpu),
        timeout=timeout,
    )
    assert Task.from_document(json.loads(json.dumps(task.document()))) == task
