"""Run a command under a filter of system calls, as SystemCallFilter= of a unit or the filter of a container is.

python -m tests.support.seccomp CALL kill|EPERM|ENOSYS|EOPNOTSUPP COMMAND...
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from pathlib import Path
from typing import Final, NoReturn

_NUMBERS: Final = {
    "capset": {"x86_64": 126, "aarch64": 91},
    "fanotify_init": {"x86_64": 300, "aarch64": 262},
    "landlock_create_ruleset": {"x86_64": 444, "aarch64": 444},
    "mount_setattr": {"x86_64": 442, "aarch64": 442},
}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000  # linux/seccomp.h
_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS, _MODE_FILTER = 22, 38, 2
_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # linux/filter.h


def filtered(call: str, answer: str, *command: str | Path) -> list[str]:
    """Return the command that runs a command so that a system call ends with an errno, or kills who makes it."""
    return [sys.executable, "-m", "tests.support.seccomp", call, answer, *map(str, command)]


def main(call: str, answer: str, *command: str) -> NoReturn:
    number = _NUMBERS[call][platform.machine()]
    action = _KILL if answer == "kill" else _ERRNO | getattr(errno, answer)
    steps = [(_LOAD, 0, 0, 0), (_JUMP_IF_EQUAL, 0, 1, number), (_RETURN, 0, 0, action), (_RETURN, 0, 0, _ALLOW)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    header = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    for option, argument, pointer in ((_PR_SET_NO_NEW_PRIVS, 1, None), (_PR_SET_SECCOMP, _MODE_FILTER, header)):
        if libc.prctl(option, argument, pointer, 0, 0) != 0:
            sys.exit(os.strerror(ctypes.get_errno()))
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
