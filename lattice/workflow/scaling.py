"""How many replicas a task has: the part of a task's needs that Serve's autoscaling is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lattice.errors import InvalidRequestError
from lattice.workflow import checks

#: A day: longest delay, in seconds.
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """Bounds and delays of a task's replicas. None leaves the choice to the service's settings.

    Attributes:
        min_replicas: replicas that stay when there are no calls.
        max_replicas: most replicas.
        target_ongoing_requests: calls, waiting and running, for which one replica is enough.
        upscale_delay: seconds that more calls than that must last before a replica is added.
        downscale_delay: seconds that fewer calls must last before a replica is ended.
        warm_up: whether a replica is started when the task is saved.
    """

    min_replicas: int | None = None
    max_replicas: int | None = None
    target_ongoing_requests: float | None = None
    upscale_delay: float | None = None
    downscale_delay: float | None = None
    warm_up: bool | None = None

    @classmethod
    def parse(cls, document: object, field: str = "autoscaling") -> Scaling:
        """Reads an object with any of the attributes' names. Raises InvalidRequestError."""
        if document is None:
            return cls()
        given = checks.mapping(document, field)
        checks.known_keys(given, field, cls.__slots__)
        scaling = cls(
            min_replicas=_whole(given, field, "min_replicas", 0),
            max_replicas=_whole(given, field, "max_replicas", 1),
            target_ongoing_requests=_number(
                given, field, "target_ongoing_requests", 100_000, above=True
            ),
            upscale_delay=_number(given, field, "upscale_delay", _DAY),
            downscale_delay=_number(given, field, "downscale_delay", _DAY),
            warm_up=_flag(given, field, "warm_up"),
        )
        least, most = scaling.min_replicas, scaling.max_replicas
        if least is not None and most is not None and least > most:
            raise InvalidRequestError(
                f"{field}.min_replicas",
                str(least),
                f"at most max_replicas, which is {most}, is allowed",
            )
        return scaling

    def document(self) -> dict[str, object]:
        """The wire form: what was given."""
        return {
            name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None
        }


def _whole(given: Mapping[str, object], field: str, key: str, minimum: int) -> int | None:
    value = given.get(key)
    if value is None:
        return None
    return checks.whole(value, f"{field}.{key}", minimum=minimum, maximum=1000)


def _number(
    given: Mapping[str, object], field: str, key: str, maximum: float, *, above: bool = False
) -> float | None:
    value = given.get(key)
    if value is None:
        return None
    return checks.number(value, f"{field}.{key}", above=above, maximum=maximum)


def _flag(given: Mapping[str, object], field: str, key: str) -> bool | None:
    value = given.get(key)
    if value is not None and not isinstance(value, bool):
        raise InvalidRequestError(
            f"{field}.{key}", checks.shown(value), "true and false are allowed"
        )
    return value
