"""Rendered files on a real mount: what they are, when they change, and when they fail."""

import json
import os
import select
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from secretfs.rendering.job import CPU_SECONDS
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.database_engine import Engine, database
from tests.support.files import file as declare
from tests.support.manifests import component, configuration, scope
from tests.support.mounted import Mounted, mounted
from tests.support.readers import Readers
from tests.support.secrets_file import SecretsFile, file
from tests.support.servers.openbao import OpenBao
from tests.support.servers.postgres import Postgres
from tests.support.shell import errno_of, lines, output
from tests.support.vault_fixtures import Folder
from tests.support.waiting import PATIENCE, wait_until
from tests.support.watching import watching

__all__ = ["database", "file"]

pytestmark = pytest.mark.mount

OLD, NEW = secret("old"), secret("new, and longer")
PGPASS = "db:5432:*:{{ secret('file', 'db').user }}:{{ secret('file', 'db').password }}\n"
FAILED = r"cannot be rendered: "


def db(password: str, user: str = "joe") -> dict[str, dict[str, str]]:
    return {"db": {"user": user, "password": password}, "other": {"key": "unrelated", "more": "x"}}


@pytest.fixture
def components(file: SecretsFile, tmp_path: Path) -> Path:
    """Declare a secrets file with secrets of several keys, and a file that is made of it."""
    file.write(db(OLD))
    properties = {"secretsFile": file.path, "multiValued": "true"}
    component(tmp_path / "components", "file", "local.file", properties, annotations={"secretfs/ttl": "200ms"})
    declare(tmp_path / "components", "pgpass", "files/sub/pgpass", PGPASS)
    return tmp_path / "components"


def test_a_file_is_made_of_secrets(components: Path) -> None:
    """file-1: A document of kind `File` has a file made of a template, or of values in a format, and of secrets."""
    values = {
        "user": {"store": "file", "secret": "db", "key": "user"},
        "url": {"template": "jdbc://{{ secret('file', 'db').password | url }}"},
    }
    declare(components, "app", "config/application.yml", form="yaml", values=values)
    declare(components, "env", "config/app.env", form="dotenv", values=values)
    loop = "{% for name, one in secrets('file').items() %}{{ name }}:{{ one | length }} {% endfor %}"
    declare(components, "loop", "config/loop", loop)
    with mounted(components) as mount:
        assert (mount.path / "files/sub/pgpass").read_text() == f"db:5432:*:joe:{OLD}\n"
        assert yaml.safe_load((mount.path / "config/application.yml").read_text()) == {
            "user": "joe",
            "url": f"jdbc://{OLD}",
        }
        assert output("sh", "-c", '. "$0"; echo $user', mount.path / "config/app.env") == b"joe\n"
        assert (mount.path / "config/loop").read_text() == "db:2 other:2 "


def test_attributes(components: Path) -> None:
    """file-2: A rendered file is listed, has its true size, and the owner, group and mode that its document says."""
    declare(components, "open", "files/open", "x", mode="0444")
    with mounted(components) as mount:
        assert lines("ls", "-A", mount.path) == ["file", "files"]
        assert lines("find", mount.path / "files", "-type", "f", "-printf", "%P %s %m\n") == [
            "open 1 444",
            f"sub/pgpass {len(OLD) + 15} 400",
        ]
        status = (mount.path / "files/open").stat()
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert errno_of(lambda: (mount.path / "files/open").write_text("x")) in ("EACCES", "EROFS")
        assert errno_of(os.stat, mount.path / "files/nothing") == "ENOENT"


def test_a_change_of_a_secret_is_one_of_the_file(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """file-4: When a secret changes, each file made of it is replaced: inotify, poll, another inode, a later time."""
    with mounted(components) as mount:
        path = mount.path / "files/sub/pgpass"
        path.read_bytes()
        before = path.stat()
        with path.open("rb") as opened, watching(tmp_path / "log", path.parent) as watch:
            poller = select.poll()
            poller.register(opened, select.POLLPRI)
            file.write(db(NEW))
            watch.wait_for(f"pgpass MOVED_TO {path.parent}/")
            assert poller.poll(PATIENCE * 1000)
            assert path.read_text() == f"db:5432:*:joe:{NEW}\n"
            assert opened.read().decode() == f"db:5432:*:joe:{OLD}\n"
            assert os.fstat(opened.fileno()).st_ino == before.st_ino
        after = path.stat()
        assert after.st_ino != before.st_ino
        assert after.st_mtime >= before.st_mtime
        assert after.st_size == len(path.read_bytes())


def test_a_change_of_something_else_is_none(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """file-5: While its content stays the same, a rendered file is not replaced, whatever changes upstream."""
    with mounted(components) as mount:
        path = mount.path / "files/sub/pgpass"
        path.read_bytes()
        other = mount.path / "file/other/key"
        other.read_bytes()
        before = path.stat()
        with watching(tmp_path / "log", path.parent) as watch:
            for number in range(3):
                file.write({**db(OLD), "other": {"key": str(number), "more": "x"}})
                wait_until(lambda number=number: other.read_text() == str(number))  # type: ignore[misc]
            assert path.read_text() == f"db:5432:*:joe:{OLD}\n"
            file.write(db(NEW))
            watch.wait_for(f"pgpass MOVED_TO {path.parent}/")
            assert watch.events() == [f"pgpass MOVED_TO {path.parent}/"]
        assert path.stat().st_ino != before.st_ino


def test_what_is_hidden(components: Path, tmp_path: Path) -> None:
    """file-6: A template that asks for what is hidden or not there fails: EBADMSG; the log does not name the secret."""
    declare(components, "hidden", "files/hidden", "{{ secret('file', 'other').key }}")
    declare(components, "gone", "files/gone", "{{ secret('file', 'nowhere').key }}")
    config = configuration(tmp_path, scope("file", denied=["other"]))
    with mounted(components, config=[config], expect_log=[FAILED]) as mount:
        assert errno_of((mount.path / "files/hidden").read_bytes) == "EBADMSG"
        assert errno_of((mount.path / "files/gone").stat) == "EBADMSG"
        reason = "a secret of the store file that it asks for is not there, or hidden"
        for name in ("hidden", "gone"):
            mount.said(f"files/{name} cannot be rendered: {reason}")
        assert "other" not in mount.log
        assert "nowhere" not in mount.log
        assert (mount.path / "files/sub/pgpass").read_text().endswith(f"{OLD}\n")
        status = json.loads((mount.path / ".secretfs/status.json").read_text())
        assert (status["files"]["files"]["declared"], status["files"]["files"]["failing"]) == (3, 2)
        assert list(status["stores"]) == ["file"]


def test_status(components: Path) -> None:
    """file-17: `secretfs status` says of each file that is read when it was rendered, or why not, without a secret."""
    declare(components, "gone", "files/gone", "{{ secret('file', 'nowhere').key }}")
    declare(components, "unread", "files/unread", "x")
    with mounted(components, expect_log=[FAILED]) as mount:
        assert errno_of((mount.path / "files/gone").read_bytes) == "EBADMSG"
        (mount.path / "files/sub/pgpass").read_bytes()
        done = secretfs("status", mount.path)
        top = secretfs("top", mount.path, env={"COLUMNS": "200"})
    assert any(line.startswith("files/gone cannot be rendered: PartMissing, ") for line in top.out.splitlines())
    assert done.status == 1
    assert "nowhere" not in done.out
    shown = done.out.splitlines()
    problem = "files/gone cannot be rendered: PartMissing, "
    assert shown[0].startswith(problem)
    assert shown[0].endswith("ago: a secret that a file asks for is not there, or hidden")
    start = next(number for number, line in enumerate(shown) if line.startswith("FILE "))
    table = [line.split() for line in shown[start : start + 3]]
    assert table[0] == ["FILE", "STATE", "RENDERED", "ERROR"]
    assert [(row[0], row[1], row[-1]) for row in table[1:]] == [
        ("files/gone", "failing", "ago"), ("files/sub/pgpass", "ok", "-"),
    ]  # fmt: skip
    assert "rendered files that nobody has read lately: 1" in shown


def test_a_secret_that_comes_and_goes(components: Path, file: SecretsFile) -> None:
    """A file fails while a secret of it is not there, and is there again with it (file-6)."""
    with mounted(components, expect_log=[FAILED]) as mount:
        path = mount.path / "files/sub/pgpass"
        path.read_bytes()
        file.write({"other": db(OLD)["other"]})
        wait_until(lambda: errno_of(path.read_bytes) == "EBADMSG")
        file.write(db(NEW))
        wait_until(lambda: errno_of(path.read_bytes) == "" and NEW in path.read_text())


def test_a_mistake_that_only_values_show(components: Path) -> None:
    """file-7: A template that does not fit its secrets fails: EBADMSG; the log names the line, and never a value."""
    declare(components, "wrong", "files/wrong", "1\n{{ secret('file', 'db').pasword }}")
    declare(components, "lookup", "files/lookup", "{% set db = secret('file', 'db') %}{{ db[db.password] }}")
    with mounted(components, expect_log=[FAILED]) as mount:
        assert errno_of((mount.path / "files/wrong").read_bytes) == "EBADMSG"
        mount.said("files/wrong cannot be rendered: line 2 of the template: 'pasword' is not there")
        assert errno_of((mount.path / "files/lookup").read_bytes) == "EBADMSG"
        mount.said("files/lookup cannot be rendered: line 1 of the template: something that it uses is not there")


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def test_hostile_templates(components: Path) -> None:
    """file-8: A template that runs for ever or takes too much memory is ended: EBADMSG. The mount serves meanwhile."""
    declare(components, "loop", "files/loop", LOOP)
    declare(components, "memory", "files/memory", "{{ 'x' * 10 ** 9 }}{{ secret('file', 'db').user }}")
    with mounted(components, expect_log=[FAILED]) as mount:
        token, pgpass = mount.path / "file/db/password", mount.path / "files/sub/pgpass"
        pgpass.read_bytes()

        def read() -> None:
            assert token.read_text() == OLD
            assert pgpass.read_text().endswith(f"{OLD}\n")

        with Readers(read) as readers:
            assert errno_of((mount.path / "files/loop").read_bytes) == "EBADMSG"
            assert errno_of((mount.path / "files/memory").read_bytes) == "EBADMSG"
        assert readers.failures == []
        assert readers.done > 0
        mount.said(f"files/loop cannot be rendered: the template takes more than {CPU_SECONDS} s of processor time")
        mount.said("files/memory cannot be rendered: line 1 of the template: it takes too much memory")


@pytest.fixture
def vault(own_server: OpenBao) -> Folder:
    folder = Folder(own_server, "files")
    folder.put("db", {"user": "joe", "password": OLD})
    return folder


def stale(path: Path) -> str:
    """Return the extended attribute of a file that has just been read, or why it cannot be read."""
    try:
        path.read_bytes()
        return os.getxattr(path, "user.secretfs.stale").decode()
    except OSError as error:
        return str(error.strerror)


def test_an_outage(vault: Folder, tmp_path: Path) -> None:
    """file-9: While a store fails, a file is made of what is known, `user.secretfs.stale` says so; else its errno."""
    brief = {"secretfs/ttl": "200ms", "secretfs/deadline": "2s"}
    component(tmp_path / "c", "file", "hashicorp.vault", vault.metadata(), annotations=brief)
    declare(tmp_path / "c", "pgpass", "files/pgpass", PGPASS)
    declare(tmp_path / "c", "cold", "files/cold", "{{ secret('file', 'cold').key }}")
    with mounted(tmp_path / "c", expect_log=["file", FAILED]) as mount:
        path = mount.path / "files/pgpass"
        assert path.read_text() == f"db:5432:*:joe:{OLD}\n"
        assert os.getxattr(path, "user.secretfs.stale") == b"0"
        vault.server.kill()
        wait_until(lambda: stale(path) == "1")
        assert path.read_text() == f"db:5432:*:joe:{OLD}\n"
        assert errno_of((mount.path / "files/cold").read_bytes) in ("EIO", "ETIMEDOUT")
        vault.server.restart()
        vault.put("db", {"user": "joe", "password": OLD})
        wait_until(lambda: stale(path) == "0")  # until it is there again, it is not: the server has started empty


def test_a_takeover(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """file-10: When the daemon is killed, no reader of a rendered file sees an error, and the file is the same one."""
    with mounted(components, expect_log=[r"process \d+ ended"]) as mount:
        path = mount.path / "files/sub/pgpass"
        path.read_bytes()
        before = path.stat()

        def read() -> None:
            assert path.read_text() == f"db:5432:*:joe:{OLD}\n"
            assert path.stat().st_size == before.st_size

        with path.open("rb", buffering=0) as opened, watching(tmp_path / "log", path.parent) as watch:
            with Readers(read, read) as readers:
                for kills in range(1, 4):
                    os.kill(mount.worker, signal.SIGKILL)
                    mount.said("took over", kills)
            assert readers.failures == []
            assert path.stat().st_ino == before.st_ino
            assert path.stat().st_mtime == before.st_mtime
            assert watch.events() == []
            assert opened.read().decode() == f"db:5432:*:joe:{OLD}\n"
            file.write(db(NEW))
            watch.wait_for(f"pgpass MOVED_TO {path.parent}/")
        assert path.read_text() == f"db:5432:*:joe:{NEW}\n"


def test_a_change_while_nobody_serves(components: Path, file: SecretsFile, tmp_path: Path) -> None:
    """Watchers hear after a takeover of what changed before it (file-4, file-10)."""
    with mounted(components, expect_log=[r"process \d+ ended"]) as mount:
        path = mount.path / "files/sub/pgpass"
        path.read_bytes()
        with watching(tmp_path / "log", path.parent) as watch:
            file.write(db(NEW))
            os.kill(mount.worker, signal.SIGKILL)
            watch.wait_for(f"pgpass MOVED_TO {path.parent}/")
        assert path.read_text() == f"db:5432:*:joe:{NEW}\n"


def test_a_reload(components: Path, tmp_path: Path) -> None:
    """file-11: A reload adds, replaces and removes rendered files, and watchers are told; a mistake changes nothing."""
    with mounted(components, expect_log=["nothing is changed"]) as mount:
        directory = mount.path / "files/sub"
        path = directory / "pgpass"
        before = path.read_text()
        reload = partial((mount.path / ".secretfs/reload").write_text, "now\n")
        with watching(tmp_path / "log", directory) as watch:
            declare(components, "pgpass", "files/sub/pgpass", "# new\n" + PGPASS)
            declare(components, "more", "files/sub/more", "more")
            reload()
            watch.wait_for(f"pgpass MOVED_TO {directory}/", f"more MOVED_TO {directory}/")
            assert path.read_text() == "# new\n" + before
            assert (directory / "more").read_text() == "more"
            declare(components, "more", "files/sub/more", "{{ ")
            assert errno_of(reload) == "EINVAL"
            assert (directory / "more").read_text() == "more"
            (components / "file-more.yaml").unlink()
            reload()
            watch.wait_for(f"more DELETE {directory}/")
        assert lines("ls", directory) == ["pgpass"]


@pytest.fixture
def engine(openbao_server: OpenBao, database: Postgres) -> Engine:
    engine = Engine(openbao_server, database)
    engine.role("app", "1h", "24h")
    return engine


def test_a_file_of_issued_credentials(engine: Engine, tmp_path: Path) -> None:
    """file-12: A file that has credentials issued is found by its name and never listed: no walk issues one."""
    component(tmp_path / "m", "database", "hashicorp.vault", engine.login(), annotations={"secretfs/ttl": "1s"})
    template = "{% set login = secret('database', 'app') %}{{ login.username }}:{{ login.password }}"
    declare(tmp_path / "m", "login", "files/login", template)
    declare(tmp_path / "m", "plain", "files/plain", "x")
    with mounted(tmp_path / "m") as mount:
        for command in (("ls", "-laR", "."), ("find", ".", "-size", "+0"), ("cat", "files/plain")):
            output(*command, cwd=mount.path)
        (mount.path / ".secretfs/refresh").write_text("files\n")
        assert lines("ls", mount.path / "files") == ["plain"]
        assert engine.users() == []
        user, _, password = (mount.path / "files/login").read_text().partition(":")
        assert engine.database.accepts(user, password)
        assert (mount.path / "files/login").read_text() == f"{user}:{password}"
        assert engine.made() == 1


def test_only_paths_lead_to_it(components: Path) -> None:
    """file-13: The directory of rendered files has no `.bulk.*`, and a refresh of a file asks its stores again."""
    with mounted(components) as mount:
        for name in (".bulk.json", ".bulk.env", "sub/.bulk.yaml"):
            assert errno_of((mount.path / "files" / name).read_bytes) == "ENOENT"
        (mount.path / "files/sub/pgpass").read_bytes()
        (mount.path / ".secretfs/refresh").write_text("files/sub/pgpass\n")
        assert (mount.path / "files/sub/pgpass").read_text().endswith(f"{OLD}\n")


def test_a_wrong_document_stops_the_mount(components: Path, tmp_path: Path) -> None:
    """file-14: A template that cannot be read stops the mount, with file, line and field; so does a clash of paths."""
    declare(components, "wrong", "files/wrong", "{{ x ")
    (tmp_path / "mnt").mkdir()
    done = secretfs("mount", "--resources-path", components, tmp_path / "mnt")
    assert done.status == 2
    assert f"{components}/file-wrong.yaml:1: spec.template line 1: unexpected end of template" in done.err
    declare(components, "wrong", "file/x", "x")
    done = secretfs("mount", "--resources-path", components, tmp_path / "mnt")
    assert (done.status, "file is the directory of a store" in done.err) == (2, True)


def test_check_and_render(components: Path) -> None:
    """file-15: `secretfs check` says what each file needs; `secretfs render FILE` shows it, with values masked."""
    done = secretfs("check", "--resources-path", components)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "/",
        "├── file/",
        "└── files/",
        "    └── sub/",
        "        └── pgpass",
        "files/sub/pgpass: needs file/db/user, file/db/password",
    ]
    for wanted in ("pgpass", "files/sub/pgpass"):
        done = secretfs("render", "--resources-path", components, wanted)
        assert (done.status, done.out) == (0, "db:5432:*:********:********\n")
        assert done.err == f"files/sub/pgpass: {len(OLD) + 15} bytes\n"
    done = secretfs("render", "--resources-path", components, "pgpas")
    assert (done.status, "did you mean pgpass?" in done.err) == (2, True)
    declare(components, "wrong", "files/wrong", "{{ secret('file', 'db').pasword }}")
    done = secretfs("render", "--resources-path", components, "wrong")
    assert (done.status, done.err.strip()) == (4, "secretfs: line 1 of the template: 'pasword' is not there")


def test_without_a_mount(components: Path) -> None:
    """`secretfs tree` shows rendered files as well; `secretfs cat` fails as a file in a mount does (file-15)."""
    flags = ("--resources-path", components)
    declare(components, "gone", "files/gone", "{{ secret('file', 'nowhere').key }}")
    declare(components, "plain", "files/plain", "{{ secret('file', 'other').key }}")
    done = secretfs("tree", *flags, "files")
    assert (done.status, done.out.splitlines()) == (0, ["files", "├── gone", "├── plain", "└── sub/", "    └── pgpass"])
    done = secretfs("cat", *flags, "files/plain")
    assert (done.status, done.out) == (0, "unrelated")
    done = secretfs("cat", *flags, "files/gone")
    assert (done.status, "Bad message" in done.err, "nowhere" in done.err) == (4, True, False)


@pytest.fixture
def apps(components: Path, tmp_path: Path) -> Iterator[Mounted]:
    component(components, "own", "local.env", {"prefix": "OWN_"}, scopes=["orders"])
    declare(components, "own", "files/own", "{{ secret('own', 'KEY') }}", scopes=["orders", "billing"])
    documents = [
        {"apiVersion": "secretfs/v1alpha1", "kind": "App", "metadata": {"name": name}} for name in ("orders", "billing")
    ]
    (tmp_path / "apps").mkdir()
    (tmp_path / "apps/apps.yaml").write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    expected = [FAILED, "file own asks the store own, which app billing does not see"]
    environment = {"OWN_KEY": secret("own")}
    with mounted(components, options=["--apps", str(tmp_path / "apps")], env=environment, expect_log=expected) as mount:
        yield mount


def test_each_app_has_its_own(apps: Mounted) -> None:
    """file-16: In a mount for many apps each has the files that are for it, made of what it may see."""
    assert (apps.path / "orders/files/own").read_text() == secret("own")
    assert errno_of((apps.path / "billing/files/own").read_bytes) == "EBADMSG"
    for app in ("orders", "billing"):
        assert (apps.path / app / "files/sub/pgpass").read_text() == f"db:5432:*:joe:{OLD}\n"
