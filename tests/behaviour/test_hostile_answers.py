"""A store that answers more than anybody can hold."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.keep_alive import KeepAlive
from tests.support.shell import errno_of, wait_until

pytestmark = pytest.mark.mount

MIB = 1 << 20
READERS = 8
PATIENT = {"secretfs/ttl": "100ms", "secretfs/deadline": "3m", "secretfs/idle": "200ms"}


@dataclass(frozen=True)
class Shop:
    """A store on a hostile server, and one on this machine."""

    mount: Mounted
    server: KeepAlive
    answers: list[tuple[int, bytes, str]]
    """What the hostile store answers to those who read a secret: the last of them."""

    def read(self, count: int = READERS) -> list[str]:
        """Let many readers at once ask the hostile store, each for another secret. Returns how that ends for each."""
        paths = [self.mount.path / f"hostile/db{number}/key" for number in range(count)]
        with ThreadPoolExecutor(READERS) as readers:
            ends = [readers.submit(errno_of, path.read_bytes) for path in paths]
            local = (self.mount.path / "local/secret").read_text("utf-8")  # while they wait
            assert local == secret("local")
            return [end.result() for end in ends]

    def answer(self, body: bytes, header: str = "Content-Type: application/json") -> None:
        """Let all who read a secret get this."""
        self.answers.append((200, body, header))

    def memory(self, what: str = "VmRSS") -> int:
        """Return what the mount occupies, or at most has (``VmHWM``), in bytes."""
        status = Path(f"/proc/{self.mount.worker}/status").read_text("ascii")
        found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"secret": secret("local")}))
    answers: list[tuple[int, bytes, str]] = []

    def answer(target: str) -> tuple[int, bytes, str]:
        plain = "Content-Type: application/json"
        if "/ui/mounts/" in target:
            return 200, b'{"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}', plain
        if "/metadata/" in target:
            return 200, json.dumps({"data": {"keys": [f"db{number}" for number in range(READERS)]}}).encode(), plain
        if target.endswith("/lookup-self"):  # some seconds after the first request
            return 200, b'{"data": {"ttl": 0, "renewable": false}}', plain
        return answers[-1]

    with KeepAlive(answer) as server:
        properties = {"vaultAddr": server.address, "vaultToken": secret("token")}
        component(tmp_path / "res", "hostile", "hashicorp.vault", properties, annotations=PATIENT)
        component(tmp_path / "res", "local", "local.file", {"secretsFile": file}, annotations=PATIENT)
        with mounted(tmp_path / "res", expect_log=["hostile: "]) as mount:
            yield Shop(mount, server, answers)


def document(value: str) -> bytes:
    """Answer as Vault does."""
    return json.dumps({"data": {"data": {"key": value}, "metadata": {"version": 1}}}).encode()


def bomb(encoding: str) -> bytes:
    """Make a few kilobytes that become 128 MiB."""
    compressor = zlib.compressobj(9, wbits=15 if encoding == "deflate" else 31)
    head, tail = document("|").split(b"|")
    small = compressor.compress(head)
    for _ in range(128):
        small += compressor.compress(b"x" * MIB)
    small += compressor.compress(tail) + compressor.flush()
    return gzip.compress(small) if encoding == "gzip, gzip" else small


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "gzip, gzip"])
def test_an_answer_that_is_compressed(shop: Shop, encoding: str) -> None:
    """error-15: An answer that is compressed, or larger than 16 MiB, is EBADMSG, and delays no other store."""
    before = shop.memory("VmHWM")
    shop.answer(bomb(encoding), f"Content-Encoding: {encoding}")
    assert shop.read() == ["EBADMSG"] * READERS
    assert shop.memory("VmHWM") < before + 64 * MIB
    assert all("\r\nAccept-Encoding: identity\r\n" in head for head in shop.server.heads)


def test_an_answer_that_is_too_large(shop: Shop) -> None:
    """It is refused before its first byte is read (error-15)."""
    before = shop.memory("VmHWM")
    shop.answer(document("x" * (50 * MIB)))
    assert shop.read() == ["EBADMSG"] * READERS
    assert shop.memory("VmHWM") < before + 64 * MIB


def test_an_answer_of_millions_of_values(shop: Shop) -> None:
    """It is not what a secret looks like, and its parsing would hold up everybody (error-15)."""
    shop.answer(b'{"data": {"metadata": {"version": 1}, "data": {"key": [' + b"[]," * (5 * MIB) + b"1]}}}")
    assert shop.read(1) == [
        "EBADMSG"
    ]  # of several, one is parsed at a time, and they wait for that no longer than 30 s


def test_large_values_take_no_more_than_they_are_long(shop: Shop) -> None:
    """What it took to receive 8 values of 15 MiB is given back to the system (error-15)."""
    before = shop.memory()
    shop.answer(document("x" * (15 * MIB)))
    assert shop.read() == [""] * READERS
    wait_until(lambda: shop.memory() < before + READERS * 15 * MIB + 48 * MIB)
