"""Where the values of secrets come from, which tasks ask for by name."""

from __future__ import annotations

from typing import Protocol

from lattice.ids import Tenant


def key_of(name: str, tenant: Tenant | None) -> str:
    """What a secret is called where each tenant has its own, and those without a tenant theirs."""
    return name if tenant is None else f"{tenant}/{name}"


class Secrets(Protocol):
    """Secrets by key. Values go to the processes that run attempts, and are kept nowhere."""

    def has(self, key: str) -> bool:
        """Whether there is such a one."""

    def value(self, key: str) -> str:
        """What it is now. Raises SecretError."""


class NoSecrets:
    """There are none."""

    def has(self, key: str) -> bool:
        """Never."""
        return False

    def value(self, key: str) -> str:
        """Raises SecretNotFoundError."""
        raise SecretNotFoundError(key)


class SecretError(Exception):
    """A secret that no attempt can be given; the text says why."""


class SecretNotFoundError(SecretError):
    """A secret that is not, or no longer, there."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"the service has no secret {key!r}; whoever runs it puts it into a file of that name in its `secrets_dir`"
        )
