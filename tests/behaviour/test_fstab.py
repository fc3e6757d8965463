"""mount(8) and fstab, in a booted systemd. The parsing of options is tested in tests/cli/test_mount_helper.py."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.manifests import component
from tests.support.shell import wait_until
from tests.support.systemd import System

pytestmark = pytest.mark.mount

POINT = Path("/srv/secrets")
MANIFESTS = "/etc/secretfs/components"


@pytest.fixture(scope="module", autouse=True)
def manifests(system: System) -> None:
    """Declare the store of these tests."""
    component(system.path(MANIFESTS), "file", "local.file", {"secretsFile": "/etc/secretfs/secrets.json"})
    system.path("/etc/secretfs/secrets.json").write_text(f'{{"password": "{secret("fstab")}"}}', encoding="utf-8")


@pytest.fixture(autouse=True)
def nothing_stays(system: System) -> Iterator[None]:
    """Take down what a test has mounted, and the daemon with it."""
    system.path(POINT).mkdir(exist_ok=True)
    yield
    fstab(system)
    for unit in ("srv-secrets.automount", "srv-secrets.mount"):
        system.run("systemctl", "stop", unit)  # most tests have only one of them, or none
    wait_until(lambda: not daemons(system))


def fstab(system: System, *lines: str) -> None:
    """Write the lines, each with what follows the mount point, and have systemd read them."""
    text = "".join(f"{first} {POINT} {rest} 0 0\n" for first, _, rest in (line.partition(" ") for line in lines))
    system.path("/etc/fstab").write_text(text, encoding="utf-8")
    system.systemctl("daemon-reload")


def daemons(system: System) -> list[str]:
    return system.run("pgrep", "--full", f" {POINT}( |$)").stdout.decode().split()


def workers(system: System) -> list[str]:
    """Return the processes that serve: neither the supervisor nor a helper."""
    found = system.run("pgrep", "--full", "--", f"-m secretfs .*{POINT}( |$)").stdout.decode().split()
    commands = {pid: system.run("ps", "-o", "comm=,args=", "-p", pid).stdout.decode() for pid in found}
    others = ("secretfs-helper", "secretfs-mount")
    return [
        pid
        for pid, command in commands.items()
        if command.strip() and not command.startswith(others) and "secretfs.daemon.supervisor" not in command
    ]


def password(system: System) -> str:
    return system.path(POINT / "file/password").read_text(encoding="utf-8")


def mount(system: System, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return system.run("mount", *arguments)


@pytest.mark.parametrize("fstype", ["secretfs", "fuse.secretfs"])
def test_a_line_of_fstab(system: System, fstype: str) -> None:
    """fstab-1: A line of fstab of type `secretfs` or `fuse.secretfs` mounts the manifests in its first field."""
    fstab(system, f"{MANIFESTS} {fstype} _netdev,nofail,ro,nosuid")
    system.output("mount", "--all")
    assert password(system) == secret("fstab")
    system.wait_for("srv-secrets.mount", "active")
    system.systemctl("stop", "srv-secrets.mount")
    assert list(system.path(POINT).iterdir()) == []


def test_the_type_in_front(system: System) -> None:
    """The old way to name a FUSE file system (fstab-1)."""
    assert mount(system, "-t", "fuse", f"secretfs#{MANIFESTS}", str(POINT)).returncode == 0
    assert password(system) == secret("fstab")


def test_again(system: System) -> None:
    """fstab-2: `mount -a` leaves alone what is mounted already."""
    fstab(system, f"{MANIFESTS} secretfs defaults")
    system.output("mount", "--all")
    before = daemons(system)
    system.output("mount", "--all")
    assert daemons(system) == before
    assert system.output("findmnt", "--noheadings", "--output", "SOURCE", str(POINT)).split() == [MANIFESTS]


def test_flags_are_options(system: System) -> None:
    """fstab-3: Each flag of `secretfs mount` is an option, without its leading dashes; `_` may stand for `-`."""
    done = mount(
        *(system, "-t", "secretfs", "none", str(POINT), "-o"),
        f"resources-path={MANIFESTS},allow_other,uid=1000,gid=2000,mode=0440,ttl=2s,log-file=/var/log/secretfs.log",
    )
    assert (done.returncode, done.stderr) == (0, b"")
    about = system.path(POINT / "file/password").stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (1000, 2000, 0o440)
    assert system.run("cat", POINT / "file/password", user=3000).returncode == 1
    assert system.run("cat", POINT / "file/password", user=1000).stdout.decode() == secret("fstab")
    assert "mounted at" in system.path("/var/log/secretfs.log").read_text(encoding="utf-8")


def test_many_apps(system: System) -> None:
    """A line of fstab may declare many apps, each with its owner (fstab-3, app-1)."""
    apps = system.path("/etc/secretfs/apps")
    apps.mkdir(exist_ok=True)
    for app, owner in {"orders": 1000, "billing": 2000}.items():
        spec = {"owner": str(owner)}
        document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": app}, "spec": spec}
        (apps / f"{app}.yaml").write_text(json.dumps(document), encoding="utf-8")
    fstab(system, f"{MANIFESTS} secretfs apps=/etc/secretfs/apps,allow_other")
    system.output("mount", "--all")
    orders = POINT / "orders/file/password"
    assert system.run("cat", orders, user=1000).stdout.decode() == secret("fstab")
    assert system.run("cat", orders, user=2000).returncode == 1
    assert system.path(POINT / "billing").stat().st_uid == 2000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("alow_other", "secretfs: unknown mount option 'alow_other' (did you mean allow-other?)\n"),
        ("mode=0777", "secretfs: Invalid value for '--mode': '0777': files here can be read and nothing else (0400,"),
        ("resources-path=/nowhere", "secretfs: /nowhere:"),
    ],
)
@pytest.mark.parametrize("fstype", ["secretfs", "fuse.secretfs"])
def test_mistakes(system: System, fstype: str, options: str, said: str) -> None:
    """fstab-4: An unknown option is refused with the nearest valid name, a mistake with its reason: exit code 32."""
    done = mount(system, "-t", fstype, "none", str(POINT), "-o", options)
    assert done.returncode == 32
    assert done.stderr.decode().startswith(said)
    assert list(system.path(POINT).iterdir()) == []


def test_pretending(system: System) -> None:
    """`mount -f` says what is wrong, and mounts nothing (fstab-4)."""
    assert mount(system, "-f", "-t", "secretfs", MANIFESTS, str(POINT), "-o", "ttl=soon").returncode == 32
    assert mount(system, "-f", "-t", "secretfs", MANIFESTS, str(POINT), "-o", "ttl=3s").returncode == 0
    assert list(system.path(POINT).iterdir()) == []


def test_users(system: System) -> None:
    """fstab-5: With `user` in its line of fstab, a user may mount, and then is the owner."""
    fstab(system, "none secretfs noauto,user,resources-path=/home/ann/components")
    system.output("useradd", "--create-home", "ann")
    user = system.path("/home/ann").stat().st_uid
    component(system.path("/home/ann/components"), "file", "local.file", {"secretsFile": "/home/ann/secrets.json"})
    system.path("/home/ann/secrets.json").write_text(f'{{"password": "{secret("ann")}"}}', encoding="utf-8")
    os.chown(system.path(POINT), user, user)
    done = system.run("mount", str(POINT), user=user)
    assert (done.returncode, done.stderr) == (0, b"")
    assert system.run("cat", POINT / "file/password", user=user).stdout.decode() == secret("ann")
    assert system.run("umount", str(POINT), user=user).returncode == 0


def test_automount(system: System) -> None:
    """fstab-6: With `x-systemd.automount` the first access mounts; an idle mount is unmounted, and its daemon ends."""
    fstab(system, f"{MANIFESTS} secretfs noauto,_netdev,x-systemd.automount,x-systemd.idle-timeout=1")
    system.systemctl("start", "srv-secrets.automount")
    assert daemons(system) == []
    assert system.output("head", "-c5", f"{POINT}/file/password") == secret("fstab")[:5]
    system.wait_for("srv-secrets.mount", "inactive")
    wait_until(lambda: not daemons(system))
    assert system.output("head", "-c5", f"{POINT}/file/password") == secret("fstab")[:5]


def test_killed(system: System) -> None:
    """fstab-8: A daemon that is killed is replaced; no reader sees an error."""
    assert mount(system, "-t", "secretfs", MANIFESTS, str(POINT)).returncode == 0
    (worker,) = workers(system)
    system.output("kill", "-KILL", worker)
    assert password(system) == secret("fstab")
    assert workers(system) not in ([], [worker])


def test_a_mount_that_is_needed(system: System) -> None:
    """fstab-7: A unit with `RequiresMountsFor=` of the mount point is started after the mount, and triggers it."""
    fstab(system, f"{MANIFESTS} secretfs noauto,_netdev")
    example = (ROOT / "examples/systemd/client-of-fstab.service").read_text(encoding="utf-8")
    client = system.path("/run/systemd/system/client.service")
    client.write_text(example.replace("vault/db/password", "file/password"), encoding="utf-8")
    system.systemctl("daemon-reload")
    system.systemctl("start", "client.service")
    assert str(len(secret("fstab"))) in system.journal("client.service").splitlines()
