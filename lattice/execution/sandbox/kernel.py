"""System calls that Python 3.11 does not have: namespaces, mounts, capabilities."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = (
    0x00020000,
    0x02000000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_RDONLY = 2, 4, 8, 1
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_RECURSIVE = 0x8000
_MNT_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_MOUNT_SETATTR = 442
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
_CAPABILITY_VERSION = 0x20080522
_SIGKILL = 9
_EINVAL = 22

_libc = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def check(result: int, what: str) -> None:
    """Raises OSError, with `what` was tried, for the result of a failed call."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Puts this process, and for process ids its children, into namespaces of their own."""
    check(_libc.unshare(flags), "unshare")


def map_itself() -> None:
    """In a new user namespace, this process's user and group are what they were, and there are no others."""
    uid, gid = _ids_before
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text)


_ids_before = os.geteuid(), os.getegid()


def _mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    check(
        _libc.mount(
            source.encode(),
            target.encode(),
            kind and kind.encode(),
            ctypes.c_ulong(flags),
            data and data.encode(),
        ),
        f"mount {target}",
    )


def make_private() -> None:
    """What is mounted from now on is mounted in this namespace only, and nothing comes in."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)


def mount_tmpfs(target: str, options: str) -> None:
    """An empty file system in memory."""
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID | _MS_NODEV, options)


def mount_proc(target: str) -> None:
    """The processes of this namespace; nothing in it can be written."""
    _mount("proc", target, "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC | _MS_RDONLY)


def bind(source: str, target: str) -> None:
    """The same files in another place, as they are."""
    _mount(source, target, None, _MS_BIND | _MS_REC)


def make_readonly(target: str, *, recursive: bool = True) -> None:
    """No writing, no set-user-id and no devices, on all that is mounted below too unless not `recursive`."""
    attributes = _MountAttr(_ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV, 0, 0, 0)
    result = _libc.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(-100),
        target.encode(),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.byref(attributes),
        ctypes.c_size_t(ctypes.sizeof(attributes)),
    )
    check(result, f"mount_setattr {target}")


def pivot_root(new: str, old: str) -> None:
    """`new` becomes the root, and the old one comes to lie at `old`."""
    number = ctypes.c_long(_PIVOT_ROOT[MACHINE])
    check(_libc.syscall(number, new.encode(), old.encode()), "pivot_root")


def detach(target: str) -> None:
    """Unmounts all of what is at `target`."""
    check(_libc.umount2(target.encode(), _MNT_DETACH), f"umount {target}")


def hostname(name: str) -> None:
    """What `uname` says."""
    check(_libc.sethostname(name.encode(), len(name)), "sethostname")


def die_with_parent() -> None:
    """The death of this process's parent kills it. Changing the user undoes it."""
    _prctl(_PR_SET_PDEATHSIG, _SIGKILL)


def set_dumpable(dumpable: bool) -> None:
    """Whether other processes of its user may look into this one, through `/proc` too.

    A process that changed its user needs it for its own `/proc/self`.
    """
    _prctl(_PR_SET_DUMPABLE, int(dumpable))


def gain_no_privileges() -> None:
    """No program that is started has more rights than this process."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def drop_bounding_set() -> None:
    """No program that is started gets a capability, whoever starts it."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) < 0:
            if ctypes.get_errno() == _EINVAL:  # beyond the last one that this kernel has
                return
            check(-1, "drop a capability")


def drop_capabilities() -> None:
    """This process has no capabilities any more."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0)
    none = (ctypes.c_uint32 * 6)()
    check(_libc.syscall(ctypes.c_long(_CAPSET[MACHINE]), header, none), "capset")


def filter_calls(program: bytes) -> None:
    """Has system calls looked at by a BPF program, for good."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    described = Program(len(program) // 8, ctypes.addressof(buffer))
    check(_libc.prctl(22, 2, ctypes.byref(described), 0, 0), "seccomp")


def _prctl(option: int, value: int) -> None:
    check(_libc.prctl(option, value, 0, 0, 0), f"prctl {option}")
