"""The environment of this process, in which there may be credentials: where it can be read, and where it is needed.

What /proc/PID/environ shows is a part of the stack, in which the kernel has put the variables. Python and libc refer to
it, or have copies.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

_START, _END = 49, 50  # fields of /proc/PID/stat, from 0: env_start and env_end
_BEFORE: Final = bytes.__basicsize__ - 1
"""Where the bytes of a bytes object begin in it."""


def hide_environment() -> None:
    """Have /proc/PID/environ show nothing. This process, and what it starts, have their variables as before.

    Call it before there are threads.
    """
    for name, value in os.environb.items():
        with suppress(OSError, ValueError):  # what is no variable; it shows to nobody from now on
            os.putenv(name, value)  # libc makes a copy
    _clear_stack()


def forget_environment(is_needed: Callable[[str], bool]) -> None:
    """Drop all variables but those that are needed, and overwrite what they were."""
    libc = ctypes.CDLL(None)
    for variable in _of_libc(libc):
        ctypes.memset(variable, 0, len(ctypes.string_at(variable)))
    _clear_stack()
    libc.clearenv()
    for name in list(os.environ):
        value = os.environb[os.fsencode(name)]  # the object itself
        if is_needed(name):
            os.putenv(os.fsencode(name), value)
            continue
        del os.environ[name]
        if len(value) > 1:  # shorter ones are shared
            ctypes.memset(id(value) + _BEFORE, 0, len(value))


def _of_libc(libc: ctypes.CDLL) -> Iterator[int]:
    """Yield the addresses of the variables as libc has them."""
    variables = ctypes.POINTER(ctypes.c_void_p).in_dll(libc, "environ")
    place = 0
    while address := variables[place]:
        yield address
        place += 1


def _clear_stack() -> None:
    fields = Path("/proc/self/stat").read_bytes().rpartition(b") ")[2].split()
    start, end = (int(fields[number - 2]) for number in (_START, _END))  # those before ")" are not among them
    if 0 < start < end:
        ctypes.memset(start, 0, end - start)
