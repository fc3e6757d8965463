"""What a confined process can still do, tried out in a process of its own, and by what that starts."""

import json
import platform
import re
import subprocess
import sys
from typing import Any

import pytest

from secretfs.linux.system_calls import REFUSED
from tests.support.command import ROOT, environment, in_namespace, run
from tests.support.seccomp import filtered

CONFINED = """
import ctypes, json, os, platform, subprocess, sys, threading
from secretfs.linux.confinement import confine, protections
from secretfs.linux.system_calls import REFUSED

if "confined" in sys.argv:
    confine({1, 14})
column = ("x86_64", "aarch64").index(platform.machine())
libc, found = ctypes.CDLL(None, use_errno=True), {}

def attempt():
    for name, numbers in REFUSED.items():
        found[name] = ctypes.get_errno() if libc.syscall(numbers[column], *[ctypes.c_long(-1)] * 6) else 0

thread = threading.Thread(target=attempt)
thread.start()
thread.join()
status = subprocess.run(["cat", "/proc/self/status"], capture_output=True, text=True).stdout
fields = dict(line.split(":\\t", 1) for line in status.splitlines())
print(json.dumps({
    "errnos": found,
    "child": [fields[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs")],
    "holds": {one.name: one.holds for one in protections()},
}))
"""


def tried(*arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", CONFINED, *arguments], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.root("another user has no rights to give up")
def test_what_it_gives_up_is_gone_also_for_its_threads_and_programs() -> None:
    confined, free = tried("confined"), tried()
    assert confined["child"] == ["0000000000004002"] * 3 + ["0" * 16] * 2 + ["1"]
    assert int(free["child"][0], 16) & 1 << 21  # CAP_SYS_ADMIN: what it is compared with
    assert {name: code for name, code in confined["errnos"].items() if code != 1} == {}
    assert 1 not in free["errnos"].values()
    for name in ("rights", "no_new_privileges", "system_calls", "files"):
        assert confined["holds"][name] is True
        assert free["holds"][name] is False


@pytest.mark.root("another user has no rights to give up")
def test_where_it_cannot_give_up_rights_it_gives_up_the_rest() -> None:
    """SystemCallFilter=~@privileged refuses the call that does it."""
    command = filtered("capset", "EPERM", sys.executable, "-c", CONFINED, "confined")
    done = run(command, env=environment(), cwd=ROOT)
    assert done.err == "this process keeps rights that it does not need: Operation not permitted\n"
    holds = json.loads(done.out)["holds"]
    assert [holds[name] for name in ("rights", "no_new_privileges", "system_calls", "files")] == [
        False,
        True,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("ENOSYS", ""),  # before Linux 5.13, or without CONFIG_SECURITY_LANDLOCK
        ("EOPNOTSUPP", ""),  # lsm= of the kernel's command line does not name it
        ("kill", ""),  # SystemCallFilter=@system-service of systemd 252
        ("EPERM", "this process keeps rights that it does not need: Operation not permitted\n"),
    ],
)
@pytest.mark.root("another user has no rights to give up")
def test_where_there_is_no_landlock_it_gives_up_the_rest(answer: str, said: str) -> None:
    command = filtered("landlock_create_ruleset", answer, sys.executable, "-c", CONFINED, "confined")
    done = run(command, env=environment(), cwd=ROOT)
    assert (done.status, done.err) == (0, said)
    holds = json.loads(done.out)["holds"]
    assert [holds[name] for name in ("rights", "no_new_privileges", "system_calls", "files")] == [
        True,
        True,
        True,
        False,
    ]


@pytest.mark.parametrize(
    ("keep", "written", "files"),
    [
        ("1, 14", "/run/a", "True: it may write to no directory of the system, nor look into other processes"),
        ("1, 19", "/run/a", "False: with an audit log it has to look into other processes"),
        ("1, 14", "/", "False: it may write to all directories: an option names a file in /"),
    ],
)
def test_what_is_said_of_files(keep: str, written: str, files: str) -> None:
    code = f"""
from pathlib import Path
from secretfs.linux.confinement import confine, protections
confine({{{keep}}}, [Path("{written}")])
print(*(f"{{one.holds}}: {{one.how}}" for one in protections() if one.name == "files"))
"""
    done = run([sys.executable, "-c", code], env=environment())
    assert (done.out, done.err) == (f"{files}\n", "")


def test_a_user_is_confined_as_well() -> None:
    done = in_namespace(f"""
        cat > confined.py <<-'END'
{CONFINED}
END
        as_nobody /mnt/python/bin/python confined.py confined
    """)
    assert (done.status, done.err) == (0, "")
    found = json.loads(done.out)
    assert found["child"][0] == "0" * 16
    assert found["child"][-1] == "1"
    assert set(found["errnos"].values()) == {1}


def test_the_numbers_are_those_of_the_kernel() -> None:
    """The headers of this machine say so; the other column is that of asm-generic, which all machines have."""
    own = "asm/unistd_64.h" if platform.machine() == "x86_64" else "asm-generic/unistd.h"
    for column, header in ((0, own), (1, "asm-generic/unistd.h"))[platform.machine() != "x86_64" :]:
        code = f"#include <{header}>\n" + "".join(f"{name} __NR_{name}\n" for name in REFUSED)
        done = subprocess.run(["cc", "-E", "-P", "-"], input=code, capture_output=True, text=True, check=True)
        numbers = dict(re.findall(r"^(\w+) (\d+)$", done.stdout, re.MULTILINE))
        assert numbers == {name: str(numbers[column]) for name, numbers in REFUSED.items()}


@pytest.mark.parametrize(
    ("machine", "unknown"),
    [
        ('platform.machine = lambda: "riscv64"', "riscv64"),
        ("sys.maxsize = 2**31 - 1", "programs for 32 bits"),  # as on a Raspberry Pi, whose kernel has 64
    ],
)
def test_a_machine_whose_numbers_are_not_known(machine: str, unknown: str) -> None:
    """It serves, and says what is lacking."""
    code = f"""
import logging, platform, sys
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
{machine}
from secretfs.linux.confinement import confine, protections
confine(())
print(*(one.how for one in protections() if not one.holds and one.name == "system_calls"))
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=True)
    unknown = f"the numbers of system calls are not known for {unknown}"
    assert done.stdout.splitlines() == [
        f"WARNING this process keeps rights that it does not need: {unknown}",
        "it filters no system calls",
    ]
