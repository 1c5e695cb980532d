"""Where the values of secrets come from, which tasks ask for by name."""

from __future__ import annotations

from typing import Protocol


class Secrets(Protocol):
    """Secrets by name. Values go to the processes that run attempts, and are kept nowhere."""

    def has(self, name: str) -> bool:
        """Whether there is one of that name."""

    def value(self, name: str) -> str:
        """What it is now. Raises SecretNotFoundError."""


class NoSecrets:
    """There are none."""

    def has(self, name: str) -> bool:
        """Never."""
        return False

    def value(self, name: str) -> str:
        """Raises SecretNotFoundError."""
        raise SecretNotFoundError(name)


class SecretNotFoundError(Exception):
    """A secret that is not, or no longer, there."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the service has no secret {name!r}; whoever runs it puts it into a file of that name in its `secrets_dir`"
        )
