"""Random workflows: chains, fans, diamonds and anything else, with references, edges, retries and time-outs."""

from __future__ import annotations

from dataclasses import dataclass, field

from lattice.ids import TaskId
from lattice.ports.service import CodeUpload, TaskUpload
from lattice.workflow.task import CodeForm
from tests.simulation.nature import Nature

_OUTPUTS = ("out", "other")


@dataclass(slots=True)
class Draft:
    """What a client means a workflow to be: tasks by id, with what each refers to, and explicit edges."""

    references: dict[TaskId, dict[str, tuple[TaskId, str]]] = field(default_factory=dict)
    edges: dict[tuple[TaskId, TaskId], None] = field(default_factory=dict)

    def upstream(self) -> dict[TaskId, frozenset[TaskId]]:
        """Who waits for whom in a run."""
        return {
            task_id: frozenset(
                [source for source, _ in references.values()]
                + [source for source, target in self.edges if target == task_id]
            )
            for task_id, references in self.references.items()
        }

    def upload(self, task_id: TaskId, nature: Nature) -> TaskUpload:
        """A task with its references, and a random policy."""
        inputs: dict[str, object] = {
            str(number): {
                "key": key,
                "input_schema": "from_task",
                "value": f"{source}.{output}",
            }
            for number, (key, (source, output)) in enumerate(self.references[task_id].items(), 1)
        }
        inputs["90"] = {"key": "given", "input_schema": "from_user", "value": 1}
        definition: dict[str, object] = {
            "task_input": {"input_params": inputs},
            "task_output": {
                "output_params": {
                    str(number): {"key": key} for number, key in enumerate(_OUTPUTS, 1)
                }
            },
            "retry": {
                "max_attempts": nature.choice((1, 2, 3)),
                "backoff": nature.choice((0.0, 0.1, 3.0)),
            },
        }
        if nature.flips(0.5):
            definition["timeout"] = nature.choice((0.5, 2.0, 10.0))
        return TaskUpload(
            task_id, f"name of {task_id}", definition, CodeUpload(CodeForm.SOURCE, b"def f(): ...")
        )


def connect(draft: Draft, tasks: list[TaskId], nature: Nature) -> None:
    """Joins tasks, earlier to later, in one of several shapes."""
    shape = nature.choice(("chain", "fan", "diamond", "any", "loose"))
    for place, task_id in enumerate(tasks):
        draft.references.setdefault(task_id, {})
        earlier = tasks[:place]
        if shape == "chain":
            sources = earlier[-1:]
        elif shape == "fan":
            sources = earlier[:1] if place < len(tasks) - 1 else earlier[1:] or earlier
        elif shape == "diamond":
            sources = earlier[max(0, place - 1 - place % 2) : place - (place + 1) % 2 + 1][:2]
        elif shape == "any":
            sources = [source for source in earlier if nature.flips(0.4)]
        else:
            sources = []
        for source in sources:
            if nature.flips(0.6):
                output = nature.choice(_OUTPUTS)
                draft.references[task_id][f"from_{source}_{output}"] = source, output
                if nature.flips(0.7):
                    continue
            draft.edges[source, task_id] = None
