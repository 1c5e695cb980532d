"""The inside of a sandbox: namespaces, a root of its own, limits, and no privileges. Each step is one way.

Nothing of the machine is there but what is put there: programs, libraries and Python itself, all read-only, a
few devices, and a scratch folder. So what is not named here needs no hiding: the data of the service, home
folders, sockets of the engine.

A worker that runs as root gives each sandbox a user of its own that owns nothing. Another worker makes a
user namespace, in which its own user has no power over anything outside.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

from lattice.execution.sandbox import calls, kernel
from lattice.workflow.sandbox import Sandbox

#: The only folder that can be written.
SCRATCH = "/scratch"
_MIB = 1024 * 1024
#: Address space that Python itself takes, in bytes.
_PYTHON = 512 * _MIB
MAX_FILES = 256
#: Where a tmpfs is put before it becomes the root; what is there is seen by nobody meanwhile.
_BASE = "/tmp"
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_SETTINGS = (
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/localtime",
    "/etc/mime.types",
    "/etc/ssl/certs",
)
#: Not `zero`: mapped, it gives shared memory that no limit counts.
_DEVICES = ("null", "full", "random", "urandom")
_LATTICE = str(Path(__file__).absolute().parents[2])
#: Users that no machine gives out; the one of a sandbox is this and the process id that made it.
_FIRST_USER = 1_800_000_000


def python_folders() -> dict[str, str]:
    """The folders of Python, of its packages, and of this package, each with where it really is."""
    prefixes = {os.path.abspath(each) for each in (sys.prefix, sys.base_prefix, sys.exec_prefix)}
    packages = {
        os.path.abspath(each)
        for each in sys.path
        if os.path.basename(each) in ("site-packages", "dist-packages")
    }
    named = {each for each in prefixes | packages if os.path.isdir(each)}
    named.add(_LATTICE)
    # A virtual environment may be reached through a link, and finds itself by both names.
    named |= set(map(os.path.realpath, named))
    if "/" in named:
        raise OSError("Python is installed in /, which cannot be shown without all else")
    found: dict[str, str] = {}
    for each in sorted(named):
        if not any(each.startswith(f"{above}/") for above in (*found, *_SYSTEM)):
            found[each] = os.path.realpath(each)
    return found


def isolate() -> None:
    """New namespaces for this process, and for its children also of processes. Raises OSError."""
    flags = kernel.NEWNS | kernel.NEWPID | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS
    # First to go where memory is short.
    Path("/proc/self/oom_score_adj").write_text("1000")
    if os.geteuid() == 0:
        kernel.unshare(flags | kernel.NEWCGROUP)
    else:
        kernel.unshare(flags | kernel.NEWCGROUP | kernel.NEWUSER)
        kernel.map_itself()


def build_root(folders: Mapping[str, str], sandbox: Sandbox, user: int) -> None:
    """Makes a new root, in which `folders` are found where they really are, and enters it. Raises OSError."""
    kernel.make_private()
    kernel.mount_tmpfs(_BASE, "mode=755,size=1m")
    os.mkdir(f"{_BASE}/old")
    kernel.pivot_root(_BASE, f"{_BASE}/old")
    os.chdir("/")
    os.umask(0o022)
    os.mkdir(SCRATCH)
    kernel.mount_tmpfs(
        SCRATCH, f"mode=700,size={sandbox.scratch}m,nr_inodes=100k,uid={user},gid={user}"
    )
    # Before the folders of Python: the engine makes environments below /tmp.
    os.symlink(SCRATCH, "/tmp")
    for path in _SYSTEM:
        if os.path.islink(f"/old{path}"):
            os.symlink(os.readlink(f"/old{path}"), path)
        elif os.path.isdir(f"/old{path}"):
            _show(path, path)
    for path, real in {**{path: path for path in _SETTINGS}, **folders}.items():
        if os.path.exists(f"/old{real}"):
            _show(path, real)
    Path("/etc").mkdir(exist_ok=True)
    Path("/etc/passwd").write_text(f"sandbox:x:{user}:{user}::{SCRATCH}:/bin/sh\n")
    Path("/etc/group").write_text(f"sandbox:x:{user}:\n")
    _make_devices()
    os.mkdir("/proc")
    # In some containers the kernel does not allow it. Most code does without.
    with contextlib.suppress(OSError):
        kernel.mount_proc("/proc")
    kernel.detach("/old")
    os.rmdir("/old")
    kernel.make_readonly("/", recursive=False)
    os.chdir(SCRATCH)


def _show(path: str, real: str) -> None:
    source = f"/old{real}"
    os.makedirs(path if os.path.isdir(source) else os.path.dirname(path), exist_ok=True)
    if not os.path.isdir(source):
        Path(path).touch()
    kernel.bind(source, path)
    kernel.make_readonly(path)


def _make_devices() -> None:
    os.mkdir("/dev")
    for name in _DEVICES:
        Path(f"/dev/{name}").touch()
        kernel.bind(f"/old/dev/{name}", f"/dev/{name}")
    # Shared memory counts as scratch.
    os.symlink(SCRATCH, "/dev/shm")
    os.symlink("/proc/self/fd", "/dev/fd")


def user_of(process: int) -> int:
    """Who runs in the sandbox that `process` makes."""
    return _FIRST_USER + process if os.geteuid() == 0 else os.geteuid()


def confine(sandbox: Sandbox, user: int) -> None:
    """Sets limits and gives up all privileges. Raises OSError."""
    kernel.hostname("sandbox")
    memory = sandbox.memory * _MIB + _PYTHON
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_CPU, sandbox.cpu_seconds),
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, sandbox.scratch * _MIB),
        (resource.RLIMIT_NOFILE, MAX_FILES),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        # The one that reaps counts too.
        (resource.RLIMIT_NPROC, sandbox.processes + 1),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    kernel.drop_bounding_set()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    kernel.drop_capabilities()
    kernel.gain_no_privileges()
    filter_program = calls.program(kernel.MACHINE)
    if filter_program is None:
        raise OSError(f"the system calls of {kernel.MACHINE} are not known here")
    kernel.filter_calls(filter_program)
