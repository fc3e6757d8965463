"""A machine with a mount for many apps, its volume plug-in, and the container engines dockerd and Podman."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.canary import leaked, secret
from tests.support.machine import Machine
from tests.support.manifests import component
from tests.support.mounted import processes
from tests.support.volume_plugin import Engine
from tests.support.waiting import PATIENCE, wait_until

MOUNTPOINT = Path("/srv/secrets")
PASSWORD = "file/db/password"
USER = 4100
"""A user without rights, who has ids for containers of his own."""
SUBORDINATE = 200000
"""The first of them."""
PATIENTLY = f"--time={PATIENCE:.0f}"
"""How long an engine waits until it kills what it has asked to end."""
_SOCKET = "/run/docker/plugins/secretfs.sock"
_CONTAINERS_CONF = f"""
[containers]
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[engine.volume_plugins]
secretfs = "{_SOCKET}"
"""
_STORAGE_CONF = """
[storage]
driver = "vfs"
graphroot = "{0}/graph"
runroot = "{0}/run"
"""
IMAGE = r"""
mkdir -p image/{bin,etc,proc,sys,dev,run,tmp,usr}
cp "$(command -v busybox)" image/bin/
for applet in $(busybox --list); do [ "$applet" = busybox ] || ln -s busybox "image/bin/$applet"; done
echo root:x:0:0:::/bin/sh > image/etc/passwd
tar -C image -c . > image.tar
mkdir -p links/{tmp,run,mnt,usr,etc,proc,sys,dev}
for name in bin sbin lib lib64; do ln -s usr/$name links/$name; done
cp /etc/passwd links/etc
tar -C links -c . > links.tar
"""
"""Two images: busybox, and one with nothing but links, for containers that bind this machine's /usr."""

_ALICE = f"""
echo alice:x:{USER}:{USER}::/run/alice:/bin/sh >> /etc/passwd
echo alice:x:{USER}: >> /etc/group
for file in /etc/subuid /etc/subgid; do echo alice:{SUBORDINATE}:65536 >> $file; done
mkdir -m 700 /run/alice /run/alice/run
chown -R alice: /run/alice
"""

# Reads until it is stopped; then says how often, and how often that failed.
READER = r"""
n=0; bad=0
trap 'echo "$n $bad" >> /out/$0; exit 0' TERM
while :; do
    v=$(cat "$1") && [ -n "$v" ] || bad=$((bad + 1))
    n=$((n + 1)); echo $n > /out/$0.new; mv /out/$0.new /out/$0.reads
done
"""


@dataclass
class Site:
    """A mount for many apps with its volume plug-in, in a machine."""

    machine: Machine
    logs: Path
    plugin: subprocess.Popen[bytes] = field(init=False)
    dockerd: subprocess.Popen[bytes] = field(init=False)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def rotate(self, value: str) -> None:
        """Write the secrets file; returns when the mount shows it."""
        path = self.machine.path("/srv/components/secrets.json")
        new = path.with_suffix(".new")
        new.write_text(json.dumps({"db": {"password": secret(value)}, "tls": {"key": secret("key")}}), encoding="utf-8")
        new.replace(path)
        if self.machine.path(MOUNTPOINT / ".secretfs").exists():
            self.machine.shell(f"echo '*' > {MOUNTPOINT}/.secretfs/refresh")

    def declare(self) -> None:
        """Declare a store, and the directories of apps."""
        properties = {"secretsFile": "/srv/components/secrets.json", "nestedSeparator": "/", "multiValued": "false"}
        component(
            self.machine.path("/srv/components"), "file", "local.file", properties,
            annotations={"secretfs/ttl": "500ms"},
        )  # fmt: skip
        self.rotate("first")
        self.machine.path("/srv/volumes").mkdir()
        self.machine.path("/srv/out").mkdir(mode=0o777)
        self.machine.path("/srv/out").chmod(0o777)

    def mount(self) -> None:
        self.machine.output(
            "secretfs", "mount", "--resources-path", "/srv/components", "--apps", "/srv/volumes", "--allow-other",
            "--log-file", "/srv/log", MOUNTPOINT,
        )  # fmt: skip

    @property
    def log(self) -> str:
        return self.machine.path("/srv/log").read_text(encoding="utf-8")

    def worker(self) -> int:
        """Return the process that serves the mount now."""
        ours = os.stat(f"/proc/{self.machine.leader}/ns/pid").st_ino  # noqa: PTH116 - a link that is followed
        (pid,) = [
            pid
            for pid, kind in processes(MOUNTPOINT)
            if kind == "worker" and os.stat(f"/proc/{pid}/ns/pid").st_ino == ours  # noqa: PTH116 - likewise
        ]
        return pid

    def end_worker(self, how: signal.Signals) -> None:
        """Kill the daemon, or have it replaced as for an upgrade (SIGTERM); wait until there is another one."""
        worker = self.worker()
        os.kill(worker, how)

        def has_successor() -> bool:
            with contextlib.suppress(ValueError, OSError):
                return self.worker() != worker
            return False

        wait_until(has_successor)

    def start_plugin(self) -> None:
        log = self.logs / "plugin.log"
        log.write_bytes(b"")
        command = ("secretfs", "volume-plugin", "--socket", _SOCKET, MOUNTPOINT)
        self.plugin = self._stack.enter_context(self.machine.running(*command, log=log))
        wait_until(lambda: b"serving volumes at" in log.read_bytes())

    def start_dockerd(self, *options: str, root: str = "/run/docker-root") -> None:
        command = [
            "dockerd", "--data-root", root, "--exec-root", "/run/docker-exec", "--pidfile", "/run/docker.pid",
            "--host", "unix:///run/docker.sock", "--storage-driver", "vfs", "--bridge", "none", "--iptables=false",
            "--ip6tables=false", "--ip-forward=false", "--live-restore", "--exec-opt", "native.cgroupdriver=cgroupfs",
            "--cgroup-parent", f"/{self.machine.name}", "--config-file", "/run/docker.json", *options,
        ]  # fmt: skip
        self.machine.path("/run/docker.json").write_text("{}", encoding="ascii")
        self.machine.path("/run/docker.pid").unlink(missing_ok=True)
        self.dockerd = self._stack.enter_context(self.machine.running(*command, log=self.logs / "dockerd.log"))

        def answers() -> bool:
            said = (self.logs / "dockerd.log").read_text("utf-8", "replace")
            assert self.dockerd.poll() is None, said[-3000:]
            return self.machine.run("docker", "version").returncode == 0

        wait_until(answers)

    @contextlib.contextmanager
    def docker_only(self) -> Iterator[None]:
        """Have dockerd run, without a mount and without the plug-in."""
        with self._stack:
            self.start_dockerd()
            yield

    def restart_dockerd(self) -> None:
        """Stop dockerd as a service manager does, and start it again."""
        os.kill(self.machine.pid(self.dockerd), signal.SIGTERM)
        self.dockerd.wait()
        self.start_dockerd()

    def docker(self, *arguments: str) -> str:
        """Run ``docker``, which must succeed; returns what it prints."""
        return self.machine.output("docker", *arguments)

    def docker_run(self, *arguments: str) -> str:
        """Run ``docker run`` and a container that is removed at its end."""
        return self.docker("run", "--rm", "--network", "none", *arguments)

    def podman(self, *arguments: str) -> str:
        """Run ``podman``, which must succeed; returns what it prints."""
        return self.machine.output("podman", *arguments)

    def podman_run(self, *arguments: str) -> str:
        """Run ``podman run`` and a container that is removed at its end."""
        return self.podman("run", "--rm", "--cgroup-parent", f"/{self.machine.name}", *arguments)

    def refused_removal(self, volume: str) -> str:
        """Ask the plug-in itself to remove a volume, which it must refuse; returns what it says."""
        return Engine(self.machine.path(_SOCKET)).refused("Remove", volume)

    def report(self, reader: str) -> tuple[int, int]:
        """Return how often a reader has read, in all its lives, and how often that failed."""
        path = self.machine.path(f"/srv/out/{reader}")
        lives = [[int(number) for number in line.split()] for line in path.read_text("ascii").splitlines()]
        path.unlink()
        return sum(reads for reads, _ in lives), sum(failed for _, failed in lives)

    def reads_on(self, *readers: str) -> None:
        """Wait until each of these readers has read ten times more."""
        for path in [self.machine.path(f"/srv/out/{reader}.reads") for reader in readers]:
            path.unlink(missing_ok=True)
            wait_until(path.exists)
            first = _number(path)
            wait_until(lambda path=path, first=first: _number(path) >= first + 10)  # type: ignore[misc]


def _number(path: Path) -> int:
    return int(path.read_text("ascii"))


@contextlib.contextmanager
def site(machine: Machine, logs: Path) -> Iterator[Site]:
    """Mount, and start the plug-in; in the end stop all that was started."""
    site = Site(machine, logs)
    (path := machine.path("/run")).joinpath("containers.conf").write_text(_CONTAINERS_CONF, encoding="ascii")
    (path / "storage.conf").write_text(_STORAGE_CONF.format("/run/podman"), encoding="ascii")
    machine.shell("! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified")  # crun takes no hybrid
    site.declare()
    machine.shell(IMAGE + _ALICE)
    site.mount()
    with site._stack:
        site.start_plugin()
        yield site
        assert not leaked((logs / "plugin.log").read_text("utf-8"))
    machine.output("secretfs", "unmount", "--force", MOUNTPOINT)
    assert not leaked(site.log)
