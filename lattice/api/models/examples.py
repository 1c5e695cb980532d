"""Examples of requests that `/docs` shows, to be pasted.

They are one story: a workflow of two tasks, `split_words` and `count_words`. Ids must be replaced by those
that the service answered; `SUBMIT` works as it stands.
"""

from __future__ import annotations

from typing import Any

_WORKFLOW_ID = "3f0c6f3e-5d0e-4a57-9d53-0f2f4a1b9c11"
_SPLIT_ID = "8a3b2c1d-0f4e-4b6a-9c7d-5e2f1a0b3c4d"
_COUNT_ID = "c5d6e7f8-1a2b-4c3d-8e4f-6a7b8c9d0e1f"

_SPLIT: dict[str, Any] = {
    "task_name": "split_words",
    "code_str": 'def split_words(params):\n    return {"words": params["text"].split()}\n',
    "task_input": {
        "input_params": {
            "1": {
                "key": "text",
                "input_schema": "from_user",
                "data_type": "str",
                "value": "to be or not to be",
            }
        }
    },
    "task_output": {"output_params": {"1": {"key": "words", "data_type": "list"}}},
    "resources": {"cpu": 1, "cpu_mem": 256},
    "retry": {"max_attempts": 3, "backoff": 1.0, "on": ["OSError", "TaskTimeoutError"]},
    "timeout": 60,
}

_COUNT_CODE = """from collections import Counter

def count_words(params):
    return {"counts": dict(Counter(params["words"]))}
"""


def _count(source: str) -> dict[str, Any]:
    return {
        "task_name": "count_words",
        "code_str": _COUNT_CODE,
        "task_input": {
            "input_params": {
                "1": {
                    "key": "words",
                    "input_schema": "from_task",
                    "data_type": "list",
                    "value": f"{source}.words",
                }
            }
        },
        "task_output": {"output_params": {"1": {"key": "counts", "data_type": "dict"}}},
        "resources": {"cpu": 1},
    }


WORKFLOW: dict[str, Any] = {"workflow_id": _WORKFLOW_ID}
RUN_WITHIN: dict[str, Any] = {**WORKFLOW, "deadline": 3600}
ADD_TASK: dict[str, Any] = {**WORKFLOW, "task_type": "code", "task_name": "split_words"}
SAVE_SPLIT: dict[str, Any] = {**WORKFLOW, "task_id": _SPLIT_ID, **_SPLIT}
SAVE_COUNT: dict[str, Any] = {**WORKFLOW, "task_id": _COUNT_ID, **_count(_SPLIT_ID)}
EDGE: dict[str, Any] = {**WORKFLOW, "source_task_id": _SPLIT_ID, "target_task_id": _COUNT_ID}
TASK: dict[str, Any] = {**WORKFLOW, "task_id": _COUNT_ID}
SUBMIT: dict[str, Any] = {
    "tasks": [{"task_id": "split", **_SPLIT}, {"task_id": "count", **_count("split")}],
    "edges": [],
}

# Pickles of `operator.add`, `(2, 3)` and `{}`: the call answers 5.
ADD_LANGGRAPH: dict[str, Any] = {
    **WORKFLOW,
    "task_type": "langgraph",
    "task_name": "add",
    "code_ser": "gAJjX29wZXJhdG9yCmFkZApxAC4=",
}
RUN_LANGGRAPH: dict[str, Any] = {
    **WORKFLOW,
    "task_id": _COUNT_ID,
    "args": "gAJLAksDhnEALg==",
    "kwargs": "gAJ9cQAu",
}
