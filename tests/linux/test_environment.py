"""Variables that no file of /proc shows any more, and that a process has all the same, or not at all."""

import sys

from tests.support.canary import secret
from tests.support.command import environment, run

HIDDEN = """
import ctypes, os, subprocess
from pathlib import Path
from secretfs.linux.environment import hide_environment

before = dict(os.environb)
for _ in range(2):
    hide_environment()
    print(Path("/proc/self/environ").read_bytes().strip(b"\\0"))
    print(dict(os.environb) == before)
    printed = subprocess.run(["printenv", "TOKEN", "EMPTY", "NOT_UTF_8"], capture_output=True).stdout
    print(printed == b"%b\\n\\n\\xff\\n")
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_char_p
print(libc.getenv(b"TOKEN") == before[b"TOKEN"])
os.environ["TOKEN"] = "other"
print(subprocess.run(["printenv", "TOKEN"], capture_output=True).stdout)
"""


def test_what_is_hidden_is_there() -> None:
    """For Python, libc and programs: also what is empty, and what is no text."""
    token = secret("token")
    script = HIDDEN.replace("%b", token)
    env = environment({"TOKEN": token, "EMPTY": "", "NOT_UTF_8": "\udcff"})
    done = run([sys.executable, "-c", script], env=env)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [*["b''", "True", "True"] * 2, "True", "b'other\\n'"]


def test_a_name_that_is_none() -> None:
    """Another program may start us with anything, which then shows to nobody either."""
    code = "from secretfs.linux.environment import *; hide_environment(); print(open('/proc/self/environ').read(1))"
    path = environment()["PYTHONPATH"]
    script = f"""
import os
os.environb.clear()
import ctypes
arguments = (ctypes.c_char_p * 4)({sys.executable!r}.encode(), b"-c", {code!r}.encode(), None)
variables = (ctypes.c_char_p * 5)(b"PYTHONPATH={path}", b"no variable", b"=empty", b"A=1", None)
ctypes.CDLL(None).execve(arguments[0], arguments, variables)
"""
    done = run([sys.executable, "-c", script], env=environment())
    assert (done.status, done.out, done.err) == (0, "\0\n", "")


FORGOTTEN = """
import os, re, subprocess
from pathlib import Path
from secretfs.linux.environment import forget_environment, hide_environment

if os.fork() == 0:
    if {hidden}:
        hide_environment()
    forget_environment(lambda name: name == "KEPT")
    found = 0
    with open("/proc/self/mem", "rb", 0) as memory:
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, rights, _, _, _, *name = line.split()
            if "rw" in rights and name != ["[vvar]"]:
                start, end = (int(each, 16) for each in place.split("-"))
                memory.seek(start)
                found += len(re.findall(rb"token-o[f]-somebody", memory.read(end - start)))
    print(found, dict(os.environ), Path("/proc/self/environ").read_bytes().strip(b"\\0"))
    print(subprocess.run(["/usr/bin/env"], capture_output=True).stdout, flush=True)
    os._exit(0)
os.wait()
"""


def test_what_is_forgotten_is_nowhere() -> None:
    """Whether libc has it where the kernel has put it, or has a copy."""
    env = environment({"TOKEN": "token-of-somebody", "OTHER": "token-of-somebody", "KEPT": "1", "X": "1"})
    for hidden in (True, False):
        done = run([sys.executable, "-c", FORGOTTEN.format(hidden=hidden)], env=env)
        assert (done.status, done.err) == (0, "")
        assert done.out == "0 {'KEPT': '1'} b''\nb'KEPT=1\\n'\n"
