"""The workflows that clients submit, and what each must come to."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lattice import task
from lattice.client.client import LatticeClient
from lattice.client.workflow import Workflow
from tests.faults.campaign.marks import leave

Expected = Mapping[str, Mapping[str, Any]]
#: Builds a workflow of its shape with marks in a file under a nonce, and says what it must come to.
Shape = Callable[[LatticeClient, Path, str, random.Random], tuple[Workflow, Expected]]


def grown(name: str, data: bytes) -> bytes:
    """100 KiB that depend on `data`: more than is kept in the database, so they go to the storage."""
    return hashlib.sha256(name.encode() + data).digest() * 3200


@task(outputs=["number", "data"], resources={"cpu": 0.5})
def step(
    marks: str, nonce: str, name: str, seconds: float, number: int = 0, data: bytes = b""
) -> dict[str, Any]:
    """A link of a chain, with a large output."""
    call = leave(marks, "begin", nonce, name)
    time.sleep(seconds)
    value = {"number": number + 1, "data": grown(name, data)}
    leave(marks, "end", nonce, name, call)
    return value


@task(outputs=["number", "digest"], resources={"cpu": 0.5})
def join(
    marks: str, nonce: str, name: str, numbers: list[int], datas: list[bytes]
) -> dict[str, Any]:
    """Takes what many tasks gave."""
    call = leave(marks, "begin", nonce, name)
    value = {"number": sum(numbers), "digest": hashlib.sha256(b"".join(datas)).hexdigest()}
    leave(marks, "end", nonce, name, call)
    return value


@task(
    inputs=["marks", "nonce", "name", "number"],
    outputs=["number"],
    batch_size=4,
    batch_timeout=0.05,
    resources={"cpu": 0.25},
    # Replicas stay, so that there is always one to kill.
    autoscaling={"max_replicas": 2, "downscale_delay": 3600},
)
def doubled(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Runs on replicas, in batches with calls of other runs."""
    calls = [leave(item["marks"], "begin", item["nonce"], item["name"]) for item in batch]
    time.sleep(0.2)
    for item, call in zip(batch, calls, strict=True):
        leave(item["marks"], "end", item["nonce"], item["name"], call)
    return [{"number": 2 * item["number"]} for item in batch]


@task(
    outputs=["number"],
    resources={"cpu": 0.5},
    retry={"max_attempts": 3, "backoff": 0.2, "on": ["OSError"]},
)
def flaky(marks: str, nonce: str, name: str, number: int) -> dict[str, int]:
    """Fails the first time, whatever is killed meanwhile: a file remembers that it has."""
    import os

    call = leave(marks, "begin", nonce, name)
    time.sleep(0.1)
    flag = f"{marks}.{nonce}"
    if not os.path.exists(flag):
        with open(flag, "w"):
            pass
        raise OSError("the first time")
    leave(marks, "end", nonce, name, call)
    return {"number": number + 1}


def _given(marks: Path, nonce: str, name: str, **more: object) -> dict[str, object]:
    return {"marks": str(marks), "nonce": nonce, "name": name, **more}


def chain(
    client: LatticeClient, marks: Path, nonce: str, chance: random.Random, links: int = 5
) -> tuple[Workflow, Expected]:
    """Tasks one after another, each with the large output of the last."""
    workflow = client.create_workflow("chain")
    expected = {}
    number, data, before = 0, b"", None
    for name in (f"step-{link}" for link in range(links)):
        given = _given(marks, nonce, name, seconds=chance.uniform(0.05, 0.4))
        if before is not None:
            given |= {"number": before.outputs["number"], "data": before.outputs["data"]}
        before = workflow.add_task(step, given, name=name)
        number, data = number + 1, grown(name, data)
        expected[name] = {"number": number, "data": data}
    return workflow, expected


def fan(
    client: LatticeClient, marks: Path, nonce: str, chance: random.Random
) -> tuple[Workflow, Expected]:
    """One task, six beside each other, one that takes the large outputs of all of them."""
    workflow = client.create_workflow("fan")
    seconds = chance.uniform(0.05, 0.4)
    first = workflow.add_task(step, _given(marks, nonce, "first", seconds=seconds), name="first")
    expected: dict[str, dict[str, Any]] = {"first": {"number": 1, "data": grown("first", b"")}}
    middle = []
    for name in (f"step-{number}" for number in range(6)):
        given = _given(marks, nonce, name, seconds=seconds, data=first.outputs["data"])
        middle.append(workflow.add_task(step, given, name=name))
        expected[name] = {"number": 1, "data": grown(name, grown("first", b""))}
    datas = [expected[each.name]["data"] for each in middle]
    given = _given(
        marks,
        nonce,
        "join",
        numbers=[each.outputs["number"] for each in middle],
        datas=[each.outputs["data"] for each in middle],
    )
    workflow.add_task(join, given, name="join")
    expected["join"] = {"number": 6, "digest": hashlib.sha256(b"".join(datas)).hexdigest()}
    return workflow, expected


def batch(
    client: LatticeClient, marks: Path, nonce: str, chance: random.Random
) -> tuple[Workflow, Expected]:
    """Six calls of the batched task, and one task that takes all that they gave."""
    workflow = client.create_workflow("batch")
    expected: dict[str, dict[str, Any]] = {}
    calls = []
    for number in range(6):
        name = f"call-{number}"
        calls.append(
            workflow.add_task(doubled, _given(marks, nonce, name, number=number), name=name)
        )
        expected[name] = {"number": 2 * number}
    numbers = [each.outputs["number"] for each in calls]
    workflow.add_task(join, _given(marks, nonce, "join", numbers=numbers, datas=[]), name="join")
    expected["join"] = {"number": 30, "digest": hashlib.sha256().hexdigest()}
    return workflow, expected


def retried(
    client: LatticeClient, marks: Path, nonce: str, chance: random.Random
) -> tuple[Workflow, Expected]:
    """A task that fails the first time, between two that do not."""
    workflow = client.create_workflow("retried")
    given = _given(marks, nonce, "before", seconds=chance.uniform(0.05, 0.4))
    before = workflow.add_task(step, given, name="before")
    given = _given(marks, nonce, "flaky", number=before.outputs["number"])
    middle = workflow.add_task(flaky, given, name="flaky")
    given = _given(marks, nonce, "after", seconds=0.1, number=middle.outputs["number"])
    workflow.add_task(step, given, name="after")
    return workflow, {
        "before": {"number": 1, "data": grown("before", b"")},
        "flaky": {"number": 2},
        "after": {"number": 3, "data": grown("after", b"")},
    }


SHAPES: dict[str, Shape] = {"chain": chain, "fan": fan, "batch": batch, "retried": retried}
