"""From the mount to the last unmount, and what is left when the daemon is killed."""

import json
import os
import signal
from pathlib import Path

import pytest

from secretfs.linux.mountinfo import is_mounted
from tests.support.canary import leaked, secret
from tests.support.command import ROOT, background, end_daemons, secretfs
from tests.support.fake_type import Fakes
from tests.support.manifests import component
from tests.support.mounted import KERNEL_ANSWERS, fuse_mounts, mounted, unmount
from tests.support.shell import errno_of, refused_mount, run
from tests.support.waiting import PATIENCE, wait_for_text, wait_until

pytestmark = pytest.mark.mount

ENVIRONMENT = {"LIFE_TOKEN": secret("life")}


@pytest.fixture(scope="module")
def manifests(scratch: Path) -> Path:
    component(scratch / "manifests", "env", "local.env", {"prefix": "LIFE_"})
    return scratch / "manifests"


def test_ready_when_it_returns(manifests: Path, tmp_path: Path) -> None:
    """life-2: `secretfs mount` returns when the files can be read, and the daemon goes on in the background."""
    point = tmp_path / "mnt"
    with background(point, "--resources-path", manifests, env=ENVIRONMENT) as daemon:
        assert (point / "env/TOKEN").read_text() == secret("life")
        assert Path(f"/proc/{daemon}").exists()


def test_a_mount_point_that_is_not_empty(manifests: Path, tmp_path: Path) -> None:
    """life-13: `secretfs mount` refuses a mount point that is not empty (exit code 3), unless `--nonempty` is given."""
    point = tmp_path / "mnt"
    point.mkdir()
    (point / "a file").write_text("still there")
    try:
        done = secretfs("mount", "--resources-path", manifests, point)
        assert done.status == 3
        assert f"cannot mount at {point}: it is not empty; name an empty directory" in done.err
        assert str(point) not in fuse_mounts()
    finally:
        end_daemons(point)
    with background(point, "--nonempty", "--resources-path", manifests, env=ENVIRONMENT):
        assert os.listdir(point) == ["env"]  # noqa: PTH208
    assert (point / "a file").read_text() == "still there"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_signals(manifests: Path, number: signal.Signals) -> None:
    """life-3: SIGTERM and SIGINT unmount and end the daemon with exit code 0; SIGHUP does not."""
    with mounted(manifests, env=ENVIRONMENT) as mount:
        mount.process.send_signal(signal.SIGHUP)
        mount.said("INFO serving env")
        assert (mount.path / "env/TOKEN").read_text() == secret("life")
        mount.process.send_signal(number)
        assert mount.process.wait(PATIENCE) == 0
        assert str(mount.path) not in fuse_mounts()


def test_unmount(manifests: Path) -> None:
    """life-4: `secretfs unmount` unmounts and ends the daemon with exit code 0; so does a plain `umount`."""
    for command in ("secretfs", "umount"):
        with mounted(manifests, env=ENVIRONMENT) as mount:
            if command == "umount":
                unmount(mount.path)
            else:
                assert secretfs("unmount", mount.path).status == 0
            assert mount.process.wait(PATIENCE) == 0
            assert str(mount.path) not in fuse_mounts()


def test_unmount_while_in_use(manifests: Path) -> None:
    """life-5: `secretfs unmount` fails with exit code 3 while a file is open, says so, and changes nothing."""
    with mounted(manifests, env=ENVIRONMENT) as mount:
        with (mount.path / "env/TOKEN").open() as file:
            done = secretfs("unmount", mount.path)
            assert done.status == 3
            assert "busy" in done.err
            assert file.read() == secret("life")
            assert (mount.path / "env/TOKEN").read_text() == secret("life")
        assert secretfs("unmount", mount.path).status == 0
        assert mount.process.wait(PATIENCE) == 0


def test_unmount_of_nothing(tmp_path: Path) -> None:
    """life-6: `secretfs unmount` unmounts nothing but a secretfs."""
    done = secretfs("unmount", tmp_path)
    assert done.status == 3
    assert "has no secretfs mounted" in done.err


def test_a_killed_daemon(manifests: Path) -> None:
    """life-7: If all processes of a mount are killed, reads and listings are ENOTCONN: the mount never looks empty."""
    with mounted(manifests, env=ENVIRONMENT) as mount:
        (mount.path / "env/TOKEN").read_bytes()
        mount.kill()
        for path in (mount.path, mount.path / "env"):
            assert errno_of(os.listdir, path) == "ENOTCONN"
            assert errno_of(os.statvfs, path) == "ENOTCONN"
            assert errno_of((path / "never-asked-for").stat) == "ENOTCONN"
        if not KERNEL_ANSWERS:  # else it is served for the rest of its ttl
            assert errno_of((mount.path / "env/TOKEN").read_bytes) == "ENOTCONN"
        assert b"Transport endpoint is not connected" in run("ls", mount.path).stderr


@pytest.mark.parametrize("attempt", range(5))
def test_killed_at_once(manifests: Path, attempt: int) -> None:
    """life-12: The daemon may be killed at any moment, even just after it has mounted: the mount does not hang."""
    with mounted(manifests, env=ENVIRONMENT) as mount:
        mount.kill()
        assert errno_of(os.listdir, mount.path) == "ENOTCONN"


def test_a_dead_mount_is_replaced(manifests: Path) -> None:
    """life-8: The next `secretfs mount` at the same mount point replaces a dead mount."""
    with mounted(manifests, env=ENVIRONMENT) as dead:
        dead.kill()
        with background(dead.path, "--resources-path", manifests, env=ENVIRONMENT):
            assert (dead.path / "env/TOKEN").read_text() == secret("life")
        assert str(dead.path) not in fuse_mounts()


def test_a_dead_mount_can_be_unmounted(manifests: Path) -> None:
    """`secretfs unmount` clears a dead mount too (life-8)."""
    with mounted(manifests, env=ENVIRONMENT) as dead:
        dead.kill()
        assert secretfs("unmount", dead.path).status == 0
        assert not is_mounted(dead.path)


def test_mounted_already(manifests: Path) -> None:
    """life-9: A live mount is not replaced: the second `secretfs mount` fails with exit code 3 and says so."""
    with mounted(manifests, env=ENVIRONMENT) as mount:
        done = secretfs("mount", "--resources-path", manifests, mount.path)
        assert done.status == 3
        assert "has a secretfs mounted already" in done.err
        assert (mount.path / "env/TOKEN").read_text() == secret("life")


def test_no_store(tmp_path: Path) -> None:
    """life-10: A mount without any store is refused (exit code 2), because it would look like "no secrets"."""
    component(tmp_path / "m", "env", "local.env", scopes=["another-app"])
    code, told = refused_mount(tmp_path / "m", "--app-id", "this-app")
    assert code == 2
    assert "no secret store for app id this-app" in told


def test_what_else_is_in_a_directory_of_manifests(tmp_path: Path) -> None:
    """life-14: What else is in a directory of manifests, broken or not, stops no mount, and no reload."""
    directory = tmp_path / "components"
    path = component(directory, "file", "local.file", {"secretsFile": "components/secrets.json"})
    (directory / "secrets.json").write_text(json.dumps({"a": secret("neighbour")}))
    (tmp_path / "utf16").mkdir()
    (tmp_path / "utf16/more.yaml").write_bytes(path.read_text().replace("name: file", "name: more").encode("utf-16"))
    resources = ("--resources-path", directory, "--resources-path", tmp_path / "utf16")

    checked = secretfs("check", *resources, cwd=tmp_path)
    assert (checked.status, checked.err) == (0, "")  # Dapr's own quickstart: there is nothing to warn of

    (directory / ".#file.yaml").symlink_to("user@host.1:2")
    (directory / "._file.yaml").write_bytes(b"\0\5\26\7\0Mac OS X \xff")
    (directory / "file.yaml~").write_text("backup")
    (directory / "state.yaml").write_text("kind: Component\nspec:\n  type: state.redis\n  metadata: [\n")
    (directory / "chart.yaml").write_text("{{- range .Values.all }}\nkind: Deployment\n{{- end }}\n")
    point = tmp_path / "mnt"
    with background(point, *resources, cwd=tmp_path):
        assert (point / "file/a").read_text() == (point / "more/a").read_text() == secret("neighbour")
        (directory / "late.yaml").write_text("kind: Component\nspec:\n  type: pubsub.redis\n  metadata: [\n")
        component(directory, "late-store", "local.file", {"secretsFile": "components/secrets.json"})
        wait_until((point / "late-store").exists)
    checked = secretfs("check", *resources, cwd=tmp_path)
    assert checked.status == 1
    assert [Path(line.split(": ")[1].split(":")[0]).name for line in checked.lines] == [
        *(".#file.yaml", "._file.yaml", "chart.yaml", "file.yaml~", "late.yaml", "state.yaml")
    ]


def test_a_store_that_cannot_be_opened_yet(tmp_path: Path) -> None:
    """life-15: With `ignoreErrors: true` a store that cannot be opened is shown: EIO or EACCES until it opens."""
    document = component(tmp_path / "m", "late", "local.file", {"secretsFile": tmp_path / "late.json"})
    document.write_text(document.read_text().replace("spec:", "spec:\n  ignoreErrors: true"))
    checked = secretfs("check", "--resources-path", tmp_path / "m")
    assert checked.status == 1
    assert "late/  (cannot be read, see below)" in checked.out
    with mounted(tmp_path / "m", expect_log=[r"late\.json: No such file or directory"]) as mount:
        assert os.listdir(mount.path) == ["late"]  # noqa: PTH208
        for name in ("", "a", "a/b", ".bulk.json"):
            assert errno_of(os.stat if name else os.listdir, mount.path / "late" / name) == "EIO"
        assert (mount.path / "late").is_dir()
        wait_for_text(lambda: mount.log, "late.json: No such file or directory (component late) (ignoreErrors)")


@pytest.mark.timeout(180)  # it is tried again after 5 s, then after 10 s more
def test_it_opens_later(tmp_path: Path) -> None:
    """life-16: It opens by itself, also when its secrets file comes later; until then `status` exits with 1."""
    document = component(tmp_path / "m", "late", "local.file", {"secretsFile": tmp_path / "late.json"})
    document.write_text(document.read_text().replace("spec:", "spec:\n  ignoreErrors: true"))
    with mounted(tmp_path / "m", expect_log=[r"late\.json: No such file or directory"]) as mount:
        told = secretfs("status", mount.path)
        assert told.status == 1
        assert "late is down: StoreError" in told.out
        assert "late.json: No such file or directory" in told.out
        (tmp_path / "late.json").write_text(json.dumps({"a": secret("late")}))
        wait_until(lambda: secretfs("status", mount.path).status == 0)
        assert (mount.path / "late/a").read_text() == secret("late")


# --- defects ---


@pytest.fixture(scope="module")
def site(scratch: Path) -> Path:
    """Make a directory that is like site-packages, with a store type of somebody else."""
    information = scratch / "site/fake_store-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-store\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[secretfs.stores]\nsecretstores.fake = tests.support.fake_type\n")
    return scratch / "site"


def test_a_defect(site: Path, tmp_path: Path) -> None:
    """error-11: A defect in secretfs or in a store is EIO for the callers that hit it, nobody else; the mount lives."""
    fakes = Fakes(tmp_path / "m", site)
    healthy = json.dumps({name: {"key": secret(name)} for name in ("good", "bad")})
    trouble = "fetch:bad=ValueError fetch:worse=OSError names:folder=ValueError"
    fakes.add("fake", secrets=healthy, fail=trouble, annotations={"secretfs/ttl": "100ms"})
    fakes.add("unlisted", secrets=healthy, fail="names:=ValueError")
    environment = {"PYTHONPATH": f"{ROOT}:{site}"}
    with mounted(tmp_path / "m", env=environment, expect_log=DEFECT) as mount:
        for _ in range(3):
            assert errno_of((mount.path / "fake/bad/key").read_bytes) == "EIO"
            assert errno_of(os.listdir, mount.path / "fake/bad") == "EIO"
            assert errno_of(os.listdir, mount.path / "unlisted") == "EIO"
            assert errno_of((mount.path / "unlisted/good").stat) == "EIO"
            assert errno_of((mount.path / "fake/.bulk.json").read_bytes) == "EIO"
            assert (mount.path / "fake/good/key").read_text() == secret("good")
            assert run("ls", mount.path / "fake").stdout == b"bad\ngood\n"
        assert mount.process.poll() is None
        mount.said("ValueError")
        mount.said('fake_type.py", line')
        mount.said("in go_wrong")  # the place; `mounted` sees to it that the text of the error is not there


DEFECT = [
    "^ERROR a defect in secretfs or in a store$",
    "^Traceback",
    "^  ",
    "^Exception: (?:Value|Key)Error",
    ": unexpected ",
]


def test_a_defect_says_where(site: Path, tmp_path: Path) -> None:
    """error-4: The log names the place and the kind of a defect, never its text, which may contain a secret."""
    fakes = Fakes(tmp_path / "m", site)
    fakes.add("fake", secrets='{"bad": {"key": "x"}}', fail="fetch:bad=ValueError")
    with mounted(tmp_path / "m", env={"PYTHONPATH": f"{ROOT}:{site}"}, expect_log=DEFECT) as mount:
        assert errno_of((mount.path / "fake/bad/key").stat) == "EIO"
        mount.said("ValueError (its text is withheld")
        mount.said("in go_wrong")
        assert not leaked(mount.log)


def test_a_hung_store_does_not_keep_the_daemon(site: Path, tmp_path: Path) -> None:
    """life-11: A store that hangs does not keep the daemon from ending."""
    fakes = Fakes(tmp_path / "m", site)
    fakes.add(
        "fake", secrets='{"bad": {"key": "x"}}', fail="fetch:bad=hang", annotations={"secretfs/deadline": "200ms"}
    )
    environment = {"PYTHONPATH": f"{ROOT}:{site}"}
    with mounted(tmp_path / "m", env=environment, expect_log=["no answer within"]) as mount:
        assert errno_of((mount.path / "fake/bad/key").stat) == "ETIMEDOUT"
        mount.process.send_signal(signal.SIGTERM)
        assert mount.process.wait(PATIENCE) == 0


FORGETS_BADLY = """
from secretfs.fs.vfs import SecretVFS

def forget(self, inode, lookups):
    raise KeyError(inode)

SecretVFS.forget = forget
"""


def test_a_defect_in_forget_costs_nobody_the_mount(manifests: Path, tmp_path: Path) -> None:
    """A defect while the kernel forgets a file ends no mount either (error-11)."""
    (tmp_path / "sitecustomize.py").write_text(FORGETS_BADLY)
    env = ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    with mounted(manifests, env=env, expect_log=DEFECT) as mount:
        worker = mount.worker
        for _ in range(3):  # another inode each time, so the kernel forgets the one before
            (mount.path / ".secretfs/refresh").write_text("env")
        mount.said("a defect in secretfs", 2)
        assert (mount.path / "env/TOKEN").read_text() == secret("life")
        assert mount.worker == worker
