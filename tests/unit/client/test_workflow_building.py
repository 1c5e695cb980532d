"""Building a workflow: what is refused on the spot, and what is sent."""

from __future__ import annotations

import base64
import pickle
import uuid
from typing import Any, TypedDict

import numpy as np
import pytest

from lattice import InvalidRequestError, ServiceError, TaskHandle, Workflow, task
from lattice.errors import CycleError
from tests.unit.client.fake_service import FakeService


class Pair(TypedDict):
    first: str
    second: str


@task
def split(text: str, at: int = 1) -> Pair:
    return {"first": text[:at], "second": text[at:]}


@task
def join(parts: list[str]) -> str:
    return "".join(parts)


@task(inputs=["text"], outputs=["text"], resources={"cpu": 0.5}, data_types={"text": "str"})
def upper(params: dict[str, str]) -> dict[str, str]:
    return {"text": params["text"].upper()}


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def workflow(fake: FakeService) -> Workflow:
    return Workflow(fake.service(), "words")


# -- inputs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"txt": "a"}, r"inputs of 'split'.*unknown input 'txt'.*did you mean 'text'\?.*text, at"),
        ({"text": "a", "zzz": 1}, "allowed: text, at"),
        ({}, "nothing for 'text'.*each input without a default is needed"),
        ({"text": (1, 2)}, r"input 'text' of 'split'.*\(1, 2\) \(tuple\).*pass a list"),
        ({"text": {"a": [np.float64(1)]}}, r"input 'text' of 'split'\['a'\]\[0\].*make the value"),
        ({"text": {1: 2}}, "the key 1 .*keys in JSON are text"),
        ({"text": ["caf\udce9.txt"]}, r"'text' of 'split'\[0\]: found 'caf\\udce9.txt'.*Unicode"),
        ({"text": {"\udce9": 1}}, r"found '\\udce9'; text in JSON is Unicode"),
        ({"text": float("nan")}, "numbers in JSON are finite"),
        ({"text": object}, "JSON values are allowed"),
        ({"text": "x" * 3, "at": b"y" * 100}, r"\.\.\. \(bytes\)"),
    ],
)
def test_inputs_that_make_no_sense(workflow: Workflow, inputs: dict[str, Any], words: str) -> None:
    """Are refused when the task is added, which then is not there."""
    with pytest.raises(InvalidRequestError, match=words):
        workflow.add_task(split, inputs)
    assert workflow.tasks == ()


def test_values_nested_without_end(workflow: Workflow) -> None:
    """Are refused too."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        workflow.add_task(join, {"parts": endless})


def test_outputs_that_a_task_does_not_have(workflow: Workflow) -> None:
    """Are refused with those that it has; a whole task stands for its only output."""
    a = workflow.add_task(split, {"text": "ab"})
    with pytest.raises(InvalidRequestError, match=r"'frist'; did you mean 'first'\?"):
        a.outputs["frist"]
    with pytest.raises(InvalidRequestError, match=r"2 outputs.*first, second"):
        workflow.add_task(upper, {"text": a})
    assert list(a.outputs) == ["first", "second"]
    assert len(a.outputs) == 2
    assert a.outputs._ipython_key_completions_() == ["first", "second"]


def test_outputs_of_another_workflow(workflow: Workflow, fake: FakeService) -> None:
    """Are refused."""
    other = Workflow(fake.service()).add_task(split, {"text": "ab"})
    with pytest.raises(InvalidRequestError, match="'split' of another workflow"):
        workflow.add_task(upper, {"text": other.outputs["first"]})
    with pytest.raises(InvalidRequestError, match="tasks of this workflow"):
        workflow.add_edge(other, other)


def test_outputs_deep_in_a_value(workflow: Workflow) -> None:
    """Only a list that is an input may have some among its items."""
    a = workflow.add_task(upper, {"text": "a"})
    with pytest.raises(InvalidRequestError, match="as items of a list that is one"):
        workflow.add_task(join, {"parts": {"a": a}})


def test_cycles(workflow: Workflow) -> None:
    """Are refused with their names, through outputs and edges."""
    a = workflow.add_task(upper, {"text": "a"}, name="a")
    b = workflow.add_task(upper, {"text": a}, name="b")
    c = workflow.add_task(upper, {"text": "c"}, name="c")
    workflow.add_edge(b, c)
    with pytest.raises(CycleError, match="c -> a -> b -> c"):
        workflow.add_edge(c, a)
    with pytest.raises(CycleError, match="a -> a"):
        workflow.add_edge(a, a)
    workflow.add_edge(a, c)


def test_names(workflow: Workflow) -> None:
    """Are numbered where one function is used often; those given must be free."""
    names = [workflow.add_task(upper, {"text": "a"}).name for _ in range(3)]
    assert names == ["upper", "upper_2", "upper_3"]
    assert workflow.add_task(upper, {"text": "a"}, name="upper_4").name == "upper_4"
    assert workflow.add_task(upper, {"text": "a"}).name == "upper_5"
    with pytest.raises(InvalidRequestError, match="needs its own"):
        workflow.add_task(upper, {"text": "a"}, name="upper")


# -- what is sent ------------------------------------------------------------------------------


def test_the_first_run_sends_everything_at_once(workflow: Workflow, fake: FakeService) -> None:
    """In one request, in the form of the API, under ids of the client's own."""
    a = workflow.add_task(split, {"text": "abc"})
    b = workflow.add_task(upper, {"text": a.outputs["first"]})
    workflow.add_edge(a, b)
    run = workflow.run()
    assert fake.paths() == ["/healthz", "/submit_workflow"]
    (document,) = fake.bodies("/submit_workflow")
    first, second = document["tasks"]
    assert uuid.UUID(a.task_id).version == 4
    assert first["task_id"] == a.task_id
    assert first["task_name"] == "split"
    assert first["task_input"] == {
        "input_params": {
            "1": {"key": "text", "input_schema": "from_user", "data_type": "str", "value": "abc"}
        }
    }
    assert first["task_output"] == {
        "output_params": {
            "1": {"key": "first", "data_type": "str"},
            "2": {"key": "second", "data_type": "str"},
        }
    }
    assert second["task_input"]["input_params"]["1"] == {
        "key": "text",
        "input_schema": "from_task",
        "data_type": "str",
        "value": f"{a.task_id}.first",
    }
    assert second["resources"] == {"cpu": 0.5}
    assert document["edges"] == [[a.task_id, b.task_id]]
    assert pickle.loads(base64.b64decode(first["code_ser"]))({"text": "abc"})["second"] == "bc"
    assert run.run_id == "r2"
    assert run.workflow_id == workflow.workflow_id == "w2"


def test_none_is_a_value(workflow: Workflow, fake: FakeService) -> None:
    """It is sent, also inside others."""
    workflow.add_task(join, {"parts": None})
    workflow.add_task(join, {"parts": [{"a": None}]})
    workflow.run()
    tasks = fake.bodies("/submit_workflow")[0]["tasks"]
    values = [each["task_input"]["input_params"]["1"]["value"] for each in tasks]
    assert values == [None, [{"a": None}]]


def test_lists_of_outputs_are_sent_item_by_item(workflow: Workflow, fake: FakeService) -> None:
    """And put together again by what is sent as code."""
    a = workflow.add_task(split, {"text": "abc"})
    b = workflow.add_task(upper, {"text": "x"})
    workflow.add_task(join, {"parts": [a.outputs["second"], b, "end"]})
    workflow.run()
    sent = fake.bodies("/submit_workflow")[0]["tasks"][2]
    params = sent["task_input"]["input_params"]
    assert [params[n]["key"] for n in "123"] == ["parts.0", "parts.1", "parts.2"]
    assert params["2"]["value"] == f"{b.task_id}.text"
    assert params["1"]["data_type"] == "str"
    code = pickle.loads(base64.b64decode(sent["code_ser"]))
    assert code({"parts.0": "bc", "parts.1": "X", "parts.2": "end"}) == {"result": "bcXend"}


def test_classes_are_said_to_be_classes(workflow: Workflow, fake: FakeService) -> None:
    """As the service does not look into pickles; with how their replicas are to scale."""

    @task(autoscaling={"max_replicas": 2})
    class Model:
        def __call__(self, text: str) -> str:
            return text

    workflow.add_task(Model, {"text": "a"})
    workflow.add_task(upper, {"text": "a"})
    workflow.run()
    model, function = fake.bodies("/submit_workflow")[0]["tasks"]
    assert model["code_is_class"] is True
    assert model["autoscaling"] == {"max_replicas": 2}
    assert "code_is_class" not in function


def test_an_unchanged_workflow_is_run_by_its_id(workflow: Workflow, fake: FakeService) -> None:
    """And sent whole again when something has changed."""
    workflow.add_task(upper, {"text": "a"})
    workflow.run()
    workflow.run()
    assert fake.paths()[2:] == ["/run_workflow"]
    assert fake.bodies("/run_workflow") == [{"workflow_id": "w2"}]
    workflow.add_task(upper, {"text": "b"})
    workflow.run()
    assert fake.paths()[3:] == ["/submit_workflow"]
    assert len(fake.bodies("/submit_workflow")[1]["tasks"]) == 2


def test_changed_code_is_sent_again(workflow: Workflow, fake: FakeService) -> None:
    """Also where only a helper or a global has changed, as in a notebook."""
    factor = [1]

    def times(n: int) -> int:
        return n * factor[0]

    workflow.add_task(times, {"n": 2})
    workflow.run()
    factor[0] = 2
    workflow.run()
    assert fake.paths()[1:] == ["/submit_workflow", "/submit_workflow"]


def test_a_service_that_lost_the_workflow_gets_it_again(
    workflow: Workflow, fake: FakeService
) -> None:
    """Other refusals are told."""
    workflow.add_task(upper, {"text": "a"})
    workflow.run()
    fake.answers["POST /run_workflow"] = [(404, {"detail": "gone"}), (400, {"detail": "no"})]
    workflow.run()
    assert fake.paths()[2:] == ["/run_workflow", "/submit_workflow"]
    with pytest.raises(ServiceError, match="no"):
        workflow.run()


def test_a_run_with_a_deadline(workflow: Workflow, fake: FakeService) -> None:
    """It goes with the request, and is no part of the workflow: other deadlines run the same one."""
    workflow.add_task(lambda: 1, name="one")
    workflow.run(deadline=2.5)
    workflow.run(deadline=60)
    workflow.run()
    assert fake.bodies("/submit_workflow")[0]["deadline"] == 2.5
    assert [body.get("deadline") for body in fake.bodies("/run_workflow")] == [60, None]


def test_running_nothing(workflow: Workflow) -> None:
    """Is refused."""
    with pytest.raises(InvalidRequestError, match="at least one"):
        workflow.run()


def test_one_function_is_pickled_once(workflow: Workflow, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many tasks use it."""
    from lattice.client import pickling

    pickled = []
    dumps_code = pickling.dumps_code
    monkeypatch.setattr(
        pickling, "dumps_code", lambda code: pickled.append(code) or dumps_code(code)
    )
    for _ in range(20):
        workflow.add_task(upper, {"text": "a"})
    workflow.run()
    assert pickled == [upper]


# -- pictures ----------------------------------------------------------------------------------


def test_pictures(workflow: Workflow) -> None:
    """A flowchart with the outputs that are passed on, and texts that say what is what."""
    assert repr(workflow) == "<Workflow 'words'>"
    a = workflow.add_task(split, {"text": "ab"})
    b = workflow.add_task(upper, {"text": a.outputs["first"]}, name='say "<hi>"')
    c = workflow.add_task(join, {"parts": [a.outputs["second"], b]})
    workflow.add_edge(a, b)
    d = workflow.add_task(upper, {"text": "d"})
    workflow.add_edge(c, d)
    assert workflow.mermaid() == (
        "flowchart LR\n"
        '    t1["split"]\n'
        '    t2["say #quot;#lt;hi#gt;#quot;"]\n'
        '    t3["join"]\n'
        '    t4["upper"]\n'
        '    t1 -- "first" --> t2\n'
        '    t1 -- "second" --> t3\n'
        '    t2 -- "text" --> t3\n'
        "    t3 --> t4\n"
    )
    assert workflow._repr_markdown_() == f"```mermaid\n{workflow.mermaid()}```\n"
    assert repr(a) == "<TaskHandle split(text, at) -> first, second>"
    assert repr(a.outputs) == "<Outputs of split: first, second>"
    assert repr(a.outputs["first"]) == "<Output split.first>"
    assert "of 4 tasks: split" in repr(workflow)
    assert all(isinstance(each, TaskHandle) for each in workflow.tasks)
