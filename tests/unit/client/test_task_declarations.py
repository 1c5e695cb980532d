"""Declaring tasks: what is read from signatures, what is refused, and that functions stay functions."""

from __future__ import annotations

import asyncio
import functools
import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypedDict

import pytest

from lattice import InvalidRequestError, task
from lattice.client.pickling import dumps_code
from lattice.client.tasks import Declaration, declaration_of

if TYPE_CHECKING:
    from decimal import Decimal


class Sums(TypedDict):
    total: int
    mean: float


def sent(code: Callable[..., Any], **groups: tuple[str, ...]) -> Any:
    """What the service calls, as it arrives there."""
    return pickle.loads(dumps_code(declaration_of(code).payload(code, groups)))


def test_the_form_with_one_dict() -> None:
    """Inputs and outputs are those named; the function is sent as it is."""

    @task(
        inputs=["a", "b"],
        outputs=["c"],
        data_types={"a": "str", "c": "list[str]"},
        resources={"cpu": 2},
        retry=3,
        timeout=5,
        runtime_env={"env_vars": {"X": "1"}},
    )
    def join(params: dict[str, Any]) -> dict[str, Any]:
        return {"c": params["a"] + params["b"]}

    declaration = declaration_of(join)
    assert dict(declaration.inputs) == {"a": "str", "b": "Any"}
    assert dict(declaration.outputs) == {"c": "list[str]"}
    assert declaration.optional == frozenset()
    assert declaration.needs == {
        "resources": {"cpu": 2},
        "retry": {"max_attempts": 3},
        "timeout": 5,
        "runtime_env": {"env_vars": {"X": "1"}},
    }
    assert declaration.payload(join, {}) is join
    assert join({"a": "x", "b": "y"}) == {"c": "xy"}


def test_the_form_with_batches() -> None:
    """The function takes and returns a list."""

    @task(inputs=["n"], outputs=["m"], batch_size=4, batch_timeout=0.5)
    def double(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"m": params["n"] * 2} for params in batch]

    declaration = declaration_of(double)
    assert declaration.batched
    assert declaration.needs["batch_config"] == {
        "enabled": True,
        "batch_size": 4,
        "batch_timeout": 0.5,
    }
    assert declaration.payload(double, {}) is double


def test_autoscaling_of_what_has_replicas() -> None:
    """A batched function, one on a GPU, and a class may say how their replicas scale."""
    scaling = {"max_replicas": 2, "warm_up": True}

    @task(inputs=["n"], outputs=["m"], batch_size=4, max_concurrent_batches=2, autoscaling=scaling)
    def double(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return batch

    @task(resources={"gpu": 0.5}, autoscaling=scaling)
    def embed(text: str) -> str:
        return text

    @task(autoscaling=scaling)
    class Model:
        def __call__(self, text: str) -> str:
            return text

    needs = declaration_of(double).needs
    assert needs["batch_config"]["max_concurrent_batches"] == 2
    for code in (double, embed, Model):
        assert declaration_of(code).needs["autoscaling"] == scaling


def test_the_typed_form() -> None:
    """Parameters are inputs, those with a default may be left out, the value is the output."""

    @task
    def repeat(text: str, *, times: int = 3) -> list[str]:
        return [text] * times

    declaration = declaration_of(repeat)
    assert dict(declaration.inputs) == {"text": "str", "times": "int"}
    assert declaration.optional == {"times"}
    assert dict(declaration.outputs) == {"result": "list[str]"}
    assert repeat("a", times=1) == ["a"]
    assert sent(repeat)({"text": "a"}) == {"result": ["a"] * 3}


def test_a_typed_dict_is_several_outputs() -> None:
    """Each of its keys is one."""

    @task
    def sums(numbers: list[int]) -> Sums:
        return {"total": sum(numbers), "mean": sum(numbers) / len(numbers)}

    assert dict(declaration_of(sums).outputs) == {"total": "int", "mean": "float"}
    assert sent(sums)({"numbers": [1, 2]}) == {"total": 3, "mean": 1.5}


def test_named_outputs_of_a_typed_function() -> None:
    """It returns a dict then."""

    @task(outputs=["a", "b"])
    def split(text: str) -> dict[str, str]:
        return {"a": text[0], "b": text[1]}

    assert dict(declaration_of(split).outputs) == {"a": "Any", "b": "Any"}
    assert sent(split)({"text": "xy"}) == {"a": "x", "b": "y"}


def test_a_function_of_params_needs_no_inputs() -> None:
    """One that is written for a dict is given one, which may be empty."""

    @task(outputs=["x"])
    def source(params: dict[str, Any]) -> dict[str, Any]:
        return {"x": len(params)}

    assert not declaration_of(source).keywords
    assert dict(declaration_of(source).inputs) == {}


def test_functions_that_are_not_declared() -> None:
    """Are taken as with a bare `@task`."""
    assert dict(declaration_of(lambda n: n).inputs) == {"n": "Any"}
    assert declaration_of(lambda n: n).name == "task"
    assert dict(declaration_of(functools.partial(pow, 2)).inputs)["exp"] == "Any"


def test_async_functions() -> None:
    """Stay async where they are sent."""

    @task
    async def add(a: int, b: int) -> int:
        return a + b

    assert asyncio.run(sent(add)({"a": 1, "b": 2})) == {"result": 3}


class _Greeter:
    async def __call__(self, name: str) -> str:
        return f"hello {name}"


def test_instances_can_be_tasks() -> None:
    """By the signature of their call."""
    assert asyncio.run(sent(_Greeter())({"name": "you"})) == {"result": "hello you"}


def test_classes() -> None:
    """Are constructed once where they are sent, and keep their name there."""

    @task
    class Counter:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, step: int = 1) -> int:
            self.calls += step
            return self.calls

    @task
    class Waiter:
        async def __call__(self, n: int) -> int:
            return n

    @task(inputs=["n"], outputs=["m"])
    class Plain:
        def __call__(self, params: dict[str, Any]) -> dict[str, Any]:
            return {"m": params["n"]}

    loaded = sent(Counter)
    assert isinstance(loaded, type)
    assert loaded.__qualname__ == Counter.__qualname__
    instance = loaded()
    assert [instance({}), instance({"step": 5})] == [{"result": 1}, {"result": 6}]
    assert asyncio.run(sent(Waiter)()({"n": 1})) == {"result": 1}
    assert declaration_of(Plain).payload(Plain, {}) is Plain
    assert Counter()(2) == 2


def test_subclasses_are_not_declared_by_their_base() -> None:
    """They may take other inputs."""

    @task(inputs=["n"], outputs=["m"])
    class Base:
        def __call__(self, params: dict[str, Any]) -> dict[str, Any]:
            return params

    class Derived(Base):
        pass

    assert list(declaration_of(Derived).inputs) == ["params"]


@pytest.mark.parametrize("batched", [False, True])
def test_lists_are_put_together_again(batched: bool) -> None:
    """Their items arrive one by one; other parameters are left as they are."""
    groups = {"parts": ("parts.0", "parts.1")}
    given = {"parts.0": 1, "parts.1": 2, "other": 3}
    if batched:

        @task(inputs=["parts", "other"], outputs=["x"], batch_size=2)
        def call(batch: Any) -> Any:
            return batch

        assert sent(call, **groups)([given]) == [{"parts": [1, 2], "other": 3}]
    else:

        @task
        def collect(parts: list[int], other: int) -> int:
            return sum(parts) + other

        assert sent(collect, **groups)(given) == {"result": 6}


def test_the_declaration_stays_at_home() -> None:
    """The service needs nothing of the SDK to load code."""

    @task(inputs=["a"], outputs=["b"])
    def plain(params: dict[str, Any]) -> dict[str, Any]:
        return params

    @task
    class Model:
        def __call__(self, n: int) -> int:
            return n

    assert b"lattice.client" not in dumps_code(plain)
    assert not [key for key in vars(sent(plain)) if "lattice" in key]
    assert b"Declaration" not in dumps_code(Model)


def test_annotations_that_only_checkers_can_see() -> None:
    """Are names; what is returned is one value then."""

    @task
    def convert(price: Decimal) -> Decimal:
        return price

    declaration = declaration_of(convert)
    assert dict(declaration.inputs) == {"price": "Decimal"}
    assert dict(declaration.outputs) == {"result": "Decimal"}


def test_declaring_twice() -> None:
    """The same way is nothing new, another way is refused: both would be the same function."""

    @task(inputs=["a"], outputs=["b"])
    def f(params: dict[str, Any]) -> dict[str, Any]:
        return params

    assert task(inputs=["a"], outputs=["b"])(f) is f
    with pytest.raises(TypeError, match="declared as a task already"):
        task(inputs=["a"], outputs=["c"])(f)


def f_positional(a: int, /) -> int:
    return a


def f_star(*values: int) -> int:
    return sum(values)


def f_two(a: int, b: int) -> int:
    return a + b


class NotCallable:
    pass


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: task(3), "a function or class can be a task, not 3"),  # type: ignore[type-var]  # wrong on purpose
        (lambda: task(len), "cannot be called|no fixed name|cannot be declared"),
        (lambda: task(f_positional), "takes a: int, which has no fixed name|no fixed name"),
        (lambda: task(f_star), "no fixed name"),
        (lambda: task(NotCallable), "has no __call__"),
        (lambda: task(inputs=["a"], outputs=["b"])(f_two), "called with one dict"),
        (lambda: task(inputs=["a"])(f_star), "name its outputs="),
        (lambda: task(inputs="ab", outputs=["c"])(f_star), "not the text 'ab'"),
        (lambda: task(inputs=["a", "a"], outputs=["c"])(f_star), "stands there twice"),
        (lambda: task(inputs=["a"], outputs=[""])(f_star), "a list of names is allowed"),
        (lambda: task(batch_size=2)(f_two), "name its inputs= and outputs="),
        (lambda: declaration_of(dict), "does not tell|has no __call__|no fixed name"),
    ],
)
def test_what_cannot_be_called_is_refused(declare: Callable[[], object], words: str) -> None:
    """When it is declared, and with what to do."""
    with pytest.raises(TypeError, match=words):
        declare()


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"resources": {"cpus": 1}}, "resources.cpus.*an unknown key"),
        ({"resources": {"gpu": 1.5}}, "resources.gpu"),
        ({"batch_size": 0}, "batch_config.batch_size"),
        ({"batch_timeout": 1.0}, "batch_timeout.*batch_size, which is missing"),
        ({"max_concurrent_batches": 2}, "max_concurrent_batches.*batch_size, which is missing"),
        ({"batch_size": 2, "max_concurrent_batches": 0}, "batch_config.max_concurrent_batches"),
        ({"batch_size": 2, "autoscaling": {"replicas": 1}}, "autoscaling.replicas.*an unknown key"),
        ({"batch_size": 2, "autoscaling": {"max_replicas": 0}}, "autoscaling.max_replicas"),
        ({"autoscaling": {"warm_up": True}}, "autoscaling.*'f', which has no replicas"),
        ({"retry": 0}, "retry.max_attempts"),
        ({"retry": {"on": "ValueError"}}, "retry.on"),
        ({"timeout": -1}, "timeout"),
        ({"runtime_env": {"conda": []}}, "runtime_env.conda"),
        ({"data_types": {"n": "str"}}, "data_types of 'f'.*'n'.*allowed: a, b"),
    ],
)
def test_needs_that_make_no_sense(needs: dict[str, Any], words: str) -> None:
    """Are refused when they are declared, with the field."""
    with pytest.raises(InvalidRequestError, match=words):

        @task(inputs=["a"], outputs=["b"], **needs)
        def f(params: dict[str, Any]) -> dict[str, Any]:
            return params


def test_declarations_compare_by_value() -> None:
    """So that a module may be loaded again."""
    assert declaration_of(f_two) == declaration_of(f_two)
    assert isinstance(declaration_of(f_two), Declaration)
