"""Which of a task's messages is its result."""

from __future__ import annotations

import json

from lattice.workflow.messages import MessageType


def is_result(document: str) -> bool:
    """Whether a message, as JSON text, is a `finish_task`."""
    return bool(json.loads(document)["type"] == MessageType.FINISH_TASK)
