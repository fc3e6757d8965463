"""A mount for many apps: each has a directory, with its own stores, scopes, owner and permissions."""

import itertools
import json
import mmap
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import fake_type
from tests.support.app_host import BILLING, NOBODY, ORDERS, SECRETS, TLS, Host, host, list_as, mount, read_as
from tests.support.canary import secret
from tests.support.command import ROOT, secretfs
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, wait_until
from tests.support.watching import watching

__all__ = ["file", "host", "mount"]

pytestmark = [pytest.mark.mount, pytest.mark.root("needs to mount for other users, which only root can")]

MAPPED = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as memory:
    print(memory[:].decode(), flush=True)
    sys.stdin.read()
    print(memory[:].decode(), flush=True)
"""
"""Maps a file, and reads it again when it is told to."""


def test_each_app_has_a_directory(mount: Mounted) -> None:
    """app-1: With `--apps`, each app has a directory at the root, which only its owner and root can enter."""
    assert sorted(os.listdir(mount.path)) == ["billing", "orders"]  # noqa: PTH208 - names are what counts
    for app, user in {"orders": ORDERS, "billing": BILLING}.items():
        status = (mount.path / app).stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (user, user, 0o500)
        assert (mount.path / app / "file/db/password").stat().st_uid == user
    for reader, (app, owner) in itertools.product(
        (ORDERS, BILLING, NOBODY), {"orders": ORDERS, "billing": BILLING}.items()
    ):
        expected = secret("db") if reader == owner else "Permission denied"
        assert read_as(reader, mount.path / app / "file/db/password") == expected


def test_nobody_lists_the_apps(mount: Mounted) -> None:
    """app-2: The root lists its apps to root and to the user who mounted; others get EACCES."""
    assert (mount.path.stat().st_uid, mount.path.stat().st_mode & 0o777) == (os.getuid(), 0o711)
    assert list_as(ORDERS, mount.path) == "Permission denied"
    assert list_as(ORDERS, mount.path / "orders") == "file\n"
    assert list_as(ORDERS, mount.path / "billing") == "Permission denied"
    assert list_as(ORDERS, mount.path / "never-declared") == "No such file or directory"


def test_each_app_has_its_own_view(host: Host, tmp_path: Path) -> None:
    """app-3: An app sees the stores, secrets and templates that a mount for it alone would show."""
    (tmp_path / "orders.json").write_text(json.dumps({"own": secret("own")}), encoding="utf-8")
    (tmp_path / "billing.json").write_text("{}", encoding="utf-8")
    component(host.components, "own", "local.file", {"secretsFile": f"{tmp_path}/{{appID}}.json"})
    component(host.components, "env", "local.env", {"prefix": "APPS_TEST_"}, scopes=["billing"])
    strict = configuration(host.configs, scope("file", default="deny", allowed=["tls/key"]), name="strict")
    wide = configuration(host.configs, name="wide")
    host.add("orders", {"owner": str(ORDERS), "configuration": "strict"})
    host.add("billing", {"owner": str(BILLING), "configuration": "wide"})
    config = [strict, wide]
    with mounted(host.components, config=config, options=host.options, mountpoint=host.mountpoint) as mount:
        seen = {
            app: sorted(str(path.relative_to(mount.path / app)) for path in (mount.path / app).rglob("*"))
            for app in ("orders", "billing")
        }
    assert seen["orders"] == ["file", "file/tls", "file/tls/key", "own", "own/own"]
    assert seen["billing"][:2] == ["env", "file"]
    assert "file/db/password" in seen["billing"]
    assert "own/own" not in seen["billing"]


def test_a_secret_is_fetched_once_for_all(host: Host, mount: Mounted) -> None:
    """app-4: A store that several apps see is opened once; what one of them has read is not asked for again."""

    def calls() -> dict[str, int]:
        status = json.loads((mount.path / ".secretfs/status.json").read_text(encoding="utf-8"))
        return {name: store["calls"]["fetch"]["made"] for name, store in status["stores"].items()}

    (mount.path / "orders/file/db/password").read_bytes()
    before = calls()
    (mount.path / "billing/file/db/password").read_bytes()
    assert calls() == before
    assert set(before) == {"file"}


def test_a_rotation_reaches_the_watchers_of_every_app(mount: Mounted, file: SecretsFile, tmp_path: Path) -> None:
    """app-5: A change is published in the directory of each app that sees it."""
    directories = [mount.path / app / "file/db" for app in ("orders", "billing")]
    for directory in directories:
        (directory / "password").read_bytes()
    with watching(tmp_path / "log", *directories) as watch:
        file.write({**SECRETS, "db": {"password": secret("new"), "user": secret("user")}})
        watch.wait_for(*(f"password MOVED_TO {directory}/" for directory in directories))
    assert {(directory / "password").read_text() for directory in directories} == {secret("new")}


def test_apps_come_and_go(host: Host, mount: Mounted, tmp_path: Path) -> None:
    """app-6: An edit of the documents adds, changes and removes apps; files of other apps stay as they are."""
    with (mount.path / "orders/file/db/password").open("rb") as held, watching(tmp_path / "log", mount.path) as watch:
        inode = os.fstat(held.fileno()).st_ino
        host.add("third", {"owner": str(NOBODY)})
        watch.wait_for(f"third CREATE,ISDIR {mount.path}/")
        assert read_as(NOBODY, mount.path / "third/file/tls/key") == secret("key")
        host.add("third", {"owner": str(TLS)})
        wait_until(lambda: read_as(TLS, mount.path / "third/file/tls/key") == secret("key"))
        assert read_as(NOBODY, mount.path / "third/file/tls/key") == "Permission denied"
        host.remove("third")
        watch.wait_for(f"third DELETE,ISDIR {mount.path}/")
        assert errno_of((mount.path / "third").stat) == "ENOENT"
        assert (mount.path / "orders/file/db/password").stat().st_ino == inode


def test_a_mistake_changes_nothing(host: Host) -> None:
    """app-7: A mistake in a document is logged with file and line, and leaves every app as it is."""
    told = [
        rf"^ERROR .*{host.apps}/third\.yaml:1: spec\.owner: there is no user 'no-such-user' .*; nothing is changed$"
    ]
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint, expect_log=told) as mount:
        host.add("third", {"owner": "no-such-user"})
        mount.said("nothing is changed")
        assert sorted(os.listdir(mount.path)) == ["billing", "orders"]  # noqa: PTH208 - likewise
        assert (mount.path / "orders/file/tls/key").read_text() == secret("key")


def test_before_mounting_a_mistake_stops_it(host: Host) -> None:
    """A mistake stops the start with file and line (app-7, life-1)."""
    host.add("third", {"mode": "0777"})
    done = secretfs("mount", "--resources-path", host.components, *host.options, host.mountpoint)
    assert done.status == 2
    assert f"{host.apps}/third.yaml:1: spec.mode: '0777': a file here can be read and nothing else" in done.err


def test_permission_rules(host: Host) -> None:
    """app-8: The first permission rule that matches gives a secret another group or mode."""
    rules = [{"match": "file/tls/*", "group": str(TLS), "mode": "0440"}]
    host.add("orders", {"owner": str(ORDERS), "permissions": rules})
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint) as mount:
        key, password = mount.path / "orders/file/tls/key", mount.path / "orders/file/db/password"
        assert (key.stat().st_gid, key.stat().st_mode & 0o777) == (TLS, 0o440)
        assert read_as(ORDERS, key) == secret("key")
        assert read_as(TLS, key) == secret("key")
        assert read_as(NOBODY, key, TLS) == secret("key")
        assert read_as(NOBODY, key) == "Permission denied"
        assert read_as(TLS, password) == "Permission denied"
        assert list_as(TLS, mount.path / "orders") == "Permission denied"
        assert read_as(TLS, mount.path / "orders/file/.bulk.json") == "Permission denied"


def test_the_annotation_holds_for_a_mount_of_one_app_too(host: Host, file: SecretsFile) -> None:
    """app-9: The annotation `secretfs/permissions` of a component has the same rules, also without `--apps`."""
    annotations = {"secretfs/permissions": f"[{{match: 'file/tls/*', group: {TLS}, mode: 0440}}]"}
    properties = {"secretsFile": file.path, "nestedSeparator": "/"}
    component(host.components, "file", "local.file", properties, annotations=annotations)
    with mounted(host.components, options=["--allow-other"], mountpoint=host.mountpoint) as mount:
        assert read_as(TLS, mount.path / "file/tls/key") == secret("key")
        assert read_as(TLS, mount.path / "file/db/password") == "Permission denied"


def test_a_takeover_keeps_every_app(host: Host) -> None:
    """app-10: A daemon that is killed is replaced for all apps; open files stay open."""
    told = ["killed by SIGKILL"]
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint, expect_log=told) as mount:
        paths = [mount.path / app / "file/db/password" for app in ("orders", "billing")]
        with paths[0].open("rb") as held:
            inodes = [path.stat().st_ino for path in paths]
            os.kill(mount.worker, signal.SIGKILL)
            assert held.read().decode() == secret("db")
            assert [path.read_text() for path in paths] == [secret("db")] * 2
            assert [path.stat().st_ino for path in paths] == inodes


def test_an_app_that_goes_while_nobody_serves(host: Host) -> None:
    """An app that is removed while nobody serves is gone afterwards (app-6, app-10)."""
    with mounted(
        host.components, options=host.options, mountpoint=host.mountpoint, expect_log=["killed by SIGKILL"]
    ) as mount:
        (mount.path / "billing/file/db/password").read_bytes()
        host.remove("billing")
        os.kill(mount.worker, signal.SIGKILL)
        wait_until(lambda: os.listdir(mount.path) == ["orders"])  # noqa: PTH208 - likewise
        wait_until(lambda: errno_of((mount.path / "billing").stat) == "ENOENT")


def test_refresh_takes_paths_of_apps(mount: Mounted) -> None:
    """`refresh` takes a path below the mount point, which begins with the app (control-2)."""
    (mount.path / "orders/file/db/password").read_bytes()
    for path in ("orders/file/db/password", "orders/file", "orders", "/"):
        assert secretfs("refresh", mount.path, *([path] if path != "/" else [])).status == 0, path
    assert secretfs("refresh", mount.path, "never-declared/file").status != 0


def test_a_reload_by_hand(host: Host) -> None:
    """control-11: A write to `reload` shows what is declared now; after a mistake it is EINVAL and changes nothing."""
    told = ["there is no user 'no-such-user' .*; nothing is changed"]
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint, expect_log=told) as mount:
        control = mount.path / ".secretfs/reload"
        host.add("third", {"owner": str(NOBODY)})
        control.write_text("*")
        assert (mount.path / "third").stat().st_uid == NOBODY
        host.add("third", {"owner": "no-such-user"})
        assert errno_of(control.write_text, "*") == "EINVAL"
        assert (mount.path / "third").stat().st_uid == NOBODY
        declared = json.loads((mount.path / ".secretfs/status.json").read_text(encoding="utf-8"))["declaration"]
        assert declared["apps"] == ["billing", "orders", "third"]
        assert "third.yaml:1: spec.owner: there is no user" in declared["error"]


def test_an_app_that_hammers_starves_no_other(host: Host, tmp_path: Path) -> None:
    """app-12: An app whose questions pile up, or hang, leaves room for the questions of the others."""
    hog = [f"hog-{number}" for number in range(20)]
    values = {name: {"key": secret(name)} for name in (*hog, "db")}
    fails = " ".join(f"fetch:{name}=hang" for name in hog)
    properties = {"secrets": json.dumps(values), "fail": fails}
    component(host.components, "slow", fake_type.TYPE, properties, annotations={"secretfs/deadline": "60s"})
    with (
        fake_type.installed(tmp_path / "site") as site,
        mounted(
            host.components, options=host.options, mountpoint=host.mountpoint, env={"PYTHONPATH": f"{ROOT}:{site}"}
        ) as mount,
        ThreadPoolExecutor(len(hog)) as threads,
    ):

        def calls() -> dict[str, dict[str, int]]:
            status = json.loads((mount.path / ".secretfs/status.json").read_text(encoding="utf-8"))
            apps: dict[str, dict[str, int]] = status["calls"]["apps"]
            return apps

        for name in hog:
            threads.submit((mount.path / f"orders/slow/{name}/key").read_bytes)
        busy = {"orders": {"waiting": 16, "running": 4}}
        wait_until(lambda: calls() == busy)
        assert (mount.path / "billing/slow/db/key").read_text() == secret("db")
        assert calls() == busy
        assert "app orders: 16 calls wait for their turn, 4 run" in secretfs("status", mount.path).out
        subprocess.run(["umount", "--lazy", "--force", mount.path], check=True)


@pytest.mark.parametrize("round", range(3))
def test_a_kill_while_an_app_is_removed(host: Host, file: SecretsFile, round: int) -> None:  # noqa: A002
    """A daemon that is killed while it drops the bytes of a removed app is replaced: nothing hangs (app-13)."""
    file.write({"many": {f"key-{number}": secret(str(number)) for number in range(100)}})
    told = ["killed by SIGKILL"]
    with mounted(host.components, options=host.options, mountpoint=host.mountpoint, expect_log=told) as mount:
        directory = mount.path / "billing/file/many"
        descriptors = [os.open(directory / f"key-{number}", os.O_RDONLY) for number in range(100)]
        try:
            maps = [mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) for descriptor in descriptors]
            assert [memory[:].decode() for memory in maps] == [secret(str(number)) for number in range(100)]
            host.remove("billing")
            worker = os.pidfd_open(mount.worker)
            with ThreadPoolExecutor(1) as thread:
                asked = thread.submit((mount.path / ".secretfs/reload").write_text, "*")
                mount.said("removed billing: files that are still open fail")
                time.sleep(round / 100)  # each time somewhere else in that work
                signal.pidfd_send_signal(worker, signal.SIGKILL)
                asked.exception()
            os.close(worker)
            mount.said("took over")
            wait_until(lambda: {errno_of(os.pread, fd, 100, 0) for fd in descriptors} == {"ESTALE"})
            assert (mount.path / "orders/file/many/key-7").read_text() == secret("7")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


KILLED_WHILE_IT_HANGS = ["does not answer: it is killed", r"ended \(it did not answer\)"]
"""A store still hangs when its mount is gone: the supervisor may be faster than the daemon."""

HOG = """
import errno, os, sys, threading
threading.stack_size(1 << 16)
outcomes = []

def read(number):
    try:
        os.stat(f"{sys.argv[1]}/key-{number}")
    except OSError as error:
        outcomes.append(errno.errorcode[error.errno])

threads = [threading.Thread(target=read, args=(number,)) for number in range(int(sys.argv[2]))]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(outcomes.count("EAGAIN"))
"""
"""Looks up many names at once, and prints how many of these calls ended with EAGAIN."""


@pytest.mark.timeout(300)
def test_the_requests_of_an_app_that_wait(host: Host, tmp_path: Path) -> None:
    """app-18: An app has at most half of the 10,000 places for requests that wait; more fail with EAGAIN."""
    properties = {"secrets": json.dumps({"hog": {}, "db": {"key": secret("db")}}), "fail": "fetch:hog=hang"}
    component(host.components, "slow", fake_type.TYPE, properties, annotations={"secretfs/deadline": "300s"})
    with (
        fake_type.installed(tmp_path / "site") as site,
        mounted(
            host.components,
            options=host.options,
            mountpoint=host.mountpoint,
            env={"PYTHONPATH": f"{ROOT}:{site}"},
            expect_log=[r"app orders: (5000|49\d\d) requests wait, and more fail with EAGAIN", *KILLED_WHILE_IT_HANGS],
        ) as mount,
    ):

        def requests() -> dict[str, int]:
            status = json.loads((mount.path / ".secretfs/status.json").read_text(encoding="utf-8"))
            work: dict[str, int] = status["requests"].get("orders", {"waiting": 0, "refused": 0})
            return work

        directory = mount.path / "orders/slow/hog"
        with subprocess.Popen([sys.executable, "-c", HOG, directory, "5200"], stdout=subprocess.PIPE) as process:
            wait_until(lambda: sum(requests().values()) >= 5200, within=200)
            assert 4990 <= requests()["waiting"] <= 5000
            assert (mount.path / "billing/slow/db/key").read_text() == secret("db")
            assert "were too many (EAGAIN)" in secretfs("status", mount.path).out
            subprocess.run(["umount", "--lazy", "--force", mount.path], check=True)
            assert int(process.communicate()[0]) >= 200


def test_the_open_files_of_an_app_that_is_removed(host: Host, mount: Mounted) -> None:
    """app-13: When an app is removed, its open files fail with ESTALE; mapped ones end the process with SIGBUS."""
    kept = (mount.path / "orders/file/db/password").open("rb", buffering=0)
    held = (mount.path / "billing/file/db/password").open("rb", buffering=0)
    with kept, held:
        with subprocess.Popen(
            [sys.executable, "-c", MAPPED, str(mount.path / "billing/file/tls/key")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as mapped:
            assert mapped.stdin
            assert mapped.stdout
            assert mapped.stdout.readline().decode() == secret("key") + "\n"
            assert held.read().decode() == secret("db")
            assert secretfs("apps", "remove", mount.path, "billing").status == 0
            mapped.stdin.close()
            assert mapped.wait() == -signal.SIGBUS
        held.seek(0)
        assert errno_of(held.read) == "ESTALE"
        assert errno_of(Path(f"/proc/self/fd/{held.fileno()}").read_bytes) == "ESTALE"
        assert kept.read().decode() == secret("db")
        host.add("billing", {"owner": str(BILLING)})
        (mount.path / ".secretfs/reload").write_text("*")
        assert (mount.path / "billing/file/db/password").read_text() == secret("db")
        assert errno_of(held.read) == "ESTALE"
    mount.said("removed billing: files that are still open fail, 2 at most")


def test_one_app_or_many(host: Host) -> None:
    """`--app-id` and `--apps` exclude each other (app-1)."""
    done = secretfs("mount", "--app-id", "orders", *host.options, host.mountpoint)
    assert done.status == 2
    assert "--app-id shows one app and --apps shows many: leave one of them out" in done.err


class TestAppsCommand:
    """app-11: `secretfs apps apply` and `remove` return when the mount shows the change."""

    def document(self, path: Path, name: str, **spec: object) -> Path:
        document = {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": name}, "spec": spec}
        path.write_text(json.dumps(document), encoding="utf-8")
        return path

    def test_apply_list_and_remove(self, mount: Mounted, tmp_path: Path) -> None:
        """app-11: `secretfs apps apply` and `remove` return when the mount shows the change."""
        document = self.document(tmp_path / "any-name", "third", owner=str(NOBODY))
        assert secretfs("apps", "list", mount.path).out.split() == ["billing", "orders"]
        assert secretfs("apps", "apply", mount.path, document).status == 0
        assert (mount.path / "third/file/tls/key").stat().st_uid == NOBODY
        assert secretfs("apps", "list", mount.path).out.split() == ["billing", "orders", "third"]
        assert secretfs("apps", "remove", mount.path, "third").status == 0
        assert errno_of((mount.path / "third").stat) == "ENOENT"
        done = secretfs("apps", "remove", mount.path, "third")
        assert (done.status, done.err.strip().endswith("/apps/third.yaml")) == (2, True)

    def test_a_name_is_no_path(self, host: Host, mount: Mounted) -> None:
        """What `secretfs apps remove` removes is in the directory of the apps (app-11)."""
        elsewhere = host.components.parent / "else.yaml"
        elsewhere.write_text("", encoding="utf-8")
        assert secretfs("apps", "remove", mount.path, "../else").status == 2
        assert elsewhere.exists()

    def test_what_cannot_be_written_changes_nothing(self, host: Host, mount: Mounted, tmp_path: Path) -> None:
        """If one of several documents cannot be written, none is (app-11)."""
        first, second = "third", "x" * 247  # a file of that name can be, but not one beside it
        done = secretfs(
            *("apps", "apply", mount.path),
            *(self.document(tmp_path / name[:5], name, owner=str(NOBODY)) for name in (first, second)),
        )
        assert (done.status, "File name too long" in done.err) == (2, True)
        assert sorted(path.name for path in host.apps.iterdir()) == ["billing.yaml", "orders.yaml"]

    def test_a_mistake_changes_nothing(self, host: Host, tmp_path: Path) -> None:
        """After a mistake everything is as it was, and the command says what is wrong (app-7, app-11)."""
        told = ["has to say which configuration is its own.*; nothing is changed"]
        configs = [configuration(host.configs, name=name) for name in ("strict", "wide")]
        for app in ("orders", "billing"):
            host.add(app, {"configuration": "wide"})
        with mounted(
            host.components, config=configs, options=host.options, mountpoint=host.mountpoint, expect_log=told
        ) as mount:
            unknown = self.document(tmp_path / "unknown", "third", ownr="x")
            done = secretfs("apps", "apply", mount.path, unknown)
            assert (done.status, "unknown field spec.ownr (did you mean owner?)" in done.err) == (2, True)
            done = secretfs("apps", "apply", mount.path, self.document(tmp_path / "vague", "third"))
            assert (done.status, "app third has to say which configuration is its own: strict, wide" in done.err) == (
                2,
                True,
            )
            assert sorted(path.name for path in host.apps.iterdir()) == ["billing.yaml", "orders.yaml"]
            assert secretfs("apps", "list", mount.path).out.split() == ["billing", "orders"]

    def test_a_mount_of_a_single_app_has_none(self, host: Host) -> None:
        """A mount of a single app has no apps to change (app-11)."""
        with mounted(host.components, mountpoint=host.mountpoint) as mount:
            done = secretfs("apps", "list", mount.path)
            assert (done.status, "shows a single app; mount with --apps DIR" in done.err) == (2, True)
