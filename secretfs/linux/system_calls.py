"""A filter of system calls (seccomp) for a process that holds secrets, and for all that it starts.

What is refused is what nobody needs who asks a store, and what an attacker would begin with: to read or change another
process, to mount, to give the kernel code. The call ends with EPERM. All others are permitted: Python, the libraries
of the stores and the programs that they start make too many to list.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Collection
from typing import Final

REFUSED: Final = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "bpf": (321, 280),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "setns": (308, 268),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
"""System calls that are refused: their numbers on x86_64 and on aarch64 (asm/unistd_64.h, asm-generic/unistd.h)."""

_MACHINES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Column of `REFUSED`, and AUDIT_ARCH_* of linux/audit.h."""
_LARGEST_OF_32_BITS: Final = (1 << 31) - 1
_X32: Final = 0x40000000  # __X32_SYSCALL_BIT of asm/unistd.h: the same calls by other numbers
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2  # linux/prctl.h, linux/seccomp.h
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/filter.h
_NUMBER, _ARCHITECTURE = 0, 4  # offsets in struct seccomp_data
_STEP: Final = struct.Struct("=HBBI")


def filter_system_calls(permitted: Collection[str] = ()) -> None:
    """Have the kernel refuse `REFUSED` from now on, and all calls of programs for another architecture (32 bits).

    What is ``permitted`` is not refused.

    Takes no_new_privs; call it before there are threads. Raises OSError where the kernel has no filters, ENOSYS on a
    machine whose numbers are not known here, and in a program for 32 bits.
    """
    machine = platform.machine()
    if sys.maxsize <= _LARGEST_OF_32_BITS:  # the kernel may have 64: all our calls would be of another architecture
        machine = "programs for 32 bits"
    if machine not in _MACHINES:
        raise OSError(errno.ENOSYS, f"the numbers of system calls are not known for {machine}")
    column, architecture = _MACHINES[machine]
    steps = _program([numbers[column] for name, numbers in REFUSED.items() if name not in permitted], architecture)
    program = ctypes.create_string_buffer(b"".join(_STEP.pack(*step) for step in steps))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    # Not by seccomp(2): SystemCallFilter=@system-service of a unit kills who calls that.
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, header, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _program(refused: list[int], architecture: int) -> list[tuple[int, int, int, int]]:
    """Return the steps of the filter: code, how many to skip if true and if false, operand."""
    count = len(refused)
    return [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 0, count + 3, architecture),
        (_LOAD, 0, 0, _NUMBER),
        (_IF_AT_LEAST, count + 1, 0, _X32),
        *((_IF_EQUAL, count - place, 0, number) for place, number in enumerate(refused)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
