"""A task definition as a Serve application: its identity, and the options of its deployment.

Batches form per definition. What belongs to it is what makes two calls exchangeable: code, needs, batch
policy, runtime environment, where it may not run, and the Python that unpickles it. Workflow, run, names
of inputs and outputs do not: one function used in ten workflows is one definition.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from dataclasses import asdict, dataclass
from typing import Any

from lattice.execution.ray_remote import options_of
from lattice.execution.shape import Shape
from lattice.ports import Job
from lattice.workflow.task import Code

#: What the names of all applications of task definitions begin with.
PREFIX = "lattice-task"

#: Groups that a full batch comes in. Fewer would let a batch wait longer for its last items, more cost
#: throughput: each is a call of the handle.
_GROUPS_PER_BATCH = 4


@dataclass(frozen=True, slots=True)
class Definition:
    """What all calls on the same replicas have in common."""

    code: Code
    shape: Shape
    batched: bool
    batch_size: int
    batch_timeout: float

    @classmethod
    def of(cls, job: Job) -> Definition:
        """The definition that a job belongs to."""
        return cls(
            code=job.code,
            shape=Shape.of(job),
            batched=job.batched,
            batch_size=job.batch_size if job.batched else 1,
            batch_timeout=job.batch_timeout if job.batched else 0.0,
        )

    def name(self, scope: str) -> str:
        """The name of its application; `scope` keeps apart services that share a Serve."""
        document = asdict(self)
        document["shape"]["excluded"] = sorted(self.shape.excluded)
        document["python"] = sys.version_info[:2]
        text = json.dumps(document, sort_keys=True)
        return f"{prefix(scope)}{hashlib.sha256(text.encode()).hexdigest()[:24]}"

    @property
    def group_size(self) -> int:
        """Most items in one call of the handle."""
        return math.ceil(self.batch_size / _GROUPS_PER_BATCH)

    @property
    def ahead(self) -> int:
        """Items that a replica should have at a time: one batch runs, the next fills, a third travels."""
        return 3 * self.batch_size if self.batch_size > 1 else 2

    @property
    def target_ongoing_requests(self) -> int:
        """Calls of the handle for which one replica is enough: those of one batch.

        Less than what a busy replica is given (`ahead`), so that work that piles up makes Serve add replicas.
        """
        return math.ceil(self.batch_size / self.group_size)

    def actor_options(self) -> dict[str, Any]:
        """Its needs as options of the replica's actor."""
        options = options_of(self.shape)
        del options["max_retries"]
        return options


def prefix(scope: str) -> str:
    """What the names of the applications of `scope` begin with."""
    return f"{PREFIX}-{hashlib.sha256(scope.encode()).hexdigest()[:8]}-"
