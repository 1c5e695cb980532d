"""Settings of the service that is fuzzed: limits that requests reach, times that are soon over."""

from __future__ import annotations

MAX_BODY = 4_000_000

SETTINGS: dict[str, object] = {
    "max_body_bytes": MAX_BODY,
    "max_live_runs": 500,
    "call_timeout": 10,
    "housekeeping_seconds": 1,
    "default_timeout": 20,
    "default_deadline": 120,
    "replica_idle_seconds": 30,
    "max_replica_applications": 3,
}
