"""The recipes of docs/pairs.md, as they are written there: they take a pair, also if it is rotated meanwhile."""

import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.manifests import component
from tests.support.mounted import mounted
from tests.support.secrets_file import SecretsFile, file
from tests.support.shell import errno_of, output, run, wait_until
from tests.support.waiting import PATIENCE

__all__ = ["file"]

pytestmark = pytest.mark.mount

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CAT = """#!/bin/sh
# Waits between its two files until they have been rotated.
{cat} "$1"
echo > {place}/half
read -r _ < {place}/go-on
{cat} "$2"
"""

INOTIFYWAIT = """#!/bin/sh
# Says when it watches.
for argument; do
    shift
    [ "$argument" = --quiet ] || set -- "$@" "$argument"
done
exec {inotifywait} "$@" 2> {place}/watch
"""

NGINX = """
daemon off;
pid {place}/nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path {place};
    proxy_temp_path {place};
    fastcgi_temp_path {place};
    uwsgi_temp_path {place};
    scgi_temp_path {place};
    server {{
        listen unix:{place}/site ssl;
        {recipe}
    }}
}}
"""

HAPROXY = """
global
    stats socket {place}/admin.sock level admin
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
frontend site
    bind unix@{place}/site ssl crt {place}/site.pem
"""


def recipes(heading: str) -> list[str]:
    """Return the blocks of code below a heading."""
    text = (ROOT / "docs/pairs.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [code for _, code in BLOCK.findall(section)]


class Site:
    """A certificate and its key in a mount, and a place for the server that uses them."""

    def __init__(self, directory: Path, place: Path, file: SecretsFile) -> None:
        self.directory = directory
        self.place = place
        self._file = file

    def rotate(self) -> str:
        """Write another pair, and wait until it shows. Returns the certificate."""
        pair = make_pair(self.place)
        self._file.write({"site": pair})
        wait_until(lambda: all((self.directory / key).read_text() == value for key, value in pair.items()))
        return pair["tls.crt"]

    def here(self, recipe: str) -> str:
        """Return a recipe with the paths of this test."""
        for path, ours in (
            ("/srv/secrets/vault/site", self.directory),
            ("/etc/haproxy/", f"{self.place}/"),
            ("/run/haproxy/", f"{self.place}/"),
        ):
            recipe = recipe.replace(path, str(ours))
        return recipe

    def program(self, name: str, text: str) -> None:
        """Put a program before all others of its name."""
        path = self.place / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)

    def shell(self, recipe: str) -> "subprocess.Popen[str]":
        """Begin to run a recipe."""
        path = f"{self.place / 'bin'}:/usr/sbin:{os.environ['PATH']}"
        return subprocess.Popen(
            ["sh", "-euc", self.here(recipe)], env=os.environ | {"PATH": path}, cwd=self.place, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def run_with_a_rotation_in_the_middle(self, recipe: str) -> str:
        """Run a recipe, and rotate the pair between the two files that it reads. Returns what it prints."""
        self.program("cat", CAT.format(place=self.place, cat=shutil.which("cat")))
        fifos = [self.place / name for name in ("half", "go-on")]
        for fifo in fifos:
            os.mkfifo(fifo)
        half, go_on = (os.open(fifo, os.O_RDWR) for fifo in fifos)
        try:
            process = self.shell(recipe)
            assert select.select([half], [], [], PATIENCE)[0], "it has read nothing"
            self.rotate()
            os.write(go_on, b"\n")
            return process.communicate(timeout=PATIENCE)[0]
        finally:
            for descriptor in (half, go_on):
                os.close(descriptor)
            for fifo in fifos:
                fifo.unlink()

    def served(self) -> str:
        """Return the certificate that the server shows. The handshake proves that it has the key."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(str(self.place / "site"))
            with context.wrap_socket(connection) as secured:
                return ssl.DER_cert_to_PEM_cert(secured.getpeercert(binary_form=True) or b"")

    @contextmanager
    def server(self, *command: str | Path) -> Iterator[None]:
        """Run a server until the end of the block."""
        log = self.place / "log"
        with log.open("wb") as stderr, subprocess.Popen(command, stdout=stderr, stderr=stderr) as process:
            try:
                wait_until(lambda: process.poll() is not None or not errno_of(self.served))
                assert process.poll() is None, log.read_text()
                yield
            finally:
                process.terminate()


def make_pair(place: Path) -> dict[str, str]:
    """Make a certificate and its key."""
    key, certificate = place / "new.key", place / "new.crt"
    done = run(
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-days", "1", "-subj", "/CN=site", "-keyout", key, "-out", certificate),
    )
    assert done.returncode == 0, done.stderr
    return {"tls.crt": certificate.read_text(), "tls.key": f"{secret('key')}\n{key.read_text()}"}


@pytest.fixture
def site(tmp_path: Path, file: SecretsFile) -> Iterator[Site]:
    place = tmp_path / "place"
    place.mkdir()
    file.write({"site": make_pair(place)})
    properties = {"secretsFile": file.path, "multiValued": "true"}
    component(tmp_path / "components", "vault", "local.file", properties)
    with mounted(tmp_path / "components") as mount:
        yield Site(mount.path / "vault/site", place, file)


def test_a_shell(site: Site) -> None:
    """A working directory in `..data` is one version; without it the recipe fails, as there are two (pin-14)."""
    (recipe,) = recipes("In a shell")
    first = (site.directory / "tls.crt").read_text()
    assert site.run_with_a_rotation_in_the_middle(recipe) == ""
    taken = output("openssl", "pkcs12", "-in", site.place / "site.p12", "-passin", "pass:", "-nokeys").decode()
    assert first in taken
    assert "matches private key" in site.run_with_a_rotation_in_the_middle(recipe.replace("/..data", ""))


def test_nginx(site: Site) -> None:
    """nginx follows each rotation, also while it reads the pair (pin-14)."""
    configuration, reload_on_change = recipes("nginx")
    conf = site.place / "nginx.conf"
    conf.write_text(NGINX.format(place=site.place, recipe=site.here(configuration)), encoding="utf-8")
    site.program("inotifywait", INOTIFYWAIT.format(place=site.place, inotifywait=shutil.which("inotifywait")))
    nginx = ("/usr/sbin/nginx", "-e", f"{site.place}/error.log", "-c", f"{conf}")
    site.program("nginx", f'#!/bin/sh\nexec {" ".join(nginx)} "$@"\n')
    with site.server(*nginx):
        assert site.served() == (site.directory / "tls.crt").read_text()
        watch = site.place / "watch"
        with site.shell(reload_on_change) as watcher:
            try:
                wait_until(lambda: watch.exists() and "established" in watch.read_text())
                for burst in (1, 1, 5):  # nginx may read in the middle of the last
                    newest = [site.rotate() for _ in range(burst)][-1]
                    wait_until(lambda newest=newest: site.served() == newest)  # type: ignore[misc]
            finally:
                os.killpg(watcher.pid, signal.SIGTERM)


def test_haproxy(site: Site) -> None:
    """pin-14: The recipes for a shell, nginx and HAProxy ([pairs.md](pairs.md)) take a pair, also if it is rotated meanwhile."""  # noqa: E501 - a quote
    (recipe,) = recipes("HAProxy")
    before = site.directory / "..data"
    (site.place / "site.pem").write_text(
        "".join((before / key).read_text() for key in ("tls.crt", "tls.key")), encoding="utf-8"
    )
    (site.place / "haproxy.cfg").write_text(HAPROXY.format(place=site.place), encoding="utf-8")
    with site.server("/usr/sbin/haproxy", "-db", "-f", site.place / "haproxy.cfg"):
        first = site.served()
        second = site.rotate()
        assert "Success!" in site.run_with_a_rotation_in_the_middle(recipe)
        assert site.served() == second != first
        # Without `..data` HAProxy refuses what the recipe brings.
        assert "inconsistencies" in site.run_with_a_rotation_in_the_middle(recipe.replace("/..data", ""))
        assert site.served() == second
