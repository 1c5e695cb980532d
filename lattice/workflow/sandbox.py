"""The sandbox of a task that nobody trusts: what its processes may use.

How it is kept is `lattice.execution.sandbox`'s.
"""

from __future__ import annotations

from dataclasses import dataclass

from lattice.errors import InvalidRequestError
from lattice.workflow import checks

#: Of each limit what is allowed, from and to.
_BOUNDS = {
    "cpu_seconds": (1, 86_400),
    "memory": (64, 1_048_576),
    "scratch": (1, 1_048_576),
    "processes": (1, 1_024),
}


@dataclass(frozen=True, slots=True)
class Sandbox:
    """Limits of all processes of one attempt together.

    Attributes:
        cpu_seconds: of CPU time.
        memory: in MiB; no single process gets more address space than this and what Python itself takes.
        scratch: size of the folder that it may write to, and of its largest file, in MiB.
        processes: and threads.
    """

    cpu_seconds: int = 300
    memory: int = 1_024
    scratch: int = 256
    processes: int = 64

    @classmethod
    def parse(cls, document: object, field: str = "sandbox") -> Sandbox | None:
        """Reads true, false or an object with any of the attributes' names. Raises InvalidRequestError."""
        if document is None or document is False:
            return None
        if document is True:
            return cls()
        if not isinstance(document, dict):
            raise InvalidRequestError(
                field, checks.shown(document), "true, false or an object with limits is allowed"
            )
        checks.known_keys(document, field, cls.__slots__)
        return cls(
            **{
                key: checks.whole(
                    value, f"{field}.{key}", minimum=_BOUNDS[key][0], maximum=_BOUNDS[key][1]
                )
                for key, value in document.items()
            }
        )

    def document(self) -> dict[str, object]:
        """The wire form."""
        return {key: getattr(self, key) for key in self.__slots__}
