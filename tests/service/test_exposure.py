"""Where the real service may listen: on an address of the network only with keys, or where a setting says so."""

from __future__ import annotations

import httpx
import pytest

from lattice.keys import hash_of, new_key
from tests.running import running_service


def test_without_keys_it_does_not_start_where_others_reach_it() -> None:
    """`serve run` ends, and says what to do."""
    with (
        pytest.raises(AssertionError, match="make serve ended") as ended,
        running_service(host="0.0.0.0"),
    ):
        pass
    for word in ("http_options.host", "api_keys", "allow_unauthenticated_network_access"):
        assert word in str(ended.value)


def test_with_keys_it_does() -> None:
    key = new_key()
    with running_service(
        host="0.0.0.0", api_keys=[{"name": "a", "sha256": hash_of(key)}]
    ) as service:
        assert httpx.get(f"{service.url}/runs").status_code == 401
        headers = {"authorization": f"Bearer {key}", "host": "lattice.example"}
        assert httpx.get(f"{service.url}/runs", headers=headers).status_code == 200
