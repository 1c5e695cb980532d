"""A PostgreSQL server of a test's own, from the binaries that are installed."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_names = itertools.count(1)

#: Without TCP no port can clash.
_OPTIONS = "-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync={fsync}"


def binaries() -> Path | None:
    """The folder of the newest server's programs, which some systems keep off the PATH."""
    found = shutil.which("postgres")
    if found and (Path(found).resolve().parent / "initdb").exists():
        return Path(found).resolve().parent
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    return max(folders, key=lambda folder: float(folder.parent.name), default=None)


def _server_user() -> str | None:
    """The user to run the server as, which refuses to be run by root; None for this one."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


class PostgresqlServer:
    """A server that trusts everybody who can reach its socket, which is in `folder`."""

    def __init__(self, programs: Path, *, fsync: bool = False) -> None:
        # Tests do not cut the power, so they need no fsync; benchmarks do.
        self._fsync = "on" if fsync else "off"
        self._programs = programs
        self._user = _server_user()
        # A socket's path is limited to about 100 bytes, so the folder of the test session will not do.
        self.folder = Path(tempfile.mkdtemp(prefix="lattice-pg-"))
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        self._data = str(self.folder / "data")
        self._run("initdb", "-D", self._data, "-U", "lattice", "-A", "trust", "-E", "UTF8", "-N")

    def url(self, database: str) -> str:
        """The URL of a database, for the setting `store_url`."""
        return f"postgresql+psycopg://lattice@/{database}?host={self.folder}"

    def start(self) -> None:
        """Starts it, and waits until it answers."""
        options = _OPTIONS.format(folder=self.folder, fsync=self._fsync)
        log = f"{self._data}/log"
        self._run("pg_ctl", "start", "-D", self._data, "-l", log, "-o", options, "-w")

    def stop(self) -> None:
        """Ends it as a crash does: at once, and it recovers at its next start."""
        self._run("pg_ctl", "stop", "-D", self._data, "-m", "immediate", "-w")

    def remove(self) -> None:
        """Removes its files."""
        shutil.rmtree(self.folder)

    def _run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / name, *arguments],
            check=True,
            cwd=self.folder,
            user=self._user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )


@contextmanager
def server(*, fsync: bool) -> Iterator[PostgresqlServer]:
    """A server that runs meanwhile. There must be `binaries`."""
    programs = binaries()
    assert programs is not None
    found = PostgresqlServer(programs, fsync=fsync)
    try:
        found.start()
        try:
            yield found
        finally:
            found.stop()
    finally:
        found.remove()


@contextmanager
def new_database(found: PostgresqlServer) -> Iterator[str]:
    """The URL of a new, empty database, which is dropped at the end."""
    import psycopg

    name = f"lattice_{next(_names)}"
    maintenance = f"host={found.folder} user=lattice dbname=postgres"
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield found.url(name)
        # By force: a connection that a test left open would be found as a leak, not here.
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
