"""API keys: how one is made, how it is written down, and whose it is.

A key has 256 random bits, so nobody finds one by trying, and there is nothing in it that a slow hash (bcrypt,
scrypt) would have to protect, as it protects passwords that people choose. A plain SHA-256 is enough: settings
hold nothing else of a key, and a request costs one hash and one look into a dictionary.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from lattice.errors import InvalidRequestError, UnauthorizedError

#: What every key begins with, so that people and scanners for leaked secrets know one when they see it.
PREFIX = "lattice_"

#: All characters of a key may stand in a header, in a WebSocket subprotocol and in a shell without quotes.
_KEY = re.compile(PREFIX + r"[A-Za-z0-9_-]{43}")

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def new_key() -> str:
    """A new key, of 256 random bits."""
    return PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """What settings hold of a key: its SHA-256, in hex."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


class ApiKey(BaseModel):
    """A key as settings hold it.

    Attributes:
        name: whose it is: the tenant. Keys of one name are of one tenant, so that a key can be replaced.
        sha256: the key's SHA-256, in hex.
        expires: when it stops being accepted; None never.
        admin: may use the endpoints of worker nodes and `/metrics`, and sees what all tenants have.
        requests_per_second: how many requests of the tenant are answered; None sets no limit.
        max_concurrent_tasks: how many of the tenant's tasks run at a time; others wait. None sets no limit.
    """

    # A key that stands where its hash should must not get into an error message.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")] = Field(repr=False)
    expires: AwareDatetime | None = None
    admin: bool = False
    requests_per_second: Annotated[float, Field(gt=0, le=1e9)] | None = None
    max_concurrent_tasks: Annotated[int, Field(ge=1)] | None = None


def parse_keys(documents: object) -> tuple[ApiKey, ...]:
    """Keys as settings give them, as a list of objects with the attributes of `ApiKey`.

    Raises:
        InvalidRequestError: they make no sense. It says where, and nothing of what was found there.
    """
    if not isinstance(documents, Iterable) or isinstance(documents, str | bytes | Mapping):
        raise InvalidRequestError(
            "api_keys", type(documents).__name__, "a list of keys as `lattice key` prints them"
        )
    keys = []
    for place, document in enumerate(documents):
        try:
            keys.append(ApiKey.model_validate(document))
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(["", *map(str, first["loc"])])
            raise InvalidRequestError(
                f"api_keys[{place}]{where}",
                "something else (not shown, as it may be a key)",
                f"{first['msg']}; `lattice key` prints what belongs here",
            ) from None
    _check_agreement(keys)
    return tuple(keys)


def _check_agreement(keys: Iterable[ApiKey]) -> None:
    """Limits are the tenant's, so its keys must not contradict each other."""
    first: dict[str, ApiKey] = {}
    for key in keys:
        other = first.setdefault(key.name, key)
        for limit in ("requests_per_second", "max_concurrent_tasks"):
            if getattr(key, limit) != getattr(other, limit):
                raise InvalidRequestError(
                    f"api_keys.{key.name}.{limit}",
                    f"{getattr(other, limit)} for one key and {getattr(key, limit)} for another",
                    "keys of one name share their limits: give all of them the same",
                )
    hashes = [key.sha256 for key in keys]
    if len(set(hashes)) < len(hashes):
        raise InvalidRequestError("api_keys", "one sha256 twice", "each key stands there once")


class KeyRing:
    """The keys that are accepted. Empty, it accepts whoever comes."""

    def __init__(self, keys: Iterable[ApiKey]) -> None:
        self._keys = {key.sha256: key for key in keys}

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, key: str, now: datetime) -> ApiKey:
        """Whose key this is.

        It is looked up by its hash, whose bits nobody can steer towards those of another: how long a refusal takes
        tells nothing about any key.

        Raises:
            UnauthorizedError: it is nobody's, or has expired.
        """
        found = self._keys.get(hash_of(key))
        if found is None:
            form = "" if _KEY.fullmatch(key) else f" (a key is {PREFIX} and 43 characters)"
            raise UnauthorizedError(
                f"the API key is not one of this service's{form}; whoever runs the service makes keys with "
                "`lattice key NAME`",
                rejected=True,
            )
        if found.expires is not None and now >= found.expires:
            raise UnauthorizedError(
                f"the API key of {found.name!r} expired at {found.expires.isoformat()}; whoever runs the "
                "service makes new ones with `lattice key NAME`",
                rejected=True,
            )
        return found
