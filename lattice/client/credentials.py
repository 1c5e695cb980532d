"""The API key that the SDK sends."""

from __future__ import annotations

import os

from lattice.errors import InvalidRequestError

#: Where the key is taken from unless a program gives one.
VARIABLE = "LATTICE_API_KEY"


def headers_of(api_key: str | None) -> dict[str, str]:
    """The headers that carry `api_key`, or else the key in the environment; none where there is no key.

    Raises:
        InvalidRequestError: what is there cannot be a key. It is not shown.
    """
    where = VARIABLE if api_key is None else "api_key"
    key = (os.environ.get(VARIABLE, "") if api_key is None else api_key).strip()
    if not key:
        return {}
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InvalidRequestError(
            where,
            "text that cannot be a key (not shown)",
            "a key as `lattice key` prints it is allowed",
        )
    return {"authorization": f"Bearer {key}"}
