"""A real PostgreSQL server for the suites that need one, started from the installed binaries."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_names = itertools.count(1)


def _binaries() -> Path | None:
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


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Path]:
    """The folder of the socket of a server that trusts everybody who can reach it."""
    pytest.importorskip("psycopg", reason="the extra `postgres` is not installed")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL server is installed (initdb, postgres)")
    user = _server_user()
    # A socket's path is limited to about 100 bytes, so the folder of the test session will not do.
    folder = Path(tempfile.mkdtemp(prefix="lattice-pg-"))
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)

    def server_program(name: str, *arguments: str) -> None:
        subprocess.run(
            [binaries / name, *arguments],
            check=True,
            cwd=folder,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )

    data = str(folder / "data")
    # Without TCP no port can clash. Tests do not cut the power, so they need no fsync.
    options = f"-c listen_addresses='' -c unix_socket_directories='{folder}' -c fsync=off"
    try:
        server_program("initdb", "-D", data, "-U", "lattice", "-A", "trust", "-E", "UTF8", "-N")
        server_program("pg_ctl", "start", "-D", data, "-l", f"{data}/log", "-o", options, "-w")
        try:
            yield folder
        finally:
            server_program("pg_ctl", "stop", "-D", data, "-m", "immediate", "-w")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
def postgresql_url(postgresql_server: Path) -> Iterator[str]:
    """The URL of a new, empty database."""
    import psycopg

    name = f"lattice_{next(_names)}"
    maintenance = f"host={postgresql_server} user=lattice dbname=postgres"
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield f"postgresql+psycopg://lattice@/{name}?host={postgresql_server}"
        # By force: a connection that a test left open would be found as a leak, not here.
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
