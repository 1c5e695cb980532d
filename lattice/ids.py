"""Identifiers as distinct types, so that one kind is never passed for another."""

from typing import NewType

WorkflowId = NewType("WorkflowId", str)
TaskId = NewType("TaskId", str)
#: The name of whom API keys and what is made with them belong to.
Tenant = NewType("Tenant", str)
RunId = NewType("RunId", str)
NodeId = NewType("NodeId", str)
#: SHA-256, in hex, of the bytes it names.
Digest = NewType("Digest", str)
