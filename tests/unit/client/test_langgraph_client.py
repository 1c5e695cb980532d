"""Functions that run on Lattice when they are called, alone and as nodes of a LangGraph graph."""

from __future__ import annotations

import asyncio
import contextvars
import operator
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.graph import END, START, StateGraph

from lattice import (
    DeadlineError,
    InvalidRequestError,
    LangGraphClient,
    RemoteError,
    ServiceError,
    UnpicklableError,
)
from lattice.client.transport import Request, Response, TimedOutError
from tests.unit.client.fake_service import URL, Answer, FakeService


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def client(fake: FakeService) -> LangGraphClient:
    return LangGraphClient(URL, transport=fake)


@dataclass
class Message:
    text: str


def test_any_arguments_and_the_exact_object(client: LangGraphClient, fake: FakeService) -> None:
    """Classes of the user's own, tuples and keywords go there and come back."""

    @client.task
    def repeat(message: Message, *, times: int = 2) -> tuple[Message, ...]:
        """Says it again."""
        return (message,) * times

    assert repeat(Message("a"), times=3) == (Message("a"),) * 3
    assert repeat(Message("b")) == (Message("b"),) * 2
    assert repeat.__name__ == "repeat"
    assert repeat.__doc__ == "Says it again."
    assert fake.paths() == [
        "/healthz",
        "/create_workflow",
        "/add_langgraph_task",
        "/run_langgraph_task",
        "/run_langgraph_task",
    ]


def test_needs_and_names(client: LangGraphClient, fake: FakeService) -> None:
    """Are sent along; those that make no sense are refused when the function is wrapped."""
    double = client.task(resources={"cpu": 0.5}, secrets=["KEY"], name="twice")(lambda n: n * 2)
    assert double(4) == 8
    (sent,) = fake.bodies("/add_langgraph_task")
    assert sent["resources"] == {"cpu": 0.5}
    assert sent["secrets"] == ["KEY"]
    assert sent["task_name"] == "twice"
    with pytest.raises(InvalidRequestError, match=r"resources\.cpus"):
        client.task(resources={"cpus": 1})
    with pytest.raises(InvalidRequestError, match="secrets: found 'a b'"):
        client.task(secrets=["a b"])
    with pytest.raises(TypeError, match="a function can be a task, not 3"):
        client.task(3)  # type: ignore[call-overload]  # wrong on purpose


def test_async_functions(client: LangGraphClient) -> None:
    """Are awaited; many wait at the same time."""

    @client.task
    async def add(a: int, b: int) -> int:
        return a + b

    async def many() -> list[int]:
        return await asyncio.gather(*(add(n, 1) for n in range(50)))

    assert asyncio.run(many()) == list(range(1, 51))
    client.close()


def test_functions_are_registered_once(client: LangGraphClient, fake: FakeService) -> None:
    """Also when threads make the first calls at the same time; functions share a workflow."""
    barrier = threading.Barrier(8)
    one = client.task(lambda: 1)
    two = client.task(lambda: 2)

    def call(number: int) -> int:
        barrier.wait()
        return one() if number % 2 else two()

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(call, range(8))) == [1] * 4 + [2] * 4
    assert fake.paths().count("/create_workflow") == 1
    assert fake.paths().count("/add_langgraph_task") == 2


def test_a_service_that_lost_a_function_gets_it_again(
    client: LangGraphClient, fake: FakeService
) -> None:
    """Once; when that does not help, the service's words are told."""
    one = client.task(lambda: 1)
    assert one() == 1
    fake.functions.clear()
    assert one() == 1
    assert fake.paths().count("/create_workflow") == 2
    fake.answers["POST /run_langgraph_task"] = (404, {"detail": "gone again"})
    with pytest.raises(ServiceError, match="gone again"):
        one()


def test_a_function_that_comes_after_the_loss(client: LangGraphClient, fake: FakeService) -> None:
    """Of the workflow that another function had made: it makes the next, once."""
    one, two = client.task(lambda: 1), client.task(lambda: 2)
    assert one() == 1
    lost: Answer = (404, {"detail": "Workflow w2 not found"})
    fake.answers["POST /add_langgraph_task"] = [lost]
    assert two() == 2
    assert fake.paths().count("/create_workflow") == 2
    three = client.task(lambda: 3)
    fake.answers["POST /add_langgraph_task"] = lost
    with pytest.raises(ServiceError, match="Workflow w2 not found"):
        three()


def test_async_functions_leave_the_event_loop_to_others() -> None:
    """Also while another call registers; and they have the caller's context, in which its trace is."""
    who = contextvars.ContextVar("who", default="nobody")
    goes_on = threading.Event()

    class Slow(FakeService):
        """Makes a workflow when the event loop says so."""

        def send(self, request: Request, timeout: float | None) -> Response:
            if request.path == "/create_workflow":
                assert goes_on.wait(60)
            if request.path == "/run_langgraph_task":
                callers.append(who.get())
            return super().send(request, timeout)

    callers: list[str] = []
    client = LangGraphClient(URL, transport=Slow())

    async def number(n: int) -> int:
        return n

    one, two = client.task(number), client.task(number)

    async def program() -> list[int]:
        who.set("program")
        calls = [asyncio.ensure_future(call(n)) for n, call in enumerate((one, two))]
        while client._lock.acquire(blocking=False):
            client._lock.release()
            await asyncio.sleep(0.01)
        calls.append(asyncio.ensure_future(one(2)))
        await asyncio.sleep(0)
        goes_on.set()
        return await asyncio.gather(*calls)

    with client:
        assert asyncio.run(program()) == [0, 1, 2]
    assert callers == ["program"] * 3


def test_what_a_function_raises(client: LangGraphClient, fake: FakeService) -> None:
    """Comes with its traceback; a failure of the service itself does not pass for it."""

    @client.task
    def fails() -> None:
        raise ValueError("bad")

    with pytest.raises(RemoteError, match="ValueError: bad") as caught:
        fails()
    assert caught.value.task == "fails"
    assert "in fails" in caught.value.traceback
    assert 'raise ValueError("bad")' in caught.value.traceback
    fake.answers["POST /run_langgraph_task"] = (500, {"detail": "Internal error of the service"})
    with pytest.raises(ServiceError, match="Internal error"):
        fails()


def test_arguments_that_cannot_be_sent(client: LangGraphClient) -> None:
    """Are said to be those of the call."""
    take = client.task(lambda value: value, name="take")
    with pytest.raises(UnpicklableError, match=r"what 'take' is called with cannot be sent"):
        take(threading.Lock())


def test_how_long_a_call_may_take(fake: FakeService) -> None:
    """As long as it takes, unless said otherwise; it is not repeated."""
    LangGraphClient(URL, transport=fake).task(lambda: 1)()
    assert fake.timeouts[-1] is None
    bounded = LangGraphClient(URL, call_timeout=7, transport=fake).task(lambda: 1)
    assert bounded() == 1
    assert fake.timeouts[-1] == 7
    count = len(fake.requests)
    fake.answers["POST /run_langgraph_task"] = TimedOutError("read")
    with pytest.raises(DeadlineError, match="not within 7 s"):
        bounded()
    assert len(fake.requests) == count + 1


def test_functions_that_call_each_other(client: LangGraphClient, fake: FakeService) -> None:
    """Do so directly once they are there."""
    inner = client.task(lambda n: n + 1)

    @client.task
    def outer(n: int) -> int:
        return int(inner(n)) * 10

    assert outer(1) == 20
    assert fake.paths().count("/run_langgraph_task") == 1


class State(TypedDict, total=False):
    words: list[str]
    found: Annotated[list[str], operator.add]
    seen: dict[str, Any]


def test_nodes_of_a_graph(client: LangGraphClient, fake: FakeService) -> None:
    """Sync and async ones, in branches that run side by side, with a config where one asks for it."""

    @client.task
    def shout(state: State) -> State:
        return {"found": [word.upper() for word in state["words"]]}

    async def measure(state: State) -> State:
        return {"found": [str(len(word)) for word in state["words"]]}

    @client.task
    def last(state: State, config: RunnableConfig) -> State:
        return {"seen": {"thread": config["configurable"]["thread_id"], "tags": config["tags"]}}

    graph = StateGraph(State)
    graph.add_node("shout", shout)
    graph.add_node("measure", client.task(measure))
    graph.add_node("last", last)
    graph.add_edge(START, "shout")
    graph.add_edge(START, "measure")
    graph.add_edge(["shout", "measure"], "last")
    graph.add_edge("last", END)
    config: RunnableConfig = {"configurable": {"thread_id": "t"}, "tags": ["x"]}
    result = asyncio.run(graph.compile().ainvoke({"words": ["a", "bc"], "found": []}, config))
    assert sorted(result["found"]) == ["1", "2", "A", "BC"]
    assert result["seen"] == {"thread": "t", "tags": ["x"]}
    assert fake.paths().count("/run_langgraph_task") == 3
    client.close()


def test_a_client_is_a_context_manager(fake: FakeService) -> None:
    """Leaving it closes its connections."""
    with LangGraphClient(URL, transport=fake) as client:
        assert repr(client) == f"LangGraphClient({URL!r})"
    assert fake.closed
