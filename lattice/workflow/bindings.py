"""What goes into a task and what comes out: input and output parameters, and references between tasks.

The wire form is that of the API: `{"input_params": {"1": {"key", "input_schema", "data_type", "value"}}}`
and `{"output_params": {"1": {"key", "data_type"}}}`, numbered from one. `data_type` is information for
people and tools; values are not coerced.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lattice.errors import InvalidRequestError
from lattice.ids import TaskId
from lattice.workflow import checks

FROM_TASK = "from_task"
FROM_USER = "from_user"

#: A reference may be written `task_id.key` or `task_id.output.key`.
_OUTPUT_PREFIX = "output."


@dataclass(frozen=True, slots=True)
class Reference:
    """An output of another task. `path` is what followed the task id: `key` or `output.key`."""

    task_id: TaskId
    path: str

    @classmethod
    def parse(cls, text: object, field: str) -> Reference:
        """Reads `task_id.key`. Raises InvalidRequestError for anything else."""
        if isinstance(text, str):
            task_id, dot, path = text.partition(".")
            if task_id and dot and path:
                return cls(TaskId(task_id), path)
        raise InvalidRequestError(
            field, checks.shown(text), "a reference 'task_id.output_key' to another task is allowed"
        )

    def key(self, declared: tuple[str, ...]) -> str | None:
        """The output key meant, given the keys that the other task declares.

        A declared key wins over the longer reading; None if neither reading is declared.
        """
        if self.path in declared:
            return self.path
        if self.path.startswith(_OUTPUT_PREFIX) and self.path[len(_OUTPUT_PREFIX) :] in declared:
            return self.path[len(_OUTPUT_PREFIX) :]
        return None

    def __str__(self) -> str:
        return f"{self.task_id}.{self.path}"


@dataclass(frozen=True, slots=True)
class Input:
    """One input parameter: a JSON value given by the user, or a reference to another task's output."""

    key: str
    source: Reference | None
    value: object
    data_type: str


@dataclass(frozen=True, slots=True)
class Output:
    """One declared output parameter."""

    key: str
    data_type: str


def _numbered(document: object, field: str, group: str) -> list[tuple[str, Mapping[str, object]]]:
    """The parameters of `document[group]` in the order of their numbers, each with its field path."""
    outer = checks.mapping(document, field)
    checks.known_keys(outer, field, (group,))
    params = checks.mapping(outer.get(group, {}), f"{field}.{group}")
    for number in params:
        if not (number.isascii() and number.isdigit() and len(number) <= 9):
            raise InvalidRequestError(
                f"{field}.{group}",
                checks.shown(number),
                'parameters are numbered "1", "2", "3" and so on',
            )
    return [
        (
            f"{field}.{group}.{number}",
            checks.mapping(params[number], f"{field}.{group}.{number}"),
        )
        for number in sorted(params, key=int)
    ]


def _unique(keys: list[str], field: str) -> None:
    seen: set[str] = set()
    for key in keys:
        if key in seen:
            raise InvalidRequestError(
                field, f"the key {key!r} twice", "each key may be declared once"
            )
        seen.add(key)


def parse_inputs(document: object, field: str = "task_input") -> tuple[Input, ...]:
    """Reads the wire form of a task's inputs. Raises InvalidRequestError."""
    inputs = []
    for path, param in _numbered(document, field, "input_params"):
        checks.known_keys(param, path, ("key", "input_schema", "data_type", "value"))
        key = checks.text(param.get("key"), f"{path}.key")
        data_type = checks.text(param.get("data_type", "Any"), f"{path}.data_type")
        schema = param.get("input_schema", FROM_USER)
        if schema == FROM_TASK:
            reference = Reference.parse(param.get("value"), f"{path}.value")
            inputs.append(Input(key, reference, None, data_type))
        elif schema == FROM_USER:
            if "value" not in param:
                raise InvalidRequestError(f"{path}.value", "nothing", "a JSON value is needed")
            inputs.append(Input(key, None, param["value"], data_type))
        else:
            raise InvalidRequestError(
                f"{path}.input_schema",
                checks.shown(schema),
                f"{FROM_TASK!r} and {FROM_USER!r} are allowed",
            )
    _unique([item.key for item in inputs], field)
    return tuple(inputs)


def parse_outputs(document: object, field: str = "task_output") -> tuple[Output, ...]:
    """Reads the wire form of a task's outputs. Raises InvalidRequestError."""
    outputs = []
    for path, param in _numbered(document, field, "output_params"):
        checks.known_keys(param, path, ("key", "data_type"))
        outputs.append(
            Output(
                checks.text(param.get("key"), f"{path}.key"),
                checks.text(param.get("data_type", "Any"), f"{path}.data_type"),
            )
        )
    _unique([item.key for item in outputs], field)
    return tuple(outputs)


def inputs_document(inputs: tuple[Input, ...]) -> dict[str, object]:
    """The wire form of `inputs`: the inverse of `parse_inputs`."""
    params: dict[str, object] = {}
    for number, item in enumerate(inputs, 1):
        params[str(number)] = {
            "key": item.key,
            "input_schema": FROM_TASK if item.source else FROM_USER,
            "data_type": item.data_type,
            "value": str(item.source) if item.source else item.value,
        }
    return {"input_params": params}


def outputs_document(outputs: tuple[Output, ...]) -> dict[str, object]:
    """The wire form of `outputs`: the inverse of `parse_outputs`."""
    return {
        "output_params": {
            str(number): {"key": item.key, "data_type": item.data_type}
            for number, item in enumerate(outputs, 1)
        }
    }
