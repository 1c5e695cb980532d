"""Which system calls are refused in a sandbox, as a seccomp filter.

The namespaces take away what could be reached; the filter takes away calls that make new namespaces, look
into other processes, take memory that no process or folder is charged for, or are seldom used and often broken.
It is a list of what is refused: all else works.
"""

from __future__ import annotations

import struct

#: Numbers for x86_64 and aarch64.
_REFUSED = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "delete_module": (176, 106),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "msgget": (68, 186),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "personality": (135, 92),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "semget": (64, 190),
    "setns": (308, 268),
    "shmget": (29, 194),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_MACHINES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_CLONE, _SOCKET, _MMAP, _CLONE3 = (56, 220), (41, 198), (9, 222), 435
#: Flags of `mmap`. With both, the pages stay when the process lets go of them, and are in no folder.
_SHARED, _ANONYMOUS = 0x01, 0x20
#: Flags of `clone` that make a namespace.
_NAMESPACES = 0x7E020000
#: Unix, IPv4 and IPv6, which end in namespaces. Others do not, such as those between a virtual machine and its host.
_FAMILIES = (1, 2, 10)
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _FOURTH_ARGUMENT = 0, 4, 16, 40


def program(machine: str) -> bytes | None:
    """The filter for a machine, as `uname` calls it; None for one whose numbers are not known here."""
    if machine not in _MACHINES:
        return None
    column = [*_MACHINES].index(machine)
    steps = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, _MACHINES[machine], yes=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if machine == "x86_64":
        # The same calls by other numbers.
        steps += [_step(_AT_LEAST, _X32, no=1), _step(_RETURN, _ERRNO | _EPERM)]
    for numbers in _REFUSED.values():
        steps += [_step(_EQUAL, numbers[column], no=1), _step(_RETURN, _ERRNO | _EPERM)]
    # Its flags lie in memory, where a filter does not see them. The C library then takes `clone`.
    steps += [_step(_EQUAL, _CLONE3, no=1), _step(_RETURN, _ERRNO | _ENOSYS)]
    steps += [
        _step(_EQUAL, _CLONE[column], no=4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _NAMESPACES, no=1),
        _step(_RETURN, _ERRNO | _EPERM),
        _step(_RETURN, _ALLOW),
    ]
    steps += [
        _step(_EQUAL, _MMAP[column], no=5),
        _step(_LOAD, _FOURTH_ARGUMENT),
        _step(_ANY_BIT, _ANONYMOUS, no=2),
        _step(_ANY_BIT, _SHARED, no=1),
        _step(_RETURN, _ERRNO | _EPERM),
        _step(_RETURN, _ALLOW),
    ]
    steps += [_step(_EQUAL, _SOCKET[column], no=len(_FAMILIES) + 2), _step(_LOAD, _FIRST_ARGUMENT)]
    left = len(_FAMILIES)
    for family in _FAMILIES:
        steps.append(_step(_EQUAL, family, yes=left))
        left -= 1
    steps += [_step(_RETURN, _ERRNO | _EAFNOSUPPORT), _step(_RETURN, _ALLOW)]
    return b"".join(steps)


def _step(code: int, operand: int, *, yes: int = 0, no: int = 0) -> bytes:
    """An instruction; `yes` and `no` are how many are skipped after a comparison."""
    return struct.pack("=HBBI", code, yes, no, operand)
