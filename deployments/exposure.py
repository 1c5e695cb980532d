"""Where Serve listens, and whether the service may be reached from there."""

from __future__ import annotations

from ray.serve.context import _get_global_client

from lattice.api.exposure import check_host
from lattice.settings import LatticeSettings


def check_exposure(settings: LatticeSettings) -> None:
    """Lets a service without API keys start only where no other machine reaches it, or a setting allows it.

    Serve tells no application where it listens, but its controller knows (`http_options` of the configuration,
    or of whoever started Serve first).

    Raises:
        InvalidRequestError: the service would run code for whoever is in the network.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    # Without Serve, or without HTTP, nobody listens.
    host = None if client is None else client.http_config.host
    if host is not None:
        check_host(settings, host)
