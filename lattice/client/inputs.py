"""Binding what a user gives for a task's inputs: JSON values, and outputs of other tasks.

A list that has outputs among its items is sent as one parameter for each item, and put together again
before the function is called (see `adapters`), as a parameter of the API is one value or one reference.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lattice.client.handles import Output, TaskHandle
from lattice.client.suggestions import did_you_mean
from lattice.errors import InvalidRequestError

#: Deeper values are refused: JSON readers have such limits.
_DEEPEST = 100


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter as it is sent: a JSON value, or an output of another task."""

    key: str
    value: object
    source: Output | None
    data_type: str

    def document(self) -> dict[str, object]:
        """The wire form."""
        return {
            "key": self.key,
            "input_schema": "from_task" if self.source else "from_user",
            "data_type": self.data_type,
            "value": f"{self.source.task.task_id}.{self.source.key}" if self.source else self.value,
        }


@dataclass(frozen=True, slots=True)
class Bound:
    """The inputs of one task. `groups` are the list inputs, and the parameters of their items."""

    parameters: tuple[Parameter, ...]
    groups: Mapping[str, tuple[str, ...]]

    @property
    def sources(self) -> Iterator[Output]:
        """The outputs that are taken."""
        return (parameter.source for parameter in self.parameters if parameter.source)


def bind(task: TaskHandle, inputs: Mapping[str, object]) -> Bound:
    """Checks `inputs` against what the task declares.

    Raises:
        InvalidRequestError: an unknown or missing input, an output of another workflow's task, a value
            that is not JSON.
    """
    declared = task.declaration.inputs
    for key in inputs:
        if key not in declared:
            raise InvalidRequestError(
                f"inputs of {task.name!r}",
                f"the unknown input {key!r}",
                did_you_mean(str(key), declared),
            )
    missing = [
        key for key in declared if key not in inputs and key not in task.declaration.optional
    ]
    if missing:
        raise InvalidRequestError(
            f"inputs of {task.name!r}",
            f"nothing for {', '.join(map(repr, missing))}",
            "each input without a default is needed: a JSON value or an output of another task",
        )
    parameters: list[Parameter] = []
    groups: dict[str, tuple[str, ...]] = {}
    for key, data_type in declared.items():
        if key not in inputs:
            continue
        value = inputs[key]
        where = f"input {key!r} of {task.name!r}"
        if isinstance(value, list) and any(isinstance(v, Output | TaskHandle) for v in value):
            names = tuple(f"{key}.{number}" for number in range(len(value)))
            groups[key] = names
            parameters += [
                _parameter(task, name, item, _item_type(data_type), f"{where}[{number}]")
                for number, (name, item) in enumerate(zip(names, value, strict=True))
            ]
        else:
            parameters.append(_parameter(task, key, value, data_type, where))
    return Bound(tuple(parameters), groups)


def _item_type(data_type: str) -> str:
    return data_type[5:-1] if data_type.startswith("list[") else "Any"


def _parameter(task: TaskHandle, key: str, value: object, data_type: str, where: str) -> Parameter:
    if isinstance(value, TaskHandle):
        value = value.output
    if isinstance(value, Output):
        if value.task.workflow is not task.workflow:
            raise InvalidRequestError(
                where,
                f"an output of the task {value.task.name!r} of another workflow",
                "outputs of tasks in the same workflow are allowed",
            )
        return Parameter(key, None, value, data_type)
    _check_json(value, where)
    return Parameter(key, value, None, data_type)


def _check_json(value: object, where: str, depth: int = 0) -> None:
    """Raises InvalidRequestError for what JSON would lose or change."""
    kind = type(value)
    if depth > _DEEPEST:
        raise InvalidRequestError(where, "a value nested too deeply", f"at most {_DEEPEST} levels")
    if kind is list:
        for number, item in enumerate(_items(value)):
            _check_json(item, f"{where}[{number}]", depth + 1)
    elif kind is dict:
        for key, item in value.items():  # type: ignore[attr-defined]  # mypy does not narrow by `is`
            if type(key) is not str:
                raise InvalidRequestError(
                    where, f"the key {key!r} ({type(key).__name__})", "keys in JSON are text"
                )
            _check_text(key, where)
            _check_json(item, f"{where}[{key!r}]", depth + 1)
    elif kind is str:
        _check_text(str(value), where)
    elif kind is float:
        if not math.isfinite(float(str(value))):
            raise InvalidRequestError(where, repr(value), "numbers in JSON are finite")
    elif kind not in (int, bool, type(None)):
        raise InvalidRequestError(where, f"{_short(value)} ({kind.__name__})", _advice(value))


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequestError(
            where,
            _short(text),
            "text in JSON is Unicode, which half a surrogate pair is not; of a file name that is not UTF-8, "
            "pass its bytes in another form, such as base64",
        ) from None


def _items(value: Any) -> list[object]:
    return list(value)


def _advice(value: object) -> str:
    if isinstance(value, Output | TaskHandle):
        return "outputs are allowed as the value of an input, or as items of a list that is one"
    if isinstance(value, tuple):
        return "JSON has lists only: pass a list, or make the value in a task"
    return (
        "JSON values are allowed (text, numbers, true, false, null, lists, dicts with text as keys): "
        "make the value in a task and pass that task's output, or pass what it is made from"
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
