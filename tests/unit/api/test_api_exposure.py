"""A service without API keys stays on its own machine."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from lattice.api import server
from lattice.api.exposure import check_host
from lattice.api.server import OrchestratorManager, create_app
from lattice.api.signals import SignalHandlers
from lattice.errors import InvalidRequestError
from lattice.keys import hash_of, new_key
from lattice.settings import LatticeSettings
from tests.unit.api.scripted import ScriptedService

pytestmark = pytest.mark.anyio

KEY = new_key()
KEYS = [{"name": "alice", "sha256": hash_of(KEY)}]
LOCAL = ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost", "LocalHost", "::ffff:127.0.0.1"]
NETWORK = ["0.0.0.0", "::", "", "192.0.2.7", "2001:db8::1", "::ffff:192.0.2.7", "lattice.example"]


@pytest.mark.parametrize("host", [*LOCAL, *NETWORK])
def test_where_serve_may_listen(host: str) -> None:
    """Everywhere with keys, or where a setting says so in words; else only where no other machine gets."""
    check_host(LatticeSettings(api_keys=KEYS), host)  # type: ignore[arg-type]
    check_host(LatticeSettings(allow_unauthenticated_network_access=True), host)
    if host in LOCAL:
        check_host(LatticeSettings(), host)
        return
    with pytest.raises(InvalidRequestError) as refused:
        check_host(LatticeSettings(), host)
    for word in (
        "http_options.host",
        "api_keys",
        "lattice key",
        "allow_unauthenticated_network_access",
    ):
        assert word in str(refused.value)


class OwnService(ScriptedService):
    """Lives in the app's process."""

    def initialize(self) -> None: ...

    def cleanup(self) -> None: ...


async def codes(address: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[int]:
    """What requests get that come in at `address` of an app that made its orchestrator itself."""
    monkeypatch.setattr(server, "_build", lambda *args: OwnService())
    monkeypatch.setattr(SignalHandlers, "install", lambda self: False)
    app = create_app(settings=LatticeSettings(**{"allowed_hosts": ("*",), **settings}))
    try:
        transport = httpx.ASGITransport(app)
        # The transport takes the host of the address for where the request came in.
        async with httpx.AsyncClient(
            transport=transport, base_url=f"http://{address}:8000"
        ) as client:
            headers = {"authorization": f"Bearer {KEY}"}
            paths = ("/healthz", "/runs", "/docs", "/metrics?x=/healthz", "/healthz/")
            return [(await client.get(path, headers=headers)).status_code for path in paths]
    finally:
        OrchestratorManager.cleanup()


@pytest.mark.parametrize("address", ["192.0.2.7", "[2001:db8::1]", "[::ffff:192.0.2.7]"])
async def test_what_comes_over_the_network_is_refused(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    assert await codes(address, monkeypatch) == [200, 403, 403, 403, 403]
    assert (await codes(address, monkeypatch, api_keys=KEYS))[:3] == [200, 200, 200]
    allowed = {"allow_unauthenticated_network_access": True}
    assert (await codes(address, monkeypatch, **allowed))[:3] == [200, 200, 200]


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "localhost", "unix"])
async def test_what_comes_from_this_machine_passes(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    assert (await codes(address, monkeypatch))[:3] == [200, 200, 200]
