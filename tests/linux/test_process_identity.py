"""Who a process is, and what the name of its control group says."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from secretfs.linux.process_identity import ProcessIdentity, _cgroup, identify

ID = "0123456789abcdef" * 4
POD = "2f1c2f7a-64a5-4f57-9d1a-9a4f4f2f6a55"


def in_cgroup(path: str) -> ProcessIdentity:
    return ProcessIdentity(cgroup=path)


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("/system.slice/web.service", "web.service"),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/mail.service", "mail.service"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("/system.slice/_cpu.service", "cpu.service"),
        ("/system.slice/web.service/workers", "web.service"),
        (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope"),
        (f"/docker/{ID}", None),
        ("/", None),
    ],
)
def test_the_unit_is_the_innermost(cgroup: str, unit: str | None) -> None:
    assert in_cgroup(cgroup).unit == unit


@pytest.mark.parametrize(
    ("cgroup", "container"),
    [
        (f"/docker/{ID}", ID),
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", ID),
        (f"/kubepods.slice/kubepods-burstable.slice/cri-containerd-{ID}.scope", ID),
        (f"/kubepods/besteffort/pod{POD}/{ID}", ID),
        (f"/system.slice/containerd.service/kubepods-burstable-podx.slice:cri-containerd:{ID}", ID),
        (f"/crio-{ID}", ID),
        ("/lxc.payload.mail", "mail"),
        (r"/machine.slice/machine-my\x2dhost.scope/payload", "my-host"),
        ("/system.slice/web.service", None),
        (f"/{ID[:-1]}", None),
        ("/", None),
    ],
)
def test_the_container_is_named_by_its_runtime(cgroup: str, container: str | None) -> None:
    assert in_cgroup(cgroup).container == container


@pytest.mark.parametrize(
    ("cgroup", "pod"),
    [
        (f"/kubepods/besteffort/pod{POD}/{ID}", POD),
        (f"/kubepods.slice/kubepods-pod{POD.replace('-', '_')}.slice/cri-containerd-{ID}.scope", POD),
        (f"/kubepods/pod{ID[:32]}/{ID}", ID[:32]),
        (f"/kubepods/podium/{ID}", None),
        (f"/docker/{ID}", None),
    ],
)
def test_the_pod_is_named_by_the_kubelet(cgroup: str, pod: str | None) -> None:
    assert in_cgroup(cgroup).pod == pod


@pytest.mark.parametrize(
    ("text", "cgroup"),
    [
        ("0::/system.slice/web.service\n", "/system.slice/web.service"),
        ("9:name=systemd:/system.slice/a.service\n4:memory:/b\n0::/\n", "/system.slice/a.service"),
        (f"9:name=systemd:/\n4:memory:/docker/{ID}\n0::/\n", f"/docker/{ID}"),
        ("2:cpu,cpuacct:/x\n8:pids,net_cls:/y\n", "/y"),
        ("0::/a:b\n", "/a:b"),
        ("0::/\n", "/"),
        ("", None),
    ],
)
def test_the_control_group_is_that_which_says_most(text: str, cgroup: str | None) -> None:
    assert _cgroup(text) == cgroup


def test_a_process_is_identified() -> None:
    found = identify(os.getpid())
    assert (found.uid, found.gid, found.pid) == (os.getuid(), os.getgid(), os.getpid())
    assert found.executable == str(Path("/proc/self/exe").readlink())
    assert found.command == Path("/proc/self/comm").read_text(encoding="utf-8").rstrip("\n")
    assert found.cgroup is not None


def test_what_the_kernel_has_told_is_kept_where_nothing_else_is_known() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert identify(child.pid, uid=7, gid=8) == ProcessIdentity(7, 8, child.pid)
    assert identify(0, uid=7, gid=8) == ProcessIdentity(7, 8, None)


def test_a_process_that_was_started_later_is_another_one() -> None:
    before = time.time() - 60
    child = subprocess.Popen(["sleep", "1000"])
    try:
        assert identify(child.pid, uid=os.getuid(), at=before) == ProcessIdentity(os.getuid(), None, child.pid)
        assert identify(child.pid, uid=os.getuid(), at=time.time()).command is not None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def test_a_process_of_another_user_is_another_one() -> None:
    assert identify(os.getpid(), uid=4711) == ProcessIdentity(4711, None, os.getpid())


def test_a_thread_belongs_to_its_process() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(identify(threading.get_native_id())))
    thread.start()
    thread.join()
    assert found[0].pid == os.getpid()


@pytest.mark.parametrize("name", ["Uid:\t0\t0\t0\t0", "a\nUid:\t0\t0", "x) S 1 1"])
def test_a_name_cannot_pass_for_another_field(name: str) -> None:
    before = Path("/proc/self/comm").read_text(encoding="utf-8")
    found = []

    def named() -> None:
        Path("/proc/thread-self/comm").write_text(name, encoding="utf-8")
        found.append(identify(threading.get_native_id(), at=time.time()))

    thread = threading.Thread(target=named)
    thread.start()
    thread.join()
    assert (found[0].uid, found[0].pid) == (os.getuid(), os.getpid())
    assert found[0].command is not None
    assert Path("/proc/self/comm").read_text(encoding="utf-8") == before
