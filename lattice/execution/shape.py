"""What a task needs of the engine and where it may run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from lattice.ids import NodeId, Tenant
from lattice.ports.execution import Definition, EngineNode

#: The environment variable that tells user code whose it is. As the engine gives no process to two environments,
#: it also keeps what one tenant's code has left in a process from the code of others.
TENANT_VARIABLE = "LATTICE_TENANT"


def env_of(runtime_env: Mapping[str, object], tenant: Tenant | None) -> str:
    """The runtime environment of a tenant's code, as JSON text; empty for none."""
    env = dict(runtime_env)
    if tenant is not None:
        env["env_vars"] = variables_of(runtime_env, tenant)
    return json.dumps(env, sort_keys=True) if env else ""


def variables_of(runtime_env: Mapping[str, object], tenant: Tenant | None) -> dict[str, str]:
    """The environment variables of a tenant's code."""
    variables = runtime_env.get("env_vars", {})
    assert isinstance(variables, Mapping)
    return {**variables, **({} if tenant is None else {TENANT_VARIABLE: tenant})}


@dataclass(frozen=True, slots=True)
class Shape:
    """Needs and exclusions of a task. Tasks of one shape compete for the same places.

    Attributes:
        memory: in MiB.
        runtime_env: JSON text, empty for none.
        excluded: nodes that it may not run on.
    """

    cpus: float
    memory: float
    gpus: float
    runtime_env: str
    excluded: frozenset[NodeId]

    @classmethod
    def of(cls, definition: Definition) -> Self:
        """The shape of calls of a definition."""
        env = env_of(definition.runtime_env, definition.tenant)
        resources = definition.resources
        return cls(resources.cpu, resources.cpu_mem, definition.gpus, env, definition.excluded)

    def places(self, node: EngineNode) -> float:
        """How many tasks of this shape fit on an empty `node`; infinite if it needs nothing."""
        if node.node_id in self.excluded:
            return 0
        pairs = ((self.cpus, node.cpu), (self.gpus, node.gpu), (self.memory, node.memory))
        return min((has // needed for needed, has in pairs if needed > 0), default=math.inf)
