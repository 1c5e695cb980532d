"""Has the service's own loggers write where Serve writes what it says of this replica.

That is a file in the engine's folder of logs, and standard error.
"""

from __future__ import annotations

import logging

from lattice.observability.logs import LogFormat, use_handlers

#: Serve's logger in each of its processes, which does not hand on to those above it.
_SERVE = "ray.serve"


def use_serve_logs(log_format: LogFormat) -> None:
    """To be called on a replica, once Serve has set up its own logger. As JSON, Serve's lines are too."""
    use_handlers(logging.getLogger(_SERVE).handlers, log_format)
