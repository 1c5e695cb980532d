"""The way into the SDK."""

from __future__ import annotations

from lattice.client.runs import Run, attach
from lattice.client.service import Service, checked_url
from lattice.client.transport import HttpTransport, Transport
from lattice.client.workflow import Workflow

#: Where a service listens unless told otherwise.
DEFAULT_URL = "http://127.0.0.1:8000"


class LatticeClient:
    """Builds workflows and runs them on the service at `url`. May be used from any thread.

    `timeout` is in seconds, for each request with its repetitions; how long a run may take is said where
    it is waited for. `api_key` is by default what the environment variable LATTICE_API_KEY holds, if anything.
    `transport` replaces HTTP, for tests. Connections are closed by `close`, or at the
    end of a `with` block.

    Raises:
        InvalidRequestError: `url` is no HTTP address, or the key cannot be one.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        timeout: float = 30.0,
        *,
        api_key: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        url = checked_url(url)
        self._service = Service(url, timeout, transport or HttpTransport(url), api_key=api_key)

    @property
    def url(self) -> str:
        """The service's address."""
        return self._service.url

    @property
    def service(self) -> Service:
        """The service's endpoints, a method each, for tools such as the command `lattice`."""
        return self._service

    def create_workflow(self, name: str | None = None) -> Workflow:
        """An empty workflow. Nothing is sent before it is run; `name` is for people."""
        return Workflow(self._service, name)

    def run(self, run_id: str) -> Run:
        """A run that was started before, here or elsewhere. Raises ServiceError (404) if there is none."""
        return attach(self._service, run_id)

    def close(self) -> None:
        """Closes connections."""
        self._service.close()

    def __enter__(self) -> LatticeClient:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LatticeClient({self.url!r})"
