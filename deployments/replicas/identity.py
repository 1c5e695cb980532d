"""A task definition as a Serve application: its name, which is its identity, and its options.

Batches form per definition. What belongs to it is what makes two calls exchangeable: code, needs, batch
policy, scaling, runtime environment, where it may not run, the Python that unpickles it, the secrets that it sees,
whose keys say of which tenant they are, and the tenant. Workflow, run, names of inputs and outputs do not: one function
used in ten workflows is one definition.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

from lattice.execution.ray_remote import options_of
from lattice.execution.shape import Shape
from lattice.ids import Tenant
from lattice.ports.execution import Definition
from lattice.versions import release
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Code, CodeForm

#: What the names of all applications of task definitions begin with.
PREFIX = "lattice-task"

#: Groups that a full batch comes in. One would let a batch wait longer for its last items; more cost
#: throughput, as each is a call of the handle: with 4, whole runs reached 0.59 of the limit of a replica,
#: with 2 it was 0.75 (`loadtests.bench_runs`, on 2 cores).
_GROUPS_PER_BATCH = 2
#: Batches that a replica should have at a time: one runs, the next fills, a third travels.
_BATCHES_AHEAD = 3


@dataclass(frozen=True, slots=True)
class Bounds:
    """What scales the replicas of a definition that does not say itself.

    Attributes:
        max_replicas: most replicas.
        downscale_delay: seconds that fewer calls must last before a replica is ended.
    """

    max_replicas: int
    downscale_delay: float


def application_name(definition: Definition, scope: str) -> str:
    """The name of a definition's application; `scope` keeps apart services that share a Serve."""
    shape = Shape.of(definition)
    return _name(
        definition.code,
        shape,
        definition.batch,
        definition.scaling,
        definition.tenant,
        definition.secrets,
        scope,
    )


# Asked for with each job, and jobs of one definition come in thousands.
@functools.lru_cache(maxsize=1_000)
def _name(
    code: Code,
    shape: Shape,
    batch: BatchPolicy,
    scaling: Scaling,
    tenant: Tenant | None,
    secrets: tuple[str, ...],
    scope: str,
) -> str:
    what = asdict(code)
    if code.form is CodeForm.PICKLE:
        # Only out of source does a name pick something; tasks of one pickle may be called anything.
        del what["name"]
    document: dict[str, object] = {
        "code": what,
        "shape": asdict(shape) | {"excluded": sorted(shape.excluded)},
        "batch": batch.document(),
        "autoscaling": scaling.document(),
        "python": sys.version_info[:2],
        # What comes with calls is not the same in each, and nobody converts it.
        "lattice": release(),
        "tenant": tenant,
    }
    if secrets:
        # Only then, so that replicas of all others keep their names from before there were secrets.
        document["secrets"] = sorted(secrets)
    text = json.dumps(document, sort_keys=True)
    return f"{prefix(scope)}{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def prefix(scope: str) -> str:
    """What the names of the applications of `scope` begin with."""
    return f"{PREFIX}-{hashlib.sha256(scope.encode()).hexdigest()[:8]}-"


def batch_policy(definition: Definition) -> BatchPolicy:
    """How calls are put together; what is not batched runs one by one."""
    return definition.batch if definition.batch.enabled else BatchPolicy()


def group_size(definition: Definition) -> int:
    """Most calls of the task in one call of the handle."""
    return math.ceil(batch_policy(definition).batch_size / _GROUPS_PER_BATCH)


def calls_ahead(definition: Definition) -> int:
    """Calls of the task that a replica should have at a time."""
    policy = batch_policy(definition)
    if policy.batch_size == 1:
        return policy.max_concurrent_batches + 1
    return (_BATCHES_AHEAD - 1 + policy.max_concurrent_batches) * policy.batch_size


def groups_ahead(definition: Definition) -> int:
    """Calls of the handle that a replica should have at a time; beyond, calls gather for common ones."""
    return math.ceil(calls_ahead(definition) / group_size(definition))


def autoscaling(definition: Definition, bounds: Bounds) -> dict[str, Any]:
    """How Serve scales the application. It counts calls of the handle, which carry groups of calls."""
    scaling = definition.scaling
    policy = batch_policy(definition)
    target = scaling.target_ongoing_requests or policy.batch_size * policy.max_concurrent_batches
    least = scaling.min_replicas or 0
    most = scaling.max_replicas or max(bounds.max_replicas, least)
    downscale = scaling.downscale_delay
    if downscale is None:
        downscale = bounds.downscale_delay
    return {
        "min_replicas": least,
        "max_replicas": most,
        # Less than what a busy replica is given, so that work that piles up makes Serve add replicas.
        "target_ongoing_requests": max(1.0, target / group_size(definition)),
        # By default the load is looked at every ten seconds.
        "metrics_interval_s": 0.5,
        "look_back_period_s": 2,
        "upscale_delay_s": scaling.upscale_delay or 0.0,
        "downscale_delay_s": downscale,
        "downscale_to_zero_delay_s": downscale,
    }


def actor_options(definition: Definition) -> dict[str, Any]:
    """A definition's needs as options of a replica's actor."""
    options = options_of(Shape.of(definition))
    del options["max_retries"]
    return options
