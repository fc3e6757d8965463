"""The units, in a booted systemd: what an administrator does to the service, and what happens to it."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import fake_type
from tests.support.api_client import get_secret
from tests.support.canary import leaked, secret
from tests.support.command import ROOT
from tests.support.manifests import component
from tests.support.shell import errno_of, wait_until
from tests.support.systemd import System
from tests.support.volume_plugin import Engine
from tests.support.waiting import PATIENCE
from tests.support.watching import watching

pytestmark = pytest.mark.mount

UNIT = "secretfs@srv-secrets.service"
POINT = Path("/srv/secrets")
PASSWORD = POINT / "file/password"
INSTALLED, EXAMPLES = ROOT / "secretfs/install/systemd", ROOT / "examples/systemd"
UNITS = sorted((*INSTALLED.rglob("*.service"), *EXAMPLES.glob("*.service")))
CAP_DAC_OVERRIDE = "0000000000000002"
DROP_IN = Path(f"/run/systemd/system/{UNIT}.d/test.conf")


@pytest.fixture
def service(system: System) -> Iterator[System]:
    """Configure the service for /srv/secrets as the documentation says; in the end it is as if it had never been."""
    component(system.path("/etc/secretfs/components"), "file", "local.file", {"secretsFile": "/etc/secretfs/secrets"})
    system.path("/etc/secretfs/secrets").write_text(f'{{"password": "{secret("unit")}"}}', encoding="utf-8")
    configure(system, "--resources-path=/etc/secretfs/components --allow-other --mode=0444")
    system.path(POINT).mkdir(exist_ok=True)
    yield system
    system.systemctl("stop", UNIT)
    system.run("systemctl", "reset-failed", UNIT)
    system.path(DROP_IN).unlink(missing_ok=True)
    system.output("rm", "-r", "/etc/secretfs")
    system.run("umount", "--lazy", POINT)
    assert not leaked(system.journal(UNIT))


def configure(system: System, options: str) -> None:
    system.path("/etc/secretfs/srv-secrets.conf").write_text(f"SECRETFS_OPTIONS={options}\n", encoding="utf-8")


def drop_in(system: System, *lines: str) -> None:
    """Change the unit as `systemctl edit` does."""
    system.path(DROP_IN).parent.mkdir(parents=True, exist_ok=True)
    system.path(DROP_IN).write_text("\n".join(lines), encoding="utf-8")
    system.systemctl("daemon-reload")


def kill(system: System) -> None:
    """Kill the daemon, and wait until systemd has taken note."""
    before = int(system.show(UNIT, "NRestarts"))
    signal_daemon(system, "KILL")
    wait_until(lambda: int(system.show(UNIT, "NRestarts")) == before + 1)


def signal_daemon(system: System, name: str) -> None:
    system.systemctl("kill", f"--signal={name}", "--kill-whom=main", UNIT)


def password(system: System) -> str:
    return system.path(PASSWORD).read_text(encoding="utf-8")


def is_readable(system: System) -> bool:
    with contextlib.suppress(OSError):
        return password(system) == secret("unit")
    return False


class Reader:
    """Opens and reads the secret all the time, and keeps what went wrong and the longest that it took."""

    def __init__(self, system: System) -> None:
        self.reads, self.worst, self.failed = 0, 0.0, list[str]()
        self._path = system.path(PASSWORD)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "Reader":
        self._thread.start()
        wait_until(lambda: self.reads)
        return self

    def __exit__(self, *_: object) -> None:
        reads = self.reads
        wait_until(lambda: self.reads > reads)
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._stop.wait(0.001):
            begun = time.monotonic()
            try:
                if self._path.read_text(encoding="utf-8") != secret("unit"):
                    self.failed.append("wrong bytes")
            except OSError as error:
                self.failed.append(error.strerror or "")
            self.worst = max(self.worst, time.monotonic() - begun)
            self.reads += 1


def test_start_and_stop(service: System) -> None:
    """systemd-1: `systemctl start secretfs@srv-secrets` returns when /srv/secrets can be read; `stop` unmounts it."""
    service.systemctl("start", UNIT)
    assert password(service) == secret("unit")
    rights = service.output("grep", "-h", "CapPrm", f"/proc/{service.show(UNIT, 'MainPID')}/status").split()
    assert rights == ["CapPrm:", CAP_DAC_OVERRIDE]  # it has given up what it mounted with (safe-1)
    service.systemctl("stop", UNIT)
    assert list(service.path(POINT).iterdir()) == []
    assert service.show(UNIT, "Result") == "success"


def test_the_kernel_answers(service: System) -> None:
    """The unit has the rights that it takes to let the kernel answer warm reads, also after a kill (kernel-1)."""
    configure(service, "--resources-path=/etc/secretfs/components --allow-other --mode=0444 --kernel-answers")
    service.systemctl("start", UNIT)
    wait_until(lambda: is_readable(service) and answered_by(service) == "kernel")
    kill(service)
    wait_until(lambda: is_readable(service) and answered_by(service) == "kernel")


def answered_by(system: System) -> str:
    """Say who answers warm reads."""
    status = json.loads(system.path(f"{POINT}/.secretfs/status.json").read_text(encoding="utf-8"))
    return str(status["mount"]["warm_reads"]["answered_by"])


def test_stop_while_files_are_open(service: System) -> None:
    """`systemctl stop` works while files are open, and leaves no process (systemd-1)."""
    service.systemctl("start", UNIT)
    with service.path(PASSWORD).open(encoding="utf-8"):
        service.systemctl("stop", UNIT)
        assert list(service.path(POINT).iterdir()) == []
    # Its helpers end when they hear that it has ended, and systemd does not wait for them.
    wait_until(lambda: service.run("systemd-cgls", "--unit", UNIT).stdout.count(b"secretfs mount") == 0)


def test_the_secrets_api(service: System) -> None:
    """systemd keeps its socket as well, over a kill and a restart, and not over a stop (api-5, api-4)."""
    configure(service, "--resources-path=/etc/secretfs/components --api=unix:/run/api.sock")
    service.systemctl("start", UNIT)
    path = service.path("/run/api.sock")
    for replaced in (lambda: None, lambda: kill(service), lambda: service.systemctl("restart", UNIT)):
        replaced()
        assert get_secret(path, "file", "password").json == {"password": secret("unit")}
    service.systemctl("stop", UNIT)
    assert not path.exists()


def test_reload(service: System) -> None:
    """systemd-2: `systemctl reload` reads manifests and configuration again; readers do not notice it."""
    service.systemctl("start", UNIT)
    before = service.show(UNIT, "MainPID")
    with Reader(service) as reader:
        component(
            service.path("/etc/secretfs/components"), "more", "local.file", {"secretsFile": "/etc/secretfs/secrets"}
        )
        service.systemctl("reload", UNIT)
        wait_until((service.path(POINT) / "more/password").exists)
    assert reader.failed == []
    assert service.show(UNIT, "MainPID") == before


def test_killed(service: System) -> None:
    """systemd-3: A daemon that is killed is replaced within a second."""
    service.systemctl("start", UNIT)
    before = service.show(UNIT, "MainPID")
    signal_daemon(service, "KILL")
    wait_until(lambda: service.show(UNIT, "MainPID") not in (before, "0") and is_readable(service))
    assert service.show(UNIT, "NRestarts") == "1"


def test_readers_of_a_killed_daemon(service: System) -> None:
    """systemd-4: When the daemon is killed or restarted, readers see no error and wait for less than a second."""
    service.systemctl("start", UNIT)
    with service.path(PASSWORD).open(encoding="utf-8") as held, Reader(service) as reader:
        for _ in range(2):
            kill(service)
            service.wait_for(UNIT, "active")
            service.systemctl("restart", UNIT)
        service.systemctl("daemon-reexec")  # as an upgrade of systemd does
        kill(service)
        service.wait_for(UNIT, "active")
        assert held.read() == secret("unit")
    assert reader.failed == []
    assert reader.worst < PATIENCE


def test_files_of_another_user(service: System, tmp_path: Path) -> None:
    """systemd-16: With `--uid` the files belong to that user, and watchers see every change."""
    configure(service, "--resources-path=/etc/secretfs/components --allow-other --uid=4711 --mode=0400")
    service.systemctl("start", UNIT)
    assert service.run("cat", PASSWORD, user=4711).stdout.decode() == secret("unit")
    assert service.run("cat", PASSWORD, user=4712).returncode == 1
    new = service.path("/etc/secretfs/secrets.new")
    new.write_text(f'{{"password": "{secret("unit, rotated")}"}}', encoding="utf-8")
    with watching(tmp_path / "log", service.path(POINT / "file")) as watch:
        new.replace(service.path("/etc/secretfs/secrets"))
        watch.wait_for(f"password MOVED_TO {service.path(POINT / 'file')}/")
    assert password(service) == secret("unit, rotated")
    assert "not announced" not in service.journal(UNIT)


def test_a_daemon_that_is_not_root(service: System) -> None:
    """systemd-17: With `User=` and `AmbientCapabilities=` the daemon serves as a user other than root."""
    example = (ROOT / "examples/systemd/as-a-user.conf").read_text("utf-8")
    drop_in(service, *example.replace("User=secretfs", "User=daemon").splitlines())
    service.systemctl("start", UNIT)
    assert password(service) == secret("unit")
    pid = service.show(UNIT, "MainPID")
    assert service.output("ps", "-o", "user=", "-p", pid).strip() == "daemon"
    kept = service.output("grep", "-h", "-E", "^(CapPrm|CapAmb|NoNewPrivs):", f"/proc/{pid}/status").split()
    assert kept == ["CapPrm:", CAP_DAC_OVERRIDE, "CapAmb:", CAP_DAC_OVERRIDE, "NoNewPrivs:", "1"]
    new = service.path("/etc/secretfs/secrets.new")
    new.write_text(f'{{"password": "{secret("unit")}", "more": "{secret("more")}"}}', encoding="utf-8")
    new.replace(service.path("/etc/secretfs/secrets"))
    wait_until((service.path(POINT) / "file/more").exists)
    service.systemctl("restart", UNIT)
    assert password(service) == secret("unit")
    service.systemctl("stop", UNIT)
    assert os.listdir(service.path(POINT)) == []  # noqa: PTH208


def test_a_process_of_the_service_that_waits_for_the_mount(service: System) -> None:
    """systemd-15: A process of the service that waits for the mount, and cannot be killed, does not delay a restart."""
    # It stands for the helper that publishes changes: when the daemon is killed, that may be waiting for the next one.
    site, pid = service.path("/etc/secretfs/site"), service.path("/run/waiting")
    fails = {"secrets": {"value": {"x": {"k": "v"}}}, "fail": "fetch:x=hang"}
    annotations = {"secretfs/deadline": "60s"}
    component(service.path("/etc/secretfs/components"), "slow", fake_type.TYPE, fails, annotations=annotations)
    with service.path("/etc/secretfs/srv-secrets.conf").open("a", encoding="utf-8") as configuration:
        configuration.write(f"PYTHONPATH=/etc/secretfs/site:{ROOT}\n")
    with fake_type.installed(site):
        service.systemctl("start", UNIT)
    group = service.show(UNIT, "ControlGroup")
    script = (
        f"echo $$ > /sys/fs/cgroup{group}/cgroup.procs; echo $$ > /run/waiting.new; mv /run/waiting.new /run/waiting; "
        f"exec cat {POINT}/slow/x/k"
    )
    with subprocess.Popen([*service.enter(), "sh", "-c", script], stderr=subprocess.DEVNULL) as waiting:
        try:
            wait_until(lambda: pid.exists() and "request_wait_answer" in wchan(service, pid))
            assert password(service) == secret("unit")  # asked for after it, so that has been taken from the queue
            kill(service)
            service.wait_for(UNIT, "active")
            assert password(service) == secret("unit")
            assert waiting.poll() is None
            assert f"Found left-over process {pid.read_text('ascii').strip()} (cat)" in service.journal(UNIT)
        finally:
            service.systemctl("stop", UNIT)
            pid.unlink(missing_ok=True)


def wchan(system: System, pid: Path) -> str:
    """Return where in the kernel a process waits."""
    return system.path(f"/proc/{pid.read_text('ascii').strip()}/wchan").read_text("ascii")


def test_others_are_no_longer_let_in(service: System) -> None:
    """systemd-14: After a restart without `--allow-other` other users are shut out; open files are lost."""
    service.systemctl("start", UNIT)
    assert service.run("cat", PASSWORD, user=65534).returncode == 0
    configure(service, "--resources-path=/etc/secretfs/components --mode=0444")
    service.systemctl("restart", UNIT)
    assert service.run("cat", PASSWORD, user=65534).returncode != 0
    assert service.output("cat", PASSWORD) == secret("unit")
    assert "cannot be taken over: it was mounted with --allow-other" in service.journal(UNIT)


def test_hanging(service: System) -> None:
    """systemd-5: A daemon that hangs is killed and replaced after `WatchdogSec`; readers wait, and see no error."""
    drop_in(service, "[Service]", "WatchdogSec=500ms")
    service.systemctl("start", UNIT)
    before = service.show(UNIT, "MainPID")
    with Reader(service) as reader:
        signal_daemon(service, "STOP")
        wait_until(lambda: service.show(UNIT, "MainPID") not in (before, "0"))
        service.wait_for(UNIT, "active")
    assert "Watchdog timeout" in service.journal(UNIT)
    assert reader.failed == []


def test_alive(service: System) -> None:
    """A daemon that serves is never killed, however long it runs (systemd-5)."""
    drop_in(service, "[Service]", "WatchdogSec=300ms")
    service.systemctl("start", UNIT)
    before = service.show(UNIT, "WatchdogTimestampMonotonic")
    wait_until(lambda: int(service.show(UNIT, "WatchdogTimestampMonotonic")) > int(before) + 1_000_000)
    assert service.show(UNIT, "NRestarts") == "0"


def test_a_mistake(service: System) -> None:
    """systemd-6: A mistake in flags or manifests fails the start at once, is not tried again, and is in the journal."""
    configure(service, "--resources-path=/etc/secretfs/component")
    assert service.run("systemctl", "start", UNIT).returncode != 0
    assert (service.show(UNIT, "ActiveState"), service.show(UNIT, "NRestarts")) == ("failed", "0")
    assert "secretfs: /etc/secretfs/component: " in service.journal(UNIT)


def leave_mounted(system: System) -> None:
    """Have the daemon ended by a signal that it cannot act on, and have systemd think that all is well."""
    drop_in(system, "[Service]", "KillSignal=SIGKILL", "SuccessExitStatus=SIGKILL")
    system.systemctl("start", UNIT)


def test_stop_when_the_daemon_leaves_the_mount(service: System) -> None:
    """The unit unmounts after a stop, whatever the daemon could do itself (systemd-1)."""
    leave_mounted(service)
    service.systemctl("stop", UNIT)
    assert list(service.path(POINT).iterdir()) == []


def listing_ends_with(service: System, error: str) -> bool:
    """Tell whether a listing of the mount ends so.

    systemd closes what it stores of the mount after it has called the unit ended: whoever asks in between is told
    ECONNABORTED, once.
    """
    found = errno_of(os.listdir, service.path(POINT))
    assert found in (error, "ECONNABORTED")
    return found == error


def test_restart_when_the_daemon_leaves_the_mount(service: System) -> None:
    """systemd-8: Only a stop unmounts; a restart, a crash, or anything that may be one of them does not."""
    leave_mounted(service)
    drop_in(service, "[Service]", "KillSignal=SIGKILL", "ExecStart=", "ExecStart=/bin/false")
    assert service.run("systemctl", "restart", UNIT).returncode != 0
    service.systemctl("stop", UNIT)
    wait_until(lambda: listing_ends_with(service, "ENOTCONN"))


@pytest.mark.parametrize(("systemctl", "then"), [("/usr/bin/systemctl", ""), ("/usr/bin/systemctl.gone", "ENOTCONN")])
def test_a_daemon_that_ends_by_itself(service: System, systemctl: str, then: str) -> None:
    """The unit unmounts if no other daemon will follow, and if it knows that (systemd-8)."""
    leave_mounted(service)
    pid = service.show(UNIT, "MainPID")
    service.path("/usr/bin/systemctl").rename(service.path(systemctl))
    try:
        service.output("kill", "-KILL", pid)
        wait_until(lambda: "Deactivated successfully" in service.journal(UNIT).rpartition("Started ")[2])
    finally:
        service.path(systemctl).rename(service.path("/usr/bin/systemctl"))
    wait_until(lambda: listing_ends_with(service, then))


def test_given_up(service: System) -> None:
    """systemd-7: A daemon that is killed again and again is given up; its mount is ENOTCONN, never empty."""
    drop_in(service, "[Unit]", "StartLimitBurst=2")
    service.systemctl("start", UNIT)
    kill(service)
    service.wait_for(UNIT, "active")
    kill(service)
    service.wait_for(UNIT, "failed")
    wait_until(lambda: listing_ends_with(service, "ENOTCONN"))
    service.systemctl("reset-failed", UNIT)
    service.systemctl("start", UNIT)
    assert is_readable(service)


def test_a_bootstrap_secret(service: System) -> None:
    """systemd-9: What `LoadCredential=` gives the daemon is in /run/credentials/UNIT, and no other user can read it."""
    service.path("/etc/secretfs/secrets").rename(service.path("/etc/secretfs/bootstrap"))
    drop_in(service, "[Service]", "LoadCredential=bootstrap:/etc/secretfs/bootstrap")
    where = f"/run/credentials/{UNIT}/bootstrap"
    component(service.path("/etc/secretfs/components"), "file", "local.file", {"secretsFile": where})
    service.systemctl("start", UNIT)
    assert password(service) == secret("unit")
    assert service.run("cat", where, user=65534).returncode != 0


def test_the_credential_of_a_client(service: System) -> None:
    """systemd-10: A unit gets a secret through `LoadCredential=`, even from a mount that only root can read."""
    configure(service, "--resources-path=/etc/secretfs/components")
    service.systemctl("start", UNIT)
    assert client(service, f"LoadCredential=password:{PASSWORD}", "DynamicUser=yes", "ProtectSystem=strict") == secret(
        "unit"
    )


def client(system: System, *properties: str) -> str:
    """Return the credential that a unit with these properties sees."""
    command = ["systemd-run", "--quiet", "--wait", "--pipe", *(f"--property={value}" for value in properties)]
    return system.run(*command, "sh", "-c", 'cat "$CREDENTIALS_DIRECTORY/password"').stdout.decode()


def test_a_sandbox(service: System) -> None:
    """systemd-11: A unit in a sandbox that binds the parent directory of the mount point sees every later mount."""
    service.path("/run/systemd/system/client.service").write_text(
        "[Service]\nExecStart=sleep infinity\nDynamicUser=yes\nProtectSystem=strict\nPrivateTmp=yes\n"
        "BindReadOnlyPaths=/srv:/run/inside\n",
        encoding="utf-8",
    )
    service.systemctl("daemon-reload")
    service.systemctl("start", "client.service")
    pid = service.show("client.service", "MainPID")
    seen = ["nsenter", f"--target={pid}", "--mount", "setpriv", "--reuid=65534", "--clear-groups"]
    for _ in range(2):
        service.systemctl("start", UNIT)
        assert service.output(*seen, "cat", "/run/inside/secrets/file/password") == secret("unit")
        assert service.run(*seen, "touch", "/run/inside/x").returncode != 0
        service.systemctl("stop", UNIT)
        assert service.output(*seen, "ls", "/run/inside/secrets") == ""
    service.systemctl("stop", "client.service")


def test_a_bind_of_the_mount_point(service: System) -> None:
    """One that binds the mount point itself stays with its mount, and that outlives the daemon (systemd-4)."""
    service.systemctl("start", UNIT)
    start = ("systemd-run", "--quiet", "--unit=bound.service", f"--property=BindReadOnlyPaths={POINT}:/run/inside")
    service.output(*start, "sleep", "infinity")
    inside = ("nsenter", f"--target={service.show('bound.service', 'MainPID')}", "--mount")
    kill(service)
    service.wait_for(UNIT, "active")
    service.systemctl("restart", UNIT)
    assert service.output(*inside, "cat", "/run/inside/file/password") == secret("unit")
    service.systemctl("stop", "bound.service")


def test_a_users_service(service: System) -> None:
    """systemd-12: `systemctl --user` does the same for a user, without root."""
    service.output("useradd", "--create-home", "bert")
    home = service.path("/home/bert")
    user = home.stat().st_uid
    component(home / ".config/secretfs/components", "file", "local.file", {"secretsFile": "/home/bert/secrets.json"})
    (home / "secrets.json").write_text(f'{{"password": "{secret("bert")}"}}', encoding="utf-8")
    (home / ".config/secretfs/home-bert-secrets.conf").write_text(
        "SECRETFS_OPTIONS=--resources-path=/home/bert/.config/secretfs/components\n", encoding="utf-8"
    )
    (home / "secrets").mkdir()
    service.output("chown", "--recursive", "bert:", "/home/bert")
    service.systemctl("start", f"user@{user}.service")

    def as_bert(*command: str) -> str:
        done = service.run(*command, user=user, env={"XDG_RUNTIME_DIR": f"/run/user/{user}"})
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    unit = "secretfs@home-bert-secrets.service"
    as_bert("systemctl", "--user", "start", unit)
    assert as_bert("cat", "/home/bert/secrets/file/password") == secret("bert")
    as_bert("systemctl", "--user", "kill", "--signal=KILL", "--kill-whom=main", unit)
    shown = ("systemctl", "--user", "show", "--property=NRestarts,ActiveState", unit)
    wait_until(lambda: as_bert(*shown).split() == ["NRestarts=1", "ActiveState=active"])
    assert as_bert("cat", "/home/bert/secrets/file/password") == secret("bert")
    as_bert("systemctl", "--user", "stop", unit)
    assert as_bert("ls", "/home/bert/secrets") == ""
    service.systemctl("stop", f"user@{user}.service")


@pytest.mark.parametrize(
    "example", sorted((ROOT / "examples/systemd").glob("client-[cs]*.service")), ids=os.path.basename
)
def test_examples(service: System, example: Path) -> None:
    """The examples of clients do what they say (systemd-10, systemd-11)."""
    text = example.read_text(encoding="utf-8").replace("vault/db/password", "file/password")
    service.path(f"/run/systemd/system/{example.name}").write_text(text, encoding="utf-8")
    service.run("groupadd", "--force", "secrets")
    service.systemctl("daemon-reload")
    service.systemctl("start", example.name)
    if "oneshot" in text:
        assert service.journal(example.name).splitlines().count(str(len(secret("unit")))) == 1
    else:
        assert service.show(example.name, "ActiveState") == "active"
        service.systemctl("stop", example.name)


VOLUMES = "secretfs-volumes@srv-secrets"


def test_volumes(service: System) -> None:
    """volume-11: With the units, no call fails while the plug-in is killed or restarted."""
    service.path("/var/lib/secretfs/volumes").mkdir(parents=True)
    configure(service, "--resources-path=/etc/secretfs/components --apps=/var/lib/secretfs/volumes --allow-other")
    service.systemctl("start", UNIT, f"{VOLUMES}.socket")
    assert service.show(f"{VOLUMES}.service", "ActiveState") == "inactive"
    socket = service.path("/run/docker/plugins/secretfs.sock")
    engine = Engine(socket)
    assert socket.stat().st_mode & 0o777 == 0o600
    engine.driver("Create", "orders", Opts={"uid": "65534"})
    path = service.path(engine.driver("Mount", "orders", ID="1")["Mountpoint"])
    assert (path / "file/password").read_text(encoding="utf-8") == secret("unit")
    container = ["unshare", "--mount", "--propagation=private", "sh", "-c"]
    container += ["mount --bind /srv/secrets/orders /mnt && echo && exec sleep infinity"]
    with subprocess.Popen([*service.enter(), *container], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        for verb in (["kill", "--signal=KILL"], ["restart"]):
            service.systemctl(*verb, f"{VOLUMES}.service")
            assert "is mounted by 1 others" in engine.refused("Remove", "orders")
        service.output("pkill", "--full", "^sleep infinity")
    engine.driver("Remove", "orders")
    assert list(service.path("/var/lib/secretfs/volumes").iterdir()) == []
    service.systemctl("stop", f"{VOLUMES}.socket", f"{VOLUMES}.service")
    assert not leaked(service.journal(f"{VOLUMES}.service"))


EXPOSURE = {
    "secretfs@.service": {252: 42, 257: 40},
    "secretfs-volumes@.service": {252: 23, 257: 22},
    "client-credential.service": {252: 77, 257: 75},
    "client-sandboxed.service": {252: 54, 257: 53},
}
"""Ten times what `systemd-analyze security` says, from each version of systemd on. Of a user's unit it says nothing: a
user has little to give away."""


@pytest.mark.parametrize("path", UNITS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_units_are_right(system: System, path: Path) -> None:
    """`systemd-analyze verify` reports nothing, not even unknown values (systemd-1)."""
    unit = shown_to_systemd(system, path)
    done = system.run("systemd-analyze", "verify", "--recursive-errors=no", "--man=no", unit)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("name", EXPOSURE)
def test_units_are_hardened(system: System, name: str) -> None:
    """systemd-13: The daemon has no more privileges than it needs: `systemd-analyze security` says OK (4.2 or less)."""
    version = int(system.output("systemctl", "--version").split()[1])
    exposure = EXPOSURE[name][max(known for known in EXPOSURE[name] if known <= version)]
    (path,) = (path for path in UNITS if path.name == name and path.parent.name != "user")
    unit = shown_to_systemd(system, path)
    command = ("systemd-analyze", "security", "--offline=true")
    assert system.run(*command, f"--threshold={exposure}", unit).returncode == 0
    assert system.run(*command, f"--threshold={exposure - 1}", unit).returncode != 0


def shown_to_systemd(system: System, path: Path) -> Path:
    """Return where a unit is: installed, or for an example as if it were."""
    if path.parent != EXAMPLES:
        return Path("/usr/local/lib/systemd", path.parent.name, path.name)
    inside = Path("/run/systemd/system", path.name)
    system.path(inside).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return inside


def test_audit_to_the_journal(service: System) -> None:
    """audit-13: With `--audit-to=journal` records have native fields; `journalctl -u UNIT` has what a unit opens."""
    flags = "--resources-path=/etc/secretfs/components --audit=strict --audit-to=journal"
    configure(service, flags)
    drop_in(service, "[Service]", "CapabilityBoundingSet=CAP_SYS_PTRACE")
    service.systemctl("start", UNIT)
    script = f"exec 3< {PASSWORD}; exec sleep 1000"
    service.output("systemd-run", "--unit=opener", "sh", "-c", script)
    try:
        wait_until(lambda: service.output("journalctl", "--output=json", "SECRETFS_EVENT=open"))
        (entry,) = map(json.loads, service.output("journalctl", "--output=json", "SECRETFS_EVENT=open").splitlines())
        found = {name.removeprefix("SECRETFS_"): value for name, value in entry.items()}
        assert (found["SECRET"], found["RESULT"], found["UNIT"], found["UID"]) == (
            "password",
            "ok",
            "opener.service",
            "0",
        )
        assert Path(found["EXECUTABLE"]).name in ("dash", "bash", "sh")
        assert entry["OBJECT_PID"] == found["PID"] == service.show("opener.service", "MainPID")
        assert "open file/password/password: result ok" in service.journal("opener.service")
    finally:
        service.systemctl("stop", "opener.service")
