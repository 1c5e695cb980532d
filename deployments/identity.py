"""A task definition as a Serve application: its name, which is its identity, and its options.

Batches form per definition. What belongs to it is what makes two calls exchangeable: code, needs, batch
policy, scaling, runtime environment, where it may not run, and the Python that unpickles it. Workflow, run,
names of inputs and outputs do not: one function used in ten workflows is one definition.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import asdict
from typing import Any

from lattice.execution.ray_remote import options_of
from lattice.execution.shape import Shape
from lattice.ports import Definition

#: What the names of all applications of task definitions begin with.
PREFIX = "lattice-task"

#: Groups that a full batch comes in. Fewer would let a batch wait longer for its last items, more cost
#: throughput: each is a call of the handle.
_GROUPS_PER_BATCH = 4


def application_name(definition: Definition, scope: str) -> str:
    """The name of a definition's application; `scope` keeps apart services that share a Serve."""
    shape = asdict(Shape.of(definition))
    shape["excluded"] = sorted(definition.excluded)
    document = {
        "code": asdict(definition.code),
        "shape": shape,
        "batch": definition.batch.document(),
        "autoscaling": definition.scaling.document(),
        "python": sys.version_info[:2],
    }
    text = json.dumps(document, sort_keys=True)
    return f"{prefix(scope)}{hashlib.sha256(text.encode()).hexdigest()[:24]}"


def prefix(scope: str) -> str:
    """What the names of the applications of `scope` begin with."""
    return f"{PREFIX}-{hashlib.sha256(scope.encode()).hexdigest()[:8]}-"


def batch_size(definition: Definition) -> int:
    """Most calls that a replica runs together."""
    return definition.batch.batch_size if definition.batch.enabled else 1


def group_size(definition: Definition) -> int:
    """Most calls in one call of the handle."""
    return math.ceil(batch_size(definition) / _GROUPS_PER_BATCH)


def ahead(definition: Definition) -> int:
    """Calls that a replica should have at a time: one batch runs, the next fills, a third travels."""
    size = batch_size(definition)
    return 3 * size if size > 1 else 2


def target_ongoing_requests(definition: Definition) -> int:
    """Calls of the handle for which one replica is enough: those of one batch.

    Less than what a busy replica is given (`ahead`), so that work that piles up makes Serve add replicas.
    """
    return math.ceil(batch_size(definition) / group_size(definition))


def actor_options(definition: Definition) -> dict[str, Any]:
    """A definition's needs as options of a replica's actor."""
    options = options_of(Shape.of(definition))
    del options["max_retries"]
    return options
