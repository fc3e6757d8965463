"""A user who floods a mount, and another one who reads."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.app_host import BILLING, ORDERS, Host, host
from tests.support.audited import AuditFile
from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import wait_until

__all__ = ["file", "host"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

THREADS = 200
FILES = 2000
OPEN_FILES = 8000
KILLED = ["does not answer: it is killed", "ended .it did not answer"]
"""What the log has if this machine is so slow that the watchdog takes a process that is stopped for a dead one."""

OPEN = """
import os, sys, threading

file = os.open(sys.argv[1], os.O_PATH)
go = threading.Event()

def read():
    go.wait()
    os.close(os.open(f"/proc/self/fd/{file}", os.O_RDONLY))

threads = [threading.Thread(target=read) for _ in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
os.close(os.open(f"/proc/self/fd/{file}", os.O_RDONLY))
print("ready", flush=True)
sys.stdin.readline()
go.set()
for thread in threads:
    thread.join()
"""
"""Opens a file, which it knows already, with so many threads at once, when it is told to."""

FLOOD = """
import os, resource, select, sys

directory, files, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
_, most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
held = [os.open(f"{directory}/key-{number % 2000}", os.O_RDONLY) for number in range(files)]
poll = select.poll()
for descriptor in held[:100]:
    poll.register(descriptor, select.POLLPRI)
print("ready", flush=True)
while True:
    os.listdir(directory) if kind == "list" else poll.poll(0)
"""
"""Holds many files open, and lists a directory or polls the files for ever."""


READ = """
import json, pathlib, sys

print("ready", flush=True)
print(json.dumps([pathlib.Path(sys.argv[1], name).read_text() for name in sys.argv[2:]]))
"""
"""Reads files."""


@contextmanager
def program(user: int, script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run a program of a user, from when it is ready."""
    identity = ["setpriv", "--reuid", str(user), "--regid", str(user), "--clear-groups"]
    command = [*identity, sys.executable, "-c", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go(process: subprocess.Popen[str]) -> None:
    """Tell a program to open its file, and wait until all its threads but the first are at it."""
    assert process.stdin is not None
    print(file=process.stdin, flush=True)
    tasks = [task for task in Path(f"/proc/{process.pid}/task").iterdir() if task.name != str(process.pid)]
    opening = re.compile(r"257 ")  # openat(2)
    wait_until(lambda: all(opening.match((task / "syscall").read_text("ascii")) for task in tasks))


def test_who_asks_little_comes_first(host: Host, tmp_path: Path) -> None:
    """app-21: Apps, and users of a mount without apps, take turns: who asks little does not wait for who asks much."""
    log = AuditFile(tmp_path / "log")
    options = [*host.options, "--audit=strict", f"--audit-to={log.path}"]
    with mounted(host.components, options=options, mountpoint=host.mountpoint, expect_log=KILLED) as mount:
        own, other = mount.path / "orders/file/db/password", mount.path / "billing/file/db/password"
        with program(BILLING, OPEN, other, THREADS) as many, program(ORDERS, OPEN, own, 1) as one:
            before = len(log.of("open"))
            worker = mount.worker
            os.kill(worker, signal.SIGSTOP)
            go(many)
            go(one)
            os.kill(worker, signal.SIGCONT)
            assert many.wait() == one.wait() == 0
        after = [record["app"] for record in log.of("open")[before:]]
        assert sorted(after) == ["billing"] * THREADS + ["orders"]
        assert after.index("orders") < 10  # it came last


def test_floods_and_many_open_files(host: Host, file: SecretsFile) -> None:
    """While one user holds 8,000 files open, lists and polls, another one reads what is known and what is not.

    An open file costs the daemon less than 1 KB (app-21).
    """
    names = {f"key-{number}": secret(str(number)) for number in range(FILES)}
    file.write(names)
    component(host.components, "file", "local.file", {"secretsFile": file.path}, annotations={"secretfs/ttl": "1h"})
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    each = min(most - 100, OPEN_FILES // 4)
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint) as mount, ExitStack() as programs:
        (mount.path / "billing/file/key-0").read_bytes()
        before = resident(mount)
        directory = mount.path / "billing/file"
        for number, first in enumerate(range(0, OPEN_FILES, each)):
            files, kind = min(each, OPEN_FILES - first), "poll" if number % 2 else "list"
            programs.enter_context(program(BILLING, FLOOD, directory, files, kind))
        known, *others = list(names)[:50]
        with program(ORDERS, READ, mount.path / "orders/file", known, *others, known) as reader:
            told = json.loads(reader.communicate()[0])
        assert told == [names[name] for name in (known, *others, known)]
        assert resident(mount) < before + OPEN_FILES * 1000


def resident(mount: Mounted) -> int:
    """Return the memory of the process that serves, in bytes."""
    pages = Path(f"/proc/{mount.worker}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()
