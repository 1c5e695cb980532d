"""Where OTLP exporters send to."""

from __future__ import annotations

from urllib.parse import urlsplit

from lattice.errors import InvalidRequestError


def endpoint_of(setting: str, endpoint: str | None, exporter: str, path: str) -> str | None:
    """The URL for an exporter; `otlp_http` gets `path` where the URL has none. None stays None.

    Raises:
        InvalidRequestError: `endpoint`, which the setting gives, is not a URL.
    """
    if endpoint is None:
        return None
    url = urlsplit(endpoint)
    if url.scheme not in ("http", "https") or not url.netloc:
        raise InvalidRequestError(setting, repr(endpoint), "an http:// or https:// URL is allowed")
    if exporter == "otlp_http" and url.path in ("", "/"):
        return url._replace(path=path).geturl()
    return endpoint
