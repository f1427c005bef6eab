"""The system calls that a sandbox refuses, as the filter program that `bwrap --seccomp` takes."""

from __future__ import annotations

import errno
import platform
import struct

from unmask.errors import UserError

# Names and numbers on x86_64 and on aarch64, from the kernel's headers asm/unistd_64.h and asm-generic/unistd.h.
_ABSENT = -1
_REFUSED = {
    "fork": (57, _ABSENT),
    "vfork": (58, _ABSENT),
    "clone": (56, 220),
    "clone3": (435, 435),
    "unshare": (272, 97),
    "setns": (308, 268),
    "ptrace": (101, 117),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "io_uring_setup": (425, 425),
    "bpf": (321, 280),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
}
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # which number, AUDIT_ARCH_*

# An instruction is (code, instructions to skip if true, if false, operand).
_LOAD, _RETURN, _IF_EQUAL, _IF_AT_LEAST = 0x20, 0x06, 0x15, 0x35
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000
_OTHER_CALLS = 0x40000000  # x32: the same calls under other numbers


def seccomp_filter(machine: str | None = None) -> bytes:
    """A classic BPF filter: refused calls fail with EPERM, others pass. Raises UserError for an unknown processor."""
    machine = machine or platform.machine()
    if machine not in _ARCHITECTURES:
        raise UserError(f"code cannot be run on {machine} processors; use one of {', '.join(_ARCHITECTURES)}")
    column, architecture = _ARCHITECTURES[machine]
    numbers = [row[column] for row in _REFUSED.values() if row[column] != _ABSENT]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, architecture),  # 32-bit calls have numbers of their own
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, 0, 1, _OTHER_CALLS),
        (_RETURN, 0, 0, _REFUSE),
    ]
    for number in numbers:
        program += [(_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    program.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
