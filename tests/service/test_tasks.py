"""What user code may do: every way of failing is told in words, and hurts nothing else."""

from __future__ import annotations

import pickle
import textwrap
from typing import Any

import pytest

from tests.running import wait_for
from tests.service.rest import Rest, inputs, outputs


def source(body: str) -> str:
    return textwrap.dedent(body)


def test_whole_modules_with_imports_and_helpers_run(rest: Rest) -> None:
    """The function named like the task is run, not the last one."""
    done = rest.outcome(
        source(
            """
            import math
            from dataclasses import dataclass

            @dataclass
            class Point:
                x: int

            def task(params):
                return {"out": helper(Point(params["n"]))}

            def helper(point):
                return math.factorial(point.x)
            """
        ),
        task_input=inputs(n=5),
    )
    assert done["data"]["result"] == {"out": 120}


def test_without_a_function_of_its_name_the_last_one_runs(rest: Rest) -> None:
    """Functions and classes at the top level count."""
    done = rest.outcome("def first(p):\n    return {}\ndef last(p):\n    return {'out': 'last'}\n")
    assert done["data"]["result"] == {"out": "last"}


def test_pickled_functions_and_closures_run(rest: Rest) -> None:
    """With what they close over; and pickled code wins over source."""
    offset = 40

    def add(params: dict[str, Any]) -> dict[str, Any]:
        return {"out": params["n"] + offset}

    add.__module__ = "__main__"
    done = rest.outcome(add, task_input=inputs(n=2), code_str="raise SystemError")
    assert done["data"]["result"] == {"out": 42}


def test_async_tasks_run(rest: Rest) -> None:
    """They are awaited."""
    done = rest.outcome(
        "import asyncio\nasync def task(p):\n    await asyncio.sleep(0.01)\n    return {'out': 1}\n"
    )
    assert done["data"]["result"] == {"out": 1}


def test_classes_are_constructed_once_per_process_and_called(rest: Rest) -> None:
    """The instance is kept for the definition's next calls."""
    code = source(
        """
        import os

        class Counter:
            def __init__(self):
                self.calls = 0

            def __call__(self, params):
                self.calls += 1
                return {"out": [os.getpid(), self.calls, params["n"]]}
        """
    )
    workflow_id = rest.workflow()
    for number in range(12):
        rest.task(workflow_id, "Counter", code, task_input=inputs(n=number))
    messages = rest.messages(workflow_id, rest.run(workflow_id))
    results = [m["data"]["result"]["out"] for m in messages if m["type"] == "finish_task"]
    assert sorted(number for _, _, number in results) == list(range(12))
    for pid in {pid for pid, _, _ in results}:
        calls = sorted(calls for each, calls, _ in results if each == pid)
        assert calls == list(range(1, len(calls) + 1))


def test_batched_tasks_run_one_call_at_a_time(rest: Rest) -> None:
    """A list comes in, a list as long goes out; an exception in it fails its item."""
    code = source(
        """
        def task(batch):
            assert isinstance(batch, list)
            return [ValueError("bad item") if p["n"] < 0 else {"out": p["n"]} for p in batch]
        """
    )
    batch = {"enabled": True, "batch_size": 10, "batch_timeout": 0.1}
    done = rest.outcome(code, task_input=inputs(n=3), batch_config=batch)
    assert done["data"]["result"] == {"out": 3}
    failed = rest.outcome(code, task_input=inputs(n=-3), batch_config=batch)
    assert failed["data"]["error"]["message"] == "bad item"


FAILURES = [
    ("def task(p):\n    x = 1\n    raise ValueError('broken')\n", "ValueError", "broken", "line 3"),
    ("def task(p):\n    return 5\n", "", "int", ""),
    ("def task(p):\n    return None\n", "", "None", ""),
    ("def task(p):\n    return {'other': 1}\n", "", "out", ""),
    ("def task(p):\n    return {1: 1, 'out': 1}\n", "", "1", ""),
    ("import threading\ndef task(p):\n    return {'out': threading.Lock()}\n", "", "out", ""),
    ("import sys\ndef task(p):\n    sys.exit(3)\n", "SystemExit", "3", "line 3"),
    ("import os\ndef task(p):\n    os._exit(3)\n", "", "died", ""),
    ("import os\ndef task(p):\n    os.kill(os.getpid(), 9)\n", "", "died", ""),
    ("def task(p)\n    return {}\n", "SyntaxError", "expected ':'", "line 1"),
    ("import no_such_module\ndef task(p):\n    return {}\n", "ModuleNotFoundError", "no_such", ""),
    ("x = 1\n", "", "function", ""),
    (
        "class task:\n    def __init__(self):\n        raise OSError('no model')\n",
        "OSError",
        "",
        "line 3",
    ),
    ("def task(batch):\n    raise KeyboardInterrupt\n", "KeyboardInterrupt", "", ""),
    ("def task(p):\n    return task(p)\n", "RecursionError", "recursion", "line 2"),
    (
        "class Odd(Exception):\n    def __str__(self):\n        raise ValueError\n"
        "def task(p):\n    raise Odd\n",
        "Odd",
        "",
        "line 5",
    ),
]


@pytest.mark.parametrize(("code", "kind", "words", "trace"), FAILURES, ids=range(len(FAILURES)))
def test_failures_are_told_in_words(
    rest: Rest, code: str, kind: str, words: str, trace: str
) -> None:
    """The type, the message and the user's own file and line."""
    failed = rest.outcome(code)
    assert failed["type"] == "task_exception"
    error = failed["data"]["error"]
    assert failed["data"]["result"] == error["message"]
    assert kind in error["type"]
    assert words in error["message"]
    assert trace in error["traceback"]
    assert "lattice/execution" not in error["traceback"]


def test_a_dying_process_is_tried_again_and_hurts_nobody(rest: Rest) -> None:
    """Its neighbours in the run finish; each death is told."""
    workflow_id = rest.workflow()
    rest.task(workflow_id, "task", "import os\ndef task(p):\n    os.kill(os.getpid(), 9)\n")
    good = "import time\ndef task(p):\n    time.sleep(0.2)\n    return {'out': 1}\n"
    for _ in range(8):
        rest.task(workflow_id, "task", good)
    messages = rest.messages(workflow_id, rest.run(workflow_id))
    kinds = [message["type"] for message in messages]
    assert kinds.count("finish_task") == 8
    assert kinds.count("task_retry") == 2
    assert kinds.count("task_exception") == 1
    assert messages[-1]["data"]["status"] == "failed"


def test_forks_and_prints_are_harmless(rest: Rest) -> None:
    """A forked child that returns, raises or exits never reports in its parent's name."""
    for end in ("return {'out': 'child'}", "raise ValueError", "os._exit(1)"):
        code = (
            "import os\ndef task(p):\n    print('x' * 100000)\n    pid = os.fork()\n"
            f"    if pid == 0:\n        {end}\n"
            "    os.waitpid(pid, 0)\n    return {'out': 'parent'}\n"
        )
        assert rest.outcome(code)["data"]["result"] == {"out": "parent"}


def test_multiprocessing_works(rest: Rest) -> None:
    """Tasks may use processes of their own."""
    code = (
        "import multiprocessing\ndef square(n):\n    return n * n\n"
        "def task(p):\n    with multiprocessing.get_context('fork').Pool(2) as pool:\n"
        "        return {'out': pool.map(square, [1, 2, 3])}\n"
    )
    assert rest.outcome(code)["data"]["result"] == {"out": [1, 4, 9]}


def test_values_that_are_not_json_are_described_and_can_be_fetched(rest: Rest) -> None:
    """Type, size, shape and url; the url gives the exact object."""
    done = rest.outcome(
        "import numpy\ndef task(p):\n    return {'out': numpy.arange(6).reshape(2, 3), 'nan': float('nan')}\n",
        task_output=outputs("out", "nan"),
    )
    described = done["data"]["result"]
    assert described["out"]["type"] == "numpy.ndarray"
    assert described["out"]["shape"] == [2, 3]
    assert described["nan"]["type"] == "float"
    fetched = rest.http.get(described["out"]["url"], params={"format": "pickle"})
    assert pickle.loads(fetched.content).tolist() == [[0, 1, 2], [3, 4, 5]]
    refused = rest.http.get(described["out"]["url"])
    assert refused.status_code == 400
    assert "JSON" in refused.json()["detail"]


def test_large_values_go_on_to_the_next_task(rest: Rest) -> None:
    """Through the object store; messages stay small, and JSON is rendered on request. Code may be large, too."""
    workflow_id = rest.workflow()
    make = rest.task(
        workflow_id,
        "make",
        # More than the 4 MiB of a message of Serve's gRPC by default, as is the array.
        f"# {'x' * 4_500_000}\nimport numpy\n"
        "def make(p):\n    return {'array': numpy.ones(4_000_000), 'text': 'x' * 100_000}\n",
        task_output=outputs("array", "text"),
    )
    use = rest.task(
        workflow_id,
        "use",
        "def use(p):\n    return {'out': [float(p['array'].sum()), len(p['text'])]}\n",
        task_input=inputs(array=f"@{make}.array", text=f"@{make}.output.text"),
    )
    run_id = rest.run(workflow_id)
    results = {
        message["data"]["task_id"]: message["data"]["result"]
        for message in rest.messages(workflow_id, run_id)
        if message["type"] == "finish_task"
    }
    assert results[make]["text"]["type"] == "str"
    assert results[make]["array"]["size"] > 32_000_000
    assert results[use] == {"out": [4_000_000.0, 100_000]}
    array = rest.http.get(results[make]["array"]["url"], params={"format": "pickle"})
    assert float(pickle.loads(array.content).sum()) == 4_000_000.0
    assert rest.get(results[make]["text"]["url"]) == "x" * 100_000
    assert rest.get(f"/runs/{run_id}/tasks/{use}/result")["result"] == results[use]


def test_classes_of_the_source_travel_between_tasks(rest: Rest) -> None:
    """A value whose class exists only in one task's source is understood by the next."""
    workflow_id = rest.workflow()
    make = rest.task(
        workflow_id,
        "make",
        "class Point:\n    def __init__(self, x):\n        self.x = x\n"
        "def make(p):\n    return {'out': Point(7)}\n",
    )
    rest.task(
        workflow_id,
        "use",
        "def use(p):\n    return {'out': p['point'].x}\n",
        task_input=inputs(point=f"@{make}.out"),
    )
    messages = rest.messages(workflow_id, rest.run(workflow_id))
    assert messages[-2]["data"]["result"] == {"out": 7}


def test_resources_reach_the_engine(rest: Rest) -> None:
    """CPUs, and no sight of GPUs for a task that asked for none; variables of the environment."""
    done = rest.outcome(
        "import os, ray\ndef task(p):\n"
        "    found = ray.get_runtime_context().get_assigned_resources()\n"
        "    return {'out': [found, os.environ['CUDA_VISIBLE_DEVICES'], os.environ['MINE']]}\n",
        resources={"cpu": 0.5, "cpu_mem": 100},
        runtime_env={"env_vars": {"MINE": "yes"}},
    )
    found, devices, mine = done["data"]["result"]["out"]
    assert found["CPU"] == 0.5
    assert found["memory"] == 100 * 1024 * 1024
    assert devices == ""
    assert mine == "yes"


def test_a_timeout_ends_the_work(rest: Rest, tmp_path: Any) -> None:
    """Not only the waiting: the process stops what it was doing."""
    mark = tmp_path / "mark"
    failed = rest.outcome(
        f"import time\ndef task(p):\n    time.sleep(8)\n    open({str(mark)!r}, 'w')\n",
        timeout=0.5,
    )
    assert failed["type"] == "task_exception"
    assert "timeout of 0.5 s" in failed["data"]["result"]
    after = rest.outcome("import time\ndef task(p):\n    time.sleep(8)\n    return {'out': 1}\n")
    assert after["type"] == "finish_task"
    assert not mark.exists()


def test_a_timeout_ends_code_that_never_lets_go(rest: Rest) -> None:
    """A regular expression that backtracks for ever holds the interpreter in one call; its CPU is free again."""
    failed = rest.outcome(
        "import re\ndef task(p):\n    re.match('(a+)+$', 'a' * 60 + 'b')\n    return {'out': 1}\n",
        timeout=0.5,
    )
    assert "timeout of 0.5 s" in failed["data"]["result"]
    # This needs the whole machine, and so the end of what was there before.
    nodes = rest.get("/workers")["workers"]
    here = [node for node in nodes if node["status"] in ("active", "unregistered")]
    everything = {"cpu": max(node["resources"]["cpu"] for node in here)}
    workflow_id = rest.workflow()
    rest.task(workflow_id, "task", "def task(p):\n    return {'out': 1}\n", resources=everything)
    run_id = rest.run(workflow_id)
    wait_for(
        "its CPU to be free",
        lambda: rest.get(f"/runs/{run_id}")["run"]["status"] == "succeeded",
    )


def test_retries_by_policy(rest: Rest, tmp_path: Any) -> None:
    """The third try succeeds; the tries before are told."""
    mark = tmp_path / "tries"
    code = (
        f"def task(p):\n    with open({str(mark)!r}, 'a+') as f:\n        f.write('x')\n"
        "        f.seek(0)\n        n = len(f.read())\n"
        "    if n < 3:\n        raise ValueError(f'try {n}')\n    return {'out': n}\n"
    )
    workflow_id = rest.workflow()
    rest.task(workflow_id, "task", code, retry={"max_attempts": 3, "backoff": 0.05})
    messages = rest.messages(workflow_id, rest.run(workflow_id))
    assert [message["type"] for message in messages] == [
        *["start_task", "task_retry"] * 2,
        "start_task",
        "finish_task",
        "finish_workflow",
    ]
    assert messages[1]["data"]["error"]["message"] == "try 1"
    assert messages[-2]["data"]["result"] == {"out": 3}
