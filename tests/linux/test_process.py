"""What a process that holds secrets does about itself, looked at from outside and in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import background, environment, in_namespace
from tests.support.manifests import component

PROTECTED = """
import ctypes, logging, resource, sys, threading
logging.basicConfig(format="%(levelname)s %(message)s", stream=sys.stdout)
from secretfs.linux.process import protect_memory
protect_memory()
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print("core", resource.getrlimit(resource.RLIMIT_CORE))
print("dumpable", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print("locked", status["VmLck"].split()[0] != "0")
"""
MANY_THREADS = """
gate = threading.Event()
def wait():
    gate.wait()
def memory():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])
before = memory()
threads = [threading.Thread(target=wait) for _ in range(100)]
for thread in threads:
    thread.start()
print("grown by less than 20 MB", memory() - before < 20_000)
gate.set()
for thread in threads:
    thread.join()
"""

ARENAS = """
gate = threading.Barrier(8)
def allocate():
    kept = [bytearray(100_000) for _ in range(10)]  # by malloc(3), and not by mmap(2)
    gate.wait()
threads = [threading.Thread(target=allocate) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
def size(line):
    start, end = line.split()[0].split("-")
    return int(end, 16) - int(start, 16)
reserved = [line for line in open("/proc/self/maps") if "---p" in line and size(line) > 32 << 20]
print("arenas of threads", len(reserved))  # each has 64 MiB of addresses
"""


def protected(more: str = "") -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROTECTED + more], env=environment(), capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_no_core_dump_and_no_ptrace() -> None:
    assert protected()[:2] == ["core (0, 0)", "dumpable 0"]


@pytest.mark.root("only root may lock all its memory")
def test_root_locks_its_memory_and_threads_cost_no_whole_stacks() -> None:
    assert protected(MANY_THREADS)[2:] == ["locked True", "grown by less than 20 MB True"]


def test_threads_have_no_memory_of_their_own() -> None:
    assert protected(ARENAS)[-1] == "arenas of threads 0"


def as_nobody(limit: str, swaps: str) -> list[str]:
    done = in_namespace(f"""
        cat > protected.py <<-'END'
{PROTECTED}
block = bytearray(64 << 20)
print("works", len(block) >> 20)
END
        printf '{swaps}' > swaps
        mount --bind swaps /proc/swaps
        ulimit -l {limit}
        as_nobody /mnt/python/bin/python protected.py
    """)
    assert (done.status, done.err) == (0, "")
    return done.out.splitlines()


def test_a_user_with_a_small_limit_works_without_locked_memory() -> None:
    assert as_nobody("8192", r"Filename Type Size Used Priority\n") == [
        "core (0, 0)",
        "dumpable 0",
        "locked False",
        "works 64",
    ]


def test_where_there_is_swap_he_is_warned() -> None:
    warning, *rest = as_nobody("8192", r"Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n")
    assert warning == "ERROR memory may be swapped out; raise the limit for locked memory (LimitMEMLOCK=infinity)"
    assert rest[2:] == ["locked False", "works 64"]


def test_rights_in_a_user_namespace_do_not_count() -> None:
    """There the capability is there, and the limit holds all the same."""
    done = in_namespace(f"""
        cat > protected.py <<-'END'
{PROTECTED}
END
        ulimit -l 8192
        as_nobody unshare --user --map-root-user /mnt/python/bin/python protected.py
    """)
    assert (done.status, done.out.splitlines()[2:], done.err) == (0, ["locked False"], "")


@pytest.mark.mount
def test_the_daemon_is_protected(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(f'{{"password": "{secret()}"}}', encoding="utf-8")
    component(tmp_path / "components", "file", "local.file", {"secretsFile": tmp_path / "secrets.json"})
    with background(tmp_path / "mnt", "--resources-path", tmp_path / "components") as pid:
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines()
        assert next(line.split()[4:6] for line in limits if line.startswith("Max core")) == ["0", "0"]
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines())
        if os.geteuid() == 0:
            assert status["VmLck"].split()[0] != "0"
        assert int(status["VmRSS"].split()[0]) < 100_000


def test_a_users_daemon_is_out_of_reach_for_that_users_other_processes() -> None:
    """The kernel gives the files of a process that is not dumpable to root (proc(5))."""
    done = in_namespace("""
        mkdir m; chown 65534 m
        env_component
        as_nobody secretfs mount --resources-path c m
        pid=$(pgrep -n secretfs:)
        stat -c %u /proc/$pid /proc/$pid/environ
        for file in environ mem maps; do as_nobody head -c1 /proc/$pid/$file > /dev/null 2>&1 || echo refused; done
        as_nobody secretfs unmount m
    """)
    assert (done.status, done.out.split(), done.err) == (0, ["65534", "0", "refused", "refused", "refused"], "")
