"""What the daemon cannot do once it serves: seen from outside, and by a program that a store starts."""

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import trio

from secretfs.linux.runtime_directory import runtime_file
from secretfs.linux.syscall_helper import SyscallHelper
from tests.support import reach
from tests.support.audited import AuditFile
from tests.support.canary import secret
from tests.support.command import ROOT, background, in_namespace, secretfs
from tests.support.manifests import component
from tests.support.mounted import mounted, named_children
from tests.support.proc import texts
from tests.support.scrape import scrape
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, run, wait_until
from tests.support.watching import watching

__all__ = ["file"]

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
HOLDING = ("core_dumps", "memory", "rights", "no_new_privileges", "system_calls", "files")
ROOT_KEEPS = {1, 14}  # CAP_DAC_OVERRIDE, CAP_IPC_LOCK
CAP_SYS_ADMIN, CAP_SYS_PTRACE = 21, 19


def rights(status: str) -> dict[str, set[int]]:
    """Return the capabilities in the status of a thread, by the name of the set."""
    fields = re.findall(r"^(Cap\w+):\t(\w+)$", status, re.MULTILINE)
    return {name: {bit for bit in range(64) if int(mask, 16) >> bit & 1} for name, mask in fields}


def given_up(pid: int, keeps: set[int]) -> bool:
    """Whether no thread of a process has any other right, or can get one back."""
    for thread in texts(pid, "task/*/status"):
        sets = rights(thread)
        assert sets.pop("CapAmb") == sets.pop("CapInh") == set()
        assert all(held <= keeps for held in sets.values()), thread
        assert re.search(r"^NoNewPrivs:\t1$", thread, re.MULTILINE)
        assert re.search(r"^Seccomp:\t2$", thread, re.MULTILINE)
    return True


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file, looked at every 200 ms."""
    file.write({"token": OLD})
    return file.declare(tmp_path / "components", "200ms")


@pytest.mark.root("another user has no rights to give up")
def test_the_right_to_mount(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """safe-1: A daemon of root gives up all rights but two before it opens a store, in every thread, for good."""
    with mounted(components, options=["--metrics-listen", f"unix:{tmp_path}/metrics"], expect_log=["ended"]) as mount:
        for times in (1, 2):
            assert (mount.path / "file/token").read_text() in (OLD, NEW)
            assert given_up(mount.worker, ROOT_KEEPS)
            (mounter,) = named_children(mount.worker, "secretfs-mount")
            assert CAP_SYS_ADMIN in rights(Path(f"/proc/{mounter}/status").read_text())["CapEff"]
            os.kill(mount.worker, signal.SIGKILL)
            mount.said("took over the mount at", times)
        with watching(tmp_path / "log", mount.path / "file") as watch:
            file.write({"token": NEW})
            watch.wait_for(f"token MOVED_TO {mount.path}/file/")
        (mount.path / ".secretfs/refresh").write_text("file")


PROGRAM = f"""#!{sys.executable}
import ctypes, json, os, sys
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status"))
libc = ctypes.CDLL(None, use_errno=True)
libc.mount(b"none", b"/mnt", b"tmpfs", 0, None)
mount = os.strerror(ctypes.get_errno())
libc.ptrace(16, os.getppid(), 0, 0)
trace = os.strerror(ctypes.get_errno())
found = {{name: status[name].strip() for name in ("CapPrm", "CapBnd", "NoNewPrivs")}}
json.dump({{**found, "mount": mount, "trace": trace}}, sys.stdout)
"""


@pytest.mark.root("another user has no rights to give up")
def test_programs_that_stores_start(tmp_path: Path) -> None:
    """safe-2: A program that a store starts has no more rights than the daemon, and a setuid program gets none."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/sops").write_text(PROGRAM)
    (tmp_path / "bin/sops").chmod(0o755)
    (tmp_path / "secrets.yaml").write_text("a: b\n")
    component(tmp_path / "components", "sops", "secretstores.secretfs.sops", {"secretsFile": tmp_path / "secrets.yaml"})
    env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    with mounted(tmp_path / "components", env=env) as mount:
        found = {path.name: path.read_text() for path in (mount.path / "sops").iterdir() if path.name[0] != "."}
    refused = os.strerror(1)
    kept = "0000000000004002"
    assert found == {"CapPrm": kept, "CapBnd": kept, "NoNewPrivs": "1", "mount": refused, "trace": refused}


def test_a_users_daemon() -> None:
    """safe-3: A user's daemon gives up what it could gain by setuid programs; fusermount3 mounts and unmounts for it
    all the same."""
    done = in_namespace("""
        mkdir m; chown 65534 m
        env_component
        export A=1
        as_nobody secretfs mount --resources-path c m
        pid=$(pgrep -n secretfs:)
        grep -c -x -e 'NoNewPrivs:.1' -e 'Seccomp:.2' -e 'CapPrm:.0000000000000000' /proc/$pid/status
        as_nobody cat m/env/A; echo
        kill -KILL $pid
        while [ $pid = "$(pgrep -n secretfs:)" ]; do sleep 0.01; done
        as_nobody cat m/env/A; echo
        pid=$(pgrep -n secretfs:)
        grep -c -x -e 'NoNewPrivs:.1' /proc/$pid/status
        as_nobody secretfs unmount m
        ls m
    """)
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == ["3", "1", "1", "1"]


@pytest.fixture
def victim() -> Iterator[int]:
    """Start a process of this user that has no more rights than a daemon."""
    without = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    with subprocess.Popen([*without, "sleep", "infinity"], env={"TOKEN": secret("of-another-process")}) as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text("ascii") == "sleep\n")
        yield process.pid
        process.kill()


@pytest.fixture
def in_run() -> Iterator[str]:
    """Make a directory in /run that is not the daemon's."""
    with tempfile.TemporaryDirectory(dir="/run", prefix="secretfs-test-") as directory:
        yield directory


def probes(directory: Path, arguments: str) -> Mapping[str, str]:
    """Declare stores that say what is in reach: ``reach`` of the worker, ``sops`` of a program that a store starts.

    Returns variables for the daemon.
    """
    (directory / "bin").mkdir()
    (directory / "bin/sops").write_text(f"#!/bin/sh\nexec {sys.executable} -m tests.support.reach {arguments}\n")
    (directory / "bin/sops").chmod(0o755)
    (directory / "secrets.yaml").write_text("a: b\n")
    component(directory / "probes", "sops", "secretstores.secretfs.sops", {"secretsFile": directory / "secrets.yaml"})
    component(directory / "probes", "reach", reach.TYPE, {"arguments": arguments})
    return {"PATH": f"{directory}/bin:{os.environ['PATH']}", **reach.install(directory / "site")}


def names(directory: str) -> list[str]:
    return [path.name for path in Path(directory).iterdir()]


def values(store: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in store.iterdir() if path.name[0] != "."}


@pytest.mark.root("another user could not write there in any case")
def test_files_and_processes_out_of_reach(victim: int, in_run: str, tmp_path: Path) -> None:
    """safe-6: The daemon, and a program that a store starts, write to no directory of the system, and look into no
    other process of their user; they write to all other directories, and to those that options name."""
    places = [str(runtime_file("/").parent), "/tmp", "/dev/shm", str(tmp_path)]
    named = [f"{in_run}/{name}" for name in ("log", "metrics", "listen", "api")]
    for place in named:
        Path(place).mkdir()
    log, metrics, listen, api = named
    arguments = f"{victim} {in_run} {' '.join((*places, *named))}"
    env = probes(tmp_path, arguments)
    mount = tmp_path / "mnt"
    options: list[str | Path] = ["--resources-path", tmp_path / "probes", "--log-file", f"{log}/log"]
    options += [f"--metrics-file={metrics}/page", f"--metrics-listen=unix:{listen}/socket", f"--api=unix:{api}/socket"]
    with background(mount, *options, env=env):
        free = json.loads(run(sys.executable, "-m", "tests.support.reach", *arguments.split(), cwd=ROOT).stdout)
        assert set(free.values()) == {"can"}  # what it is compared with
        confined = values(mount / "sops")
        assert values(mount / "reach") == confined
        assert "mounted at" in Path(log, "log").read_text()
        wait_until(Path(metrics, "page").read_text)  # written again and again, in the place of the one before
        assert names(listen) == names(api) == ["socket"]
    refused = (*reach.SYSTEM, in_run, *reach.OF_OTHERS)
    can, cannot = ([reach.name_of(place) for place in each] for each in ((*places, *named), refused))
    assert confined == dict.fromkeys(can, "can") | dict.fromkeys(cannot, "EACCES")
    assert names(metrics) == names(listen) == names(api) == []  # removed when the mount ended


LOOKS = r"""#!/bin/sh
reason=$(cat /proc/$VICTIM/environ 2>&1)
echo "{\"a\": \"${reason##*: }\"}"
"""


def test_processes_out_of_reach_of_a_users_daemon(tmp_path: Path) -> None:
    """A program that the daemon of a user starts looks into no other process of that user (safe-6)."""
    sops = component(tmp_path, "sops", "secretstores.secretfs.sops", {"secretsFile": "/mnt/nobody/s.yaml"})
    script = """
        mkdir m c bin; chown 65534 m
        setpriv --reuid 65534 --regid 65534 --clear-groups env A=1 sleep infinity &
        while [ "$(cat /proc/$!/comm)" != sleep ]; do sleep 0.01; done
        as_nobody grep -c -z A=1 /proc/$!/environ
        printf %s "$SOPS" > c/sops.yaml
        echo a: b > s.yaml
        printf %s "$LOOKS" > bin/sops
        chmod 755 bin/sops
        VICTIM=$! PATH=$PWD/bin:$PATH as_nobody secretfs mount --resources-path c m
        as_nobody cat m/sops/a; echo
        as_nobody secretfs unmount m
    """
    done = in_namespace(script, env={"LOOKS": LOOKS, "SOPS": sops.read_text()})
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == ["1", f"{os.strerror(errno.EACCES)}"]


def test_a_mount_in_the_root_directory() -> None:
    """A worker that takes over looks at no directory of / before it serves: one is the mount (takeover-1)."""
    done = in_namespace("""
        env_component
        export A=1
        mount -t tmpfs none /srv
        secretfs mount --resources-path c /srv
        cat /srv/env/A; echo
        pid=$(pgrep -n secretfs:)
        kill -KILL $pid
        cat /srv/env/A; echo
        secretfs unmount /srv
    """)
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == ["1", "1"]


@pytest.mark.root("a user's memory is not locked")
def test_what_holds_is_told(components: Path) -> None:
    """safe-4: `status.json`, a metric and the doctor say which protections hold, and what is wrong with one that does
    not."""
    with mounted(components) as mount:
        status = json.loads((mount.path / ".secretfs/status.json").read_text())["mount"]["protections"]
        assert {name: each["holds"] for name, each in status.items()} == dict.fromkeys(HOLDING, True)
        assert status["rights"]["how"] == "it has CAP_DAC_OVERRIDE, CAP_IPC_LOCK"
        metrics = scrape(mount.path)
        assert [metrics[f"secretfs_protection {name}"] for name in HOLDING] == [1.0] * len(HOLDING)
        assert "not protected" not in secretfs("status", mount.path).out
        done = secretfs("doctor", "--resources-path", components, mount.path)
        assert "PASS  protections  it leaves no core dump" in done.out


@pytest.mark.parametrize("limit", [64, 8192])  # KiB: not enough for secret memory; enough, which is locked
def test_what_does_not_hold_is_told(limit: int) -> None:
    """Memory that may be swapped out is an error in the log, a line of `status`, and a finding (safe-4)."""
    done = in_namespace(f"""
        mkdir m; chown 65534 m
        env_component
        printf 'Filename Type Size Used Priority\\n/dev/sda2 partition 1 0 -2\\n' > swaps
        mount --bind swaps /proc/swaps
        ulimit -l {limit}
        export A=1
        as_nobody secretfs mount --resources-path c m
        as_nobody cat m/env/A > /dev/null
        as_nobody secretfs status m | grep 'not protected'
        as_nobody secretfs doctor --resources-path c m | grep 'WARN  protections' || true
        as_nobody secretfs unmount m
    """)
    assert done.status == 0
    assert "ERROR memory may be swapped out" in done.err
    assert done.out.splitlines() == [
        "not protected (memory): its memory may be swapped out",
        "WARN  protections  memory: its memory may be swapped out",
    ]


@pytest.mark.root("another user has no rights to give up")
def test_what_helpers_do(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """safe-7: The helper processes of the daemon change nothing but the mount, whatever they are asked for."""
    with mounted(components) as mount:
        pids = [pid for mounter in named_children(mount.worker, "secretfs-mount") for pid in helpers_of(mounter)]
        for pid in (*pids, *helpers_of(mount.worker)):
            assert given_up(pid, {1, CAP_SYS_ADMIN})
        assert (mount.path / "file/token").read_text() == OLD
        with watching(tmp_path / "log", mount.path / "file") as watch:
            file.write({"token": NEW})
            watch.wait_for(f"token MOVED_TO {mount.path}/file/")
        (tmp_path / "victim").mkdir()
        ask_for_more(mount.path, tmp_path / "victim")
        assert names(str(tmp_path / "victim")) == []
        mount.path.parent.rename(moved := mount.path.parent.with_name("moved"))
        try:
            mount.path.mkdir(parents=True)
            ask_for_more(mount.path, mount.path)
            assert names(str(mount.path)) == []
        finally:
            mount.path.rmdir()
            mount.path.parent.rmdir()
            moved.rename(mount.path.parent)
        assert (mount.path / "file/token").read_text() == NEW


def helpers_of(pid: int) -> list[int]:
    return named_children(pid, "secretfs-helper")


def ask_for_more(mountpoint: Path, victim: Path) -> None:
    """Ask a helper as a daemon does that has been taken over: to make a directory, and to rename and remove one."""
    helper = SyscallHelper.fork(mountpoint)

    def ask(name: str, *paths: str, device: int | None) -> str:
        return errno_of(lambda: trio.run(partial(helper.call, name, *map(os.fsencode, paths), device=device)))

    refused = {"EPERM", "ENOENT", "EXDEV"}
    new = str(victim / "new")
    for device in None, os.minor(victim.stat().st_dev), os.minor(mountpoint.stat().st_dev):
        for path in new, f"{mountpoint}/{os.path.relpath(victim, mountpoint)}/new", f"/proc/self/root{new}":
            assert ask("mkdir", path, device=device) in refused
        (victim / "new").mkdir()
        assert ask("rename", new, str(victim / "other"), device=device) in refused
        assert {ask(name, new, device=device) for name in ("rmdir", "unlink", "lstat", "statvfs")} <= refused
        (victim / "new").rmdir()
    helper.close()
    with suppress(ChildProcessError):  # it had ended by then, and has been waited for
        os.waitpid(helper.pid, 0)


@pytest.mark.root("only root may look at the programs of others")
def test_the_audit_keeps_one_more(components: Path, tmp_path: Path) -> None:
    """With an audit log the daemon keeps the right to see whose program opens a secret (safe-1)."""
    log = tmp_path / "audit"
    with mounted(components, options=["--audit=observe", f"--audit-to={log}"]) as mount:
        assert given_up(mount.worker, {*ROOT_KEEPS, CAP_SYS_PTRACE})
        assert CAP_SYS_PTRACE in rights(Path(f"/proc/{mount.worker}/status").read_text())["CapEff"]


@pytest.mark.root("only root may look at the programs of others")
def test_the_audit_looks_into_processes(victim: int, file: SecretsFile, in_run: str, tmp_path: Path) -> None:
    """With an audit log the files and processes of others are in reach, and that is told (safe-6)."""
    log = AuditFile(tmp_path / "audit")
    env = probes(tmp_path, f"{victim} {in_run}")
    file.write({"token": OLD})
    file.declare(tmp_path / "probes", "1h")
    with mounted(tmp_path / "probes", options=["--audit=strict", f"--audit-to={log.path}"], env=env) as mount:
        assert set(values(mount.path / "reach").values()) == {"can"}
        assert run("cat", mount.path / "file/token").returncode == 0
        (record,) = log.wait_for("open", secret="token")
        assert record["executable"] == os.path.realpath(shutil.which("cat") or "")
        assert "not protected (files): with an audit log" in secretfs("status", mount.path).out


def test_a_mount_for_one_command(components: Path) -> None:
    """The daemon of `secretfs run` is confined, and the command is not (safe-1, safe-2)."""
    script = "grep NoNewPrivs /proc/$$/status /proc/$(pgrep --parent $PPID secretfs:)/status"
    done = secretfs("run", "--resources-path", components, "--", "sh", "-c", script)
    assert [line[-1] for line in done.out.splitlines()] == ["0", "1"]
