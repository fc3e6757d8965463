"""docs/index.md: each recipe with the real program, as it stands there, and a rotation in the middle."""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trustme

from tests.support.canary import secret
from tests.support.database_engine import database
from tests.support.mounted import Mounted, mounted
from tests.support.recipes import PAGE, Kitchen, blocks, hearing, served_certificate
from tests.support.secret_service import secret_service
from tests.support.servers.openbao import OpenBao
from tests.support.servers.ports import free_ports
from tests.support.servers.postgres import Postgres
from tests.support.shell import wait_until
from tests.support.vault_fixtures import openbao_server

__all__ = ["database", "openbao_server"]

OLD, NEW = secret("old"), secret("new")


@pytest.fixture
def kitchen(tmp_path: Path, openbao_server: OpenBao) -> Kitchen:
    (tmp_path / "run").mkdir()
    return Kitchen(tmp_path, openbao_server, f"recipes-{tmp_path.name}", {"/run/secrets": str(tmp_path / "run")})


@pytest.fixture
def mount(kitchen: Kitchen) -> Iterator[Mounted]:
    with mounted(kitchen.directory / "components") as mount:
        kitchen.replaced["/srv/secrets"] = str(mount.path)
        yield mount


@pytest.mark.mount
def test_postgresql(kitchen: Kitchen, mount: Mounted, database: Postgres) -> None:
    """Both ways connect with the password of the moment."""
    kitchen.replaced["-h 127.0.0.1"] = f"-h 127.0.0.1 -p {database.port}"
    kitchen.replaced["psql "] = f"{database.programs}/psql -w "
    by_file, by_variable = blocks("A password for PostgreSQL", "sh")
    database.query(f"CREATE ROLE shop LOGIN PASSWORD '{OLD}'")
    try:
        for password in (OLD, NEW):
            database.query(f"ALTER ROLE shop PASSWORD '{password}'")
            kitchen.rotate(mount, "db", password=password, pgpass=f"127.0.0.1:*:*:shop:{password}\n")
            assert kitchen.shell(by_file) == "shop\n"
            assert kitchen.shell(by_variable) == "shop\n"
    finally:
        database.query("DROP ROLE shop")


NGINX = """
pid {place}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {place};
    proxy_temp_path {place};
    fastcgi_temp_path {place};
    uwsgi_temp_path {place};
    scgi_temp_path {place};
    {recipe}
}}
"""


@pytest.mark.mount
def test_nginx(kitchen: Kitchen) -> None:
    """It serves the new certificate after a rotation, and never stops."""
    authority, port = trustme.CA(), free_ports()[0]

    def pair() -> dict[str, str]:
        issued = authority.issue_cert("localhost")
        return {
            "tls.crt": issued.cert_chain_pems[0].bytes().decode(),
            "tls.key": issued.private_key_pem.bytes().decode(),
        }

    kitchen.replaced |= {"127.0.0.1:8443": f"127.0.0.1:{port}", "/etc/nginx/": f"{kitchen.directory}/"}
    (recipe,), (script,) = blocks("TLS for nginx", "nginx"), blocks("TLS for nginx", "sh")
    text = NGINX.format(place=kitchen.directory, recipe=kitchen.here(recipe))
    (kitchen.directory / "nginx.conf").write_text(text, encoding="utf-8")
    first, second = pair(), pair()
    kitchen.put("site", **first)
    with kitchen.running(script) as nginx:
        wait_until(lambda: served_certificate(port) == first["tls.crt"])
        master = (kitchen.directory / "nginx.pid").read_text("ascii")
        kitchen.put("site", **second)
        wait_until(lambda: served_certificate(port) == second["tls.crt"])
        assert (kitchen.directory / "nginx.pid").read_text("ascii") == master
        assert nginx.process.poll() is None


@pytest.mark.mount
def test_redis(kitchen: Kitchen, mount: Mounted) -> None:
    """After a rotation the new password is good, and the old one is not; what it holds is still there."""
    kitchen.replaced["6379"] = str(free_ports()[0])
    (acl,), (server, client) = blocks("Redis", "text"), blocks("Redis", "sh")
    old, new = ({"password": word, "users.acl": acl.replace("the-password", word)} for word in (OLD, NEW))
    kitchen.put("redis", **old)
    write = client.replace("ping", "set kept yes")
    read = client.replace("ping", "get kept")

    def answers(script: str, expected: str) -> bool:
        try:
            return kitchen.shell(script) == expected
        except AssertionError:  # it does not listen yet
            return False

    with kitchen.running(f"{server.rstrip()} --save '' --dir {kitchen.directory}"):
        wait_until(lambda: answers(client, "PONG\n"))
        assert kitchen.shell(write) == "OK\n"
        kitchen.rotate(mount, "redis", **new)
        wait_until(lambda: answers(read, "yes\n"))
        refused = kitchen.shell(client.replace("$(cat /srv/secrets/vault/redis/password)", OLD))
        assert "WRONGPASS" in refused or "NOAUTH" in refused


@pytest.mark.mount
def test_curl(kitchen: Kitchen, mount: Mounted) -> None:
    (script,) = blocks("A token for curl", "sh")
    with hearing() as (port, heard):
        kitchen.replaced["8080"] = str(port)
        for token in (OLD, NEW):
            kitchen.rotate(mount, "api", header=f"Authorization: Bearer {token}")
            kitchen.shell(script, NO_PROXY="*")
    assert heard == [f"Bearer {OLD}", f"Bearer {NEW}"]


SSHD = """
Port {port}
ListenAddress 127.0.0.1
HostKey {place}/host
PidFile none
AuthorizedKeysFile {place}/authorized
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
"""


@pytest.mark.mount
@pytest.mark.root("sshd separates its privileges")
def test_ssh(kitchen: Kitchen, mount: Mounted) -> None:
    """The key of the moment opens the door; the server knows no other."""
    place, port = kitchen.directory, free_ports()[0]

    def new_key(name: str) -> tuple[str, str]:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
        return (place / name).read_text("ascii"), (place / f"{name}.pub").read_text("ascii")

    new_key("host")
    (place / "sshd.conf").write_text(SSHD.format(port=port, place=place), encoding="ascii")
    own = ["-o UserKnownHostsFile=known", "-o StrictHostKeyChecking=accept-new", "-o BatchMode=yes", "-F none"]
    kitchen.replaced |= {"-p 22": f"-p {port} {' '.join(own)}", "git@": "root@", "true": "echo in"}
    (script,) = blocks("A key for ssh", "sh")
    keys = [new_key("first"), new_key("second")]
    with TemporaryDirectory() as empty:
        command = (
            f"unshare --mount --propagation private sh -c 'mkdir -p /run/sshd && mount --bind {empty} /run/sshd &&"
        )
        sshd = f"{command} chmod 755 /run/sshd && exec /usr/sbin/sshd -D -e -f sshd.conf'"
        with kitchen.running(sshd) as server:
            server.prints("Server listening")
            for private, public in keys:
                (place / "authorized").write_text(public, encoding="ascii")
                kitchen.rotate(mount, "deploy", id_ed25519=private)
                assert kitchen.shell(script) == "in\n"


@pytest.mark.mount
@pytest.mark.parametrize(
    ("title", "language", "command"),
    [("Java", "java", "java Password.java"), ("Node.js", "js", "node password.js")],
    ids=["java", "node"],
)
def test_a_language(kitchen: Kitchen, mount: Mounted, title: str, language: str, command: str) -> None:
    (program,) = blocks(title, language)
    (kitchen.directory / command.split()[1]).write_text(kitchen.here(program), encoding="utf-8")
    kitchen.rotate(mount, "db", password=OLD)
    with kitchen.running(command) as running:
        running.prints(f"{OLD}\n")
        kitchen.rotate(mount, "db", password=NEW)
        running.prints(f"{NEW}\n")


def test_a_laptop(kitchen: Kitchen) -> None:
    """What `secret-tool` stores a second time is what is read from then on."""
    store, init, get = blocks("A laptop", "sh")[0].splitlines()
    with TemporaryDirectory(prefix="kr-") as directory, secret_service(Path(directory)) as service:
        bus = {"DBUS_SESSION_BUS_ADDRESS": service.address}
        kitchen.shell(init)
        for password in (OLD, NEW):
            kitchen.shell(f"printf %s {password} | {store}", **bus)
            assert kitchen.shell(get, **bus) == password


@pytest.mark.mount
def test_ci(kitchen: Kitchen) -> None:
    """The job shows no password, and each step has that of the moment."""
    (script,) = blocks("CI", "sh")
    for password in (OLD, NEW):
        kitchen.put("db", password=password)
        shown = kitchen.shell(script)
        assert "deploy with ***\n" in shown
        assert password not in shown
        assert (kitchen.directory / "password").read_text("utf-8") == password


def test_every_recipe_is_tried() -> None:
    """`tests/containers/test_recipes.py` has the container; a pod is a link."""
    tried = {
        *(
            "A password for PostgreSQL",
            "TLS for nginx",
            "Redis",
            "A token for curl",
            "A key for ssh",
            "Java",
            "Node.js",
        ),
        *("A container", "A pod", "A laptop", "CI"),
    }
    assert {line.removeprefix("## ") for line in PAGE.splitlines() if line.startswith("## ")} == tried
