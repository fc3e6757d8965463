"""Certificates on a real mount: a real OpenBao issues them, and counts what it issues."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.x509 import load_pem_x509_certificate, load_pem_x509_certificates

from tests.support.command import secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, daemons, mounted
from tests.support.pki_engine import Pki, declared, matches, pki
from tests.support.shell import errno_of, lines, output, run, wait_until
from tests.support.waiting import PATIENCE
from tests.support.watching import watching

__all__ = ["pki"]

pytestmark = pytest.mark.mount

FILES = ("certificate", "private_key", "ca_chain", "issuing_ca", "serial_number")
WALKS = (
    ("find", ".", "-type", "f", "-size", "+0"),
    ("ls", "-laR", "."),
    ("grep", "-r", "BEGIN", "."),
    ("tar", "--create", "--xattrs", "--file=/dev/null", "."),
    ("getfattr", "-R", "-d", "-m", "-", "."),
    ("cat", "certificates/.bulk.json"),
    ("stat", "certificates/web/.hidden", "certificates/web/..versions"),
)


@pytest.fixture
def mount(pki: Pki, tmp_path: Path) -> Iterator[Mounted]:
    pki.role("mine", leased=True)
    certificates = declared(
        web={"common_name": "web.example"}, leased={"role": "mine", "common_name": "mine.example", "ttl": "30m"}
    )
    annotations = {"secretfs/ttl": "500ms", **certificates}
    component(tmp_path / "m", "certificates", "hashicorp.vault", pki.properties(), annotations=annotations)
    with mounted(tmp_path / "m", expect_log=[r"process \d+ ended .*: another takes over"]) as mount:
        yield mount


def read(directory: Path, name: str) -> bytes:
    return output("cat", directory / name)


def test_a_certificate_is_a_directory(mount: Mounted, pki: Pki) -> None:
    """pki-1: Each certificate that a component declares is a directory; the first stat or open of a file issues it."""
    web = mount.path / "certificates/web"
    assert lines("ls", mount.path / "certificates") == ["leased", "web"]
    assert pki.issued("web") == 0
    sizes = {name: (web / name).stat().st_size for name in FILES}
    assert pki.issued("web") == 1
    found = {name: read(web, name) for name in FILES}
    assert {name: len(content) for name, content in found.items()} == sizes
    assert matches(found["certificate"], found["private_key"])
    issuing, root = load_pem_x509_certificates(found["ca_chain"])
    load_pem_x509_certificate(found["certificate"]).verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(root)
    assert errno_of(os.stat, mount.path / "certificates/other") == "ENOENT"
    held = os.open(web / "..data", os.O_PATH | os.O_DIRECTORY)
    try:
        pair = [Path(f"/proc/self/fd/{held}", name).read_bytes() for name in ("certificate", "private_key")]
    finally:
        os.close(held)
    assert matches(*pair)
    assert pki.issued("web") == 1


def test_walks(mount: Mounted, pki: Pki) -> None:
    """pki-2: No listing, no walk, no `.bulk.*` of a store and no refresh issues a certificate."""
    for command in WALKS:
        run(*command, cwd=mount.path)
        assert (command, pki.issued("web"), pki.issued("mine")) == (command, 0, 0)
    for path in ("*", "certificates", "certificates/web", "certificates/web/private_key"):
        (mount.path / ".secretfs/refresh").write_text(f"{path}\n")
    assert (pki.issued("web"), pki.issued("mine")) == (0, 0)


def test_replaced_before_it_ends(pki: Pki, tmp_path: Path) -> None:
    """pki-3: Before a certificate ends watchers see its files replaced; the next open issues another one."""
    pki.role("short", "8s")
    certificates = declared(short={"common_name": "short.example"})
    component(tmp_path / "m", "certificates", "hashicorp.vault", pki.properties(), annotations=certificates)
    with mounted(tmp_path / "m") as mount:
        short = mount.path / "certificates/short"
        with watching(tmp_path / "events", short) as watch:
            first = read(short, "certificate")
            assert matches(first, read(short, "private_key"))
            watch.wait_for(f"certificate MOVED_TO {short}/")
            watch.wait_for(f"private_key MOVED_TO {short}/")
        assert pki.issued("short") == 1
        second = read(short, "certificate")
        assert second != first
        assert matches(second, read(short, "private_key"))
        assert pki.issued("short") == 2


def test_kills_and_the_end(mount: Mounted, pki: Pki) -> None:
    """pki-4: A daemon that is killed passes certificates on; those with a lease are revoked when the mount ends."""
    serials = {name: read(mount.path / "certificates" / name, "serial_number") for name in ("web", "leased")}
    worker = mount.worker
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: daemons(mount.path) not in ([], [worker]))
    assert {name: read(mount.path / "certificates" / name, "serial_number") for name in serials} == serials
    assert (pki.issued("web"), pki.issued("mine")) == (1, 1)
    assert secretfs("unmount", mount.path).status == 0
    assert mount.process.wait(PATIENCE) == 0
    wait_until(lambda: pki.revoked(serials["leased"].decode()))
    assert not pki.revoked(serials["web"].decode())
