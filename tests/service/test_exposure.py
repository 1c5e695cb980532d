"""Where the real service may listen: on an address of the network only with keys (`test_keys.py`)."""

from __future__ import annotations

import ipaddress
from contextlib import suppress

import httpx
import psutil

from tests.running import Service, running_service, wait_for


def test_without_keys_it_does_not_start_where_others_reach_it() -> None:
    """It says what to do, and answers nobody."""
    with running_service(host="0.0.0.0", wait=False) as service:
        said = "http_options.host: found '0.0.0.0' without API keys"
        wait_for("the refusal", lambda: said in service.log.read_text())
        assert "allow_unauthenticated_network_access: true" in service.log.read_text()
        for path in ("/healthz", "/runs", "/docs"):
            try:
                assert httpx.get(f"{service.url}{path}", timeout=5).status_code >= 404
            except httpx.HTTPError:
                continue


def listeners(service: Service) -> set[tuple[str, int]]:
    """Where the service's processes listen."""
    found = set()
    for process in service.processes():
        # One that has ended meanwhile listens nowhere.
        with suppress(psutil.NoSuchProcess):
            found |= {
                (each.laddr.ip, each.laddr.port)
                for each in process.net_connections("tcp")
                if each.status == psutil.CONN_LISTEN
            }
    return found


def test_by_default_no_port_of_it_leads_from_the_network_to_the_service(service: Service) -> None:
    """Whatever the engine opens beside the service's own port, which is on loopback."""
    port = int(service.url.rpartition(":")[2])
    # HAProxy replaces itself soon after the start, and which process listens changes meanwhile.
    listening = wait_for(
        "the service's own port",
        lambda: found if ("127.0.0.1", port) in (found := listeners(service)) else None,
    )
    others = {place for place in listening if not ipaddress.ip_address(place[0]).is_loopback}
    assert others, "the engine's own are among them"
    for address, port in others:
        host = "127.0.0.1" if address in ("0.0.0.0", "::") else address
        try:
            answer = httpx.get(f"http://{host}:{port}/openapi.json", timeout=5)
        except httpx.HTTPError:
            continue
        assert "Lattice" not in answer.text, (address, port)
