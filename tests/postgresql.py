"""A real PostgreSQL server of one's own, started from the installed binaries."""

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


@contextmanager
def server(*, fsync: bool) -> Iterator[Path]:
    """The folder of the socket of a server that trusts everybody who can reach it."""
    programs = binaries()
    assert programs is not None, "no PostgreSQL server is installed (initdb, postgres)"
    user = _server_user()
    # A socket's path is limited to about 100 bytes, so the folder of the test session will not do.
    folder = Path(tempfile.mkdtemp(prefix="lattice-pg-"))
    if user is not None:
        account = pwd.getpwnam(user)
        os.chown(folder, account.pw_uid, account.pw_gid)

    def server_program(name: str, *arguments: str) -> None:
        subprocess.run(
            [programs / name, *arguments],
            check=True,
            cwd=folder,
            user=user,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=120,
        )

    data = str(folder / "data")
    # Without TCP no port can clash.
    options = (
        f"-c listen_addresses='' -c unix_socket_directories='{folder}' "
        f"-c fsync={'on' if fsync else 'off'}"
    )
    try:
        server_program("initdb", "-D", data, "-U", "lattice", "-A", "trust", "-E", "UTF8", "-N")
        server_program("pg_ctl", "start", "-D", data, "-l", f"{data}/log", "-o", options, "-w")
        try:
            yield folder
        finally:
            server_program("pg_ctl", "stop", "-D", data, "-m", "immediate", "-w")
    finally:
        shutil.rmtree(folder)


@contextmanager
def new_database(folder: Path) -> Iterator[str]:
    """The URL of a new, empty database on the server whose socket is in `folder`."""
    import psycopg

    name = f"lattice_{next(_names)}"
    maintenance = f"host={folder} user=lattice dbname=postgres"
    with psycopg.connect(maintenance, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        yield f"postgresql+psycopg://lattice@/{name}?host={folder}"
        # By force: a connection that a test left open would be found as a leak, not here.
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
