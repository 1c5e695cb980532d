"""Which releases of clients and services understand each other.

Releases come and go at different times on the two sides, so what counts is not the release but the protocol:
a number that grows when something changes that the other side has to know. Each side says its own with every
request and every answer, and refuses what it cannot understand, in words that name the side to upgrade.
"""

from __future__ import annotations

import functools
import platform
from importlib.metadata import version

#: What this release speaks, and the oldest that it understands of the other side.
PROTOCOL = 1
OLDEST = 1

#: Headers of requests and answers: the protocol's number, and the release, which is for people.
PROTOCOL_HEADER = "lattice-protocol"
RELEASE_HEADER = "lattice-version"


@functools.cache
def release() -> str:
    """The version of Lattice in this process."""
    return version("lattice")


def own_headers() -> dict[str, str]:
    """What this side says of itself with every request and every answer."""
    return {PROTOCOL_HEADER: str(PROTOCOL), RELEASE_HEADER: release()}


def user_agent() -> str:
    """How the SDK calls itself."""
    return f"lattice/{release()} python/{platform.python_version()}"
