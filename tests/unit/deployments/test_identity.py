"""Which calls share replicas."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployments.replicas import identity
from deployments.replicas.identity import application_name
from lattice.execution.shape import TENANT_VARIABLE
from lattice.ids import Digest, NodeId, Tenant
from lattice.ports.execution import Definition
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Code, CodeForm, Resources

DEFINITION = Definition(
    code=Code(Digest("d"), CodeForm.SOURCE, "run"),
    resources=Resources(),
    gpus=0.0,
    batch=BatchPolicy(True, 8),
    scaling=Scaling(),
    runtime_env={},
    excluded=frozenset(),
)


def name(definition: Definition, scope: str = "s") -> str:
    return application_name(definition, scope)


def test_a_release_has_applications_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replica of another one makes of a call is anybody's guess."""
    before = name(DEFINITION)
    assert name(DEFINITION) == before
    monkeypatch.setattr(identity, "release", lambda: "0.0.0")
    identity._name.cache_clear()
    assert name(DEFINITION) != before
    identity._name.cache_clear()


def test_what_the_calls_need_counts() -> None:
    """Each of these makes another definition; and services keep apart."""
    others = [
        replace(DEFINITION, code=replace(DEFINITION.code, digest=Digest("e"))),
        replace(DEFINITION, resources=Resources(cpu=2)),
        replace(DEFINITION, gpus=0.5),
        replace(DEFINITION, batch=BatchPolicy(True, 9)),
        replace(DEFINITION, batch=BatchPolicy(True, 8, 1.0)),
        replace(DEFINITION, batch=BatchPolicy()),
        replace(DEFINITION, scaling=Scaling(max_replicas=2)),
        replace(DEFINITION, runtime_env={"pip": ["x"]}),
        replace(DEFINITION, excluded=frozenset({NodeId("n")})),
        replace(DEFINITION, tenant=Tenant("alice")),
        replace(DEFINITION, tenant=Tenant("bob")),
        replace(DEFINITION, runtime_env={"env_vars": {TENANT_VARIABLE: "alice"}}),
        replace(DEFINITION, secrets=("KEY",)),
        replace(DEFINITION, secrets=("KEY", "OTHER")),
        # Of tenants that share what has no secrets.
        replace(DEFINITION, secrets=("alice/KEY",)),
        replace(DEFINITION, secrets=("bob/KEY",)),
    ]
    names = {name(DEFINITION), name(DEFINITION, "other"), *map(name, others)}
    assert len(names) == len(others) + 2


def test_what_a_pickled_task_is_called_does_not_count() -> None:
    """Out of source, a name picks the function."""
    source = DEFINITION.code
    pickle = replace(source, form=CodeForm.PICKLE)
    for code, same in ((source, False), (pickle, True)):
        one, two = (replace(DEFINITION, code=replace(code, name=called)) for called in ("a", "b"))
        assert (name(one) == name(two)) is same


def test_the_order_in_which_things_were_said_does_not_count() -> None:
    """Equal definitions have one name."""
    one, two = (replace(DEFINITION, secrets=keys) for keys in (("A", "B"), ("B", "A")))
    assert name(one) == name(two)
    variables = {"A": "1", "B": "2"}
    one, two = (
        replace(DEFINITION, runtime_env={"env_vars": dict(items)})
        for items in (variables.items(), reversed(variables.items()))
    )
    assert name(one) == name(two)
