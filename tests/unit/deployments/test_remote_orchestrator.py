"""The ingress's side of the orchestrator."""

from __future__ import annotations

from typing import Any

import pytest

from deployments.ingress import RemoteOrchestrator


def test_who_asks_has_to_be_said() -> None:
    """Whoever forgets it must not ask as one who sees everything."""
    make: Any = RemoteOrchestrator
    with pytest.raises(TypeError, match="caller"):
        make(None, 1.0)
