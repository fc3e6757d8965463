"""docs/files.md: each file of its examples, from a real mount, read by the program that it is for; with a rotation."""

import base64
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.database_engine import database
from tests.support.mounted import Mounted, mounted
from tests.support.recipes import Kitchen, hearing, served_certificate
from tests.support.servers.openbao import OpenBao
from tests.support.servers.ports import free_ports
from tests.support.servers.postgres import Postgres
from tests.support.vault_fixtures import openbao_server
from tests.support.waiting import wait_until

__all__ = ["database", "openbao_server"]

pytestmark = pytest.mark.mount

TEXT = (ROOT / "docs/files.md").read_text(encoding="utf-8")
EXAMPLES = "---\n".join(re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL))
OLD, NEW = secret("old's"), secret("new one")


@pytest.fixture
def kitchen(tmp_path: Path, openbao_server: OpenBao) -> Kitchen:
    kitchen = Kitchen(tmp_path, openbao_server, f"files-{tmp_path.name}")
    (tmp_path / "components/files.yaml").write_text(
        EXAMPLES.replace("db.example:5432", "127.0.0.1:*"), encoding="utf-8"
    )
    kitchen.put("db", username="shop", password=OLD)
    kitchen.put("redis", password=OLD)
    kitchen.put("registry", username="shop", password=OLD)
    for host in ("127.0.0.1", "other.example"):
        kitchen.put(f"hosts/{host}", username="shop", password=OLD.replace(" ", "-"))
    pair(kitchen, trustme.CA(), OLD)
    return kitchen


def pair(kitchen: Kitchen, authority: trustme.CA, password: str) -> str:
    """Write a certificate and its key; returns the certificate."""
    issued = authority.issue_cert("site.example")
    certificate = issued.cert_chain_pems[0].bytes().decode()
    chain, key = authority.cert_pem.bytes().decode(), issued.private_key_pem.bytes().decode()
    kitchen.put("tls/site", certificate=certificate, chain=chain, key=key, password=password)
    return certificate


def shows(file: Path, text: str) -> None:
    """Wait until this is in a file."""
    wait_until(lambda: text in file.read_text("utf-8"))


@pytest.fixture
def mount(kitchen: Kitchen) -> Iterator[Mounted]:
    with mounted(kitchen.directory / "components") as mount:
        kitchen.replaced["/mnt/secrets"] = str(mount.path)
        yield mount


def test_psql(kitchen: Kitchen, mount: Mounted, database: Postgres) -> None:
    script = re.search(r"^PGPASSFILE=\S+ psql -h db\.example shop$", TEXT, re.MULTILINE)
    assert script
    server = (
        f"{database.programs}/psql -w -h 127.0.0.1 -p {database.port} -U shop -At -c 'SELECT current_user' postgres"
    )
    line = script[0].replace("psql -h db.example shop", server)
    database.query("CREATE ROLE shop LOGIN")
    try:
        for password in (OLD, NEW):
            kitchen.put("db", username="shop", password=password)
            shows(mount.path / "files/pgpass", password)
            quoted = password.replace("'", "''")
            database.query(f"ALTER ROLE shop PASSWORD '{quoted}'")
            assert kitchen.shell(line) == "shop\n"
    finally:
        database.query("DROP ROLE shop")


def test_redis(kitchen: Kitchen, mount: Mounted) -> None:
    (line,) = re.findall(r"`(redis-server [^`]*)`", TEXT)
    port = free_ports()[0]
    client = f"redis-cli -p {port} ping"
    assert (mount.path / "files/redis.conf").exists()
    for password in (OLD, NEW):  # it reads its file once
        kitchen.put("redis", password=password)
        shows(mount.path / "files/redis.conf", password)
        with kitchen.running(f"{line} --port {port} --save '' --dir {kitchen.directory}"):
            wait_until(lambda: answer(kitchen, client, password) == "PONG\n")  # noqa: B023 - called at once
            assert "NOAUTH" in answer(kitchen, client, "")


def answer(kitchen: Kitchen, script: str, password: str) -> str:
    """Ask Redis; nothing while it does not listen yet."""
    try:
        return kitchen.shell(script, **{"REDISCLI_AUTH": password} if password else {})
    except AssertionError:
        return ""


def test_curl(kitchen: Kitchen, mount: Mounted) -> None:
    (line,) = re.findall(r"`(curl --netrc-file\s+\S+) https://\.\.\.`", TEXT)
    with hearing() as (port, heard):
        for password in (secret("one"), secret("two")):
            kitchen.put("hosts/127.0.0.1", username="shop", password=password)
            shows(mount.path / "files/.netrc", password)
            url = f"http://127.0.0.1:{port}/"
            kitchen.shell(f"{' '.join(line.split())} --silent --fail {url}", NO_PROXY="*")
    users = [base64.b64decode(each.removeprefix("Basic ")).decode() for each in heard]
    assert users == [f"shop:{secret('one')}", f"shop:{secret('two')}"]


HAPROXY = """
defaults
    mode http
    timeout connect 10s
    timeout client 10s
    timeout server 10s
frontend site
    bind 127.0.0.1:{port} ssl crt {bundle}
    http-request return status 200
"""


def test_haproxy(kitchen: Kitchen, mount: Mounted) -> None:
    bundle, port, authority = mount.path / "tls/site.pem", free_ports()[0], trustme.CA()
    (kitchen.directory / "haproxy.cfg").write_text(HAPROXY.format(port=port, bundle=bundle), encoding="utf-8")

    for _ in range(2):  # how it takes a new certificate without an end is in docs/pairs.md
        certificate = pair(kitchen, authority, OLD)
        shows(bundle, certificate)
        with kitchen.running(f"haproxy -db -f {kitchen.directory}/haproxy.cfg"):
            wait_until(lambda certificate=certificate: served_certificate(port) == certificate)  # type: ignore[misc]


def test_java(kitchen: Kitchen, mount: Mounted) -> None:
    """`keytool` opens the key store with the password of the same version."""
    store, authority = mount.path / "tls/site.p12", trustme.CA()
    opens = f"keytool -list -storetype PKCS12 -keystore {store} -storepass:env STOREPASS"
    assert "PrivateKeyEntry" in kitchen.shell(opens, STOREPASS=OLD)
    before = store.read_bytes()
    pair(kitchen, authority, NEW)
    wait_until(lambda: store.read_bytes() != before)
    assert "PrivateKeyEntry" in kitchen.shell(opens, STOREPASS=NEW)


def test_a_registry(kitchen: Kitchen, mount: Mounted) -> None:
    """A client of registries finds the login."""
    file = mount.path / "docker/config.json"
    for user in ("shop", "another"):
        kitchen.put("registry", username=user, password=NEW)
        shows(file, f'"{user}"')
        done = subprocess.run(
            ["podman", "login", "--get-login", "--authfile", file, "registry.example"],
            env={"PATH": "/usr/bin:/bin", "HOME": str(kitchen.directory), "XDG_RUNTIME_DIR": str(kitchen.directory)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, f"{user}\n"), done.stderr
