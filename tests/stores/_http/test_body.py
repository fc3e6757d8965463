"""The bodies of answers: limits, and a parser that lets others work."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secretfs.errors import DeadlineExceeded, MalformedAnswer
from secretfs.store import SecretStore
from secretfs.stores._http import body
from secretfs.stores._http.body import LARGEST_ANSWER, MOST_VALUES, parse_json
from tests.support.azure_fixtures import TYPE as AZURE
from tests.support.azure_fixtures import azure, login
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.servers.azure_keyvault import Azure
from tests.support.servers.fake_vault import FakeVault
from tests.support.servers.http_server import saying
from tests.support.servers.keep_alive import KeepAlive

__all__ = ["azure"]

KUBECONFIG = """\
clusters: [{{name: c, cluster: {{server: "{address}"}}}}]
users: [{{name: u, user: {{token: {token}}}}}]
contexts: [{{name: c, context: {{cluster: c, user: u}}}}]
current-context: c
"""
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@pytest.fixture
def fake() -> Iterator[FakeVault]:
    with FakeVault() as server:
        server.tells_version = False
        yield server


@pytest.fixture(params=["vault", "kubernetes"])
def store(request: pytest.FixtureRequest, fake: FakeVault, tmp_path: Path) -> Iterator[SecretStore]:
    """A store that reads from ``fake``."""
    if request.param == "vault":
        properties = {"vaultAddr": fake.address, "vaultToken": secret("token")}
        with opened("secretstores.hashicorp.vault", properties) as store:
            yield store
        return
    path = tmp_path / "kubeconfig"
    path.write_text(KUBECONFIG.format(address=fake.address, token=secret("token")))
    with opened("secretstores.kubernetes", {"defaultNamespace": "shop", "kubeconfigPath": str(path)}) as store:
        yield store


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "x-unheard-of"])
def test_no_answer_is_decompressed(fake: FakeVault, store: SecretStore, encoding: str) -> None:
    # The body never comes: who waits for it would end at the deadline.
    fake.answer = f"HTTP/1.1 200 OK\r\nContent-Encoding: {encoding}\r\nContent-Length: 100\r\n\r\n".encode()
    with pytest.raises(MalformedAnswer, match="the answer is compressed, which was not asked for"):
        store.fetch("db")
    assert all("\r\naccept-encoding: identity\r\n" in head.lower() for head in fake.heads)


def test_an_answer_may_say_that_it_is_not_compressed(fake: FakeVault, store: SecretStore) -> None:
    fake.respond(404, b'{"kind": "Status", "details": {"kind": "secrets"}}', "Content-Encoding: Identity")
    with pytest.raises(Exception, match="not found"):
        store.fetch("db")


@pytest.mark.parametrize("status", [200, 403, 500])
@pytest.mark.parametrize("length", ["Content-Length: 1000000000000", "Connection: close"])
def test_no_answer_is_read_beyond_the_limit(fake: FakeVault, store: SecretStore, status: int, length: str) -> None:
    head = f"HTTP/1.1 {status} Reason\r\n{length}\r\n\r\n".encode()
    fake.answer = head + (b"" if "Length" in length else CANARY.encode() + b"x" * LARGEST_ANSWER)
    with pytest.raises(MalformedAnswer, match=r"the answer is larger than \d+ MiB"):
        store.fetch("db")


def test_azures_answers_have_a_limit(azure: Azure) -> None:
    with opened(AZURE, login()) as store:
        store.check()
        azure.faults.append(saying(b'{"value": "' + b"x" * (1 << 20) + b'", "id": "https://v/secrets/db/1"}'))
        with pytest.raises(MalformedAnswer, match=r"secret db: .*: the answer is larger than 1 MiB"):
            store.fetch("db")


def test_a_value_as_large_as_the_limit_allows() -> None:
    value = "x" * (LARGEST_ANSWER - 1000)
    answer = json.dumps({"data": {"data": {"key": value}, "metadata": {"version": 1}}}).encode()
    mount = b'{"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}}'
    with KeepAlive(lambda target: (200, mount if "/ui/mounts/" in target else answer)) as server:
        properties = {"vaultAddr": server.address, "vaultToken": secret("token")}
        with opened("secretstores.hashicorp.vault", properties, deadline=30) as store:
            assert store.fetch("db").values == {"key": value.encode()}


# --- JSON ---


@settings(max_examples=60, deadline=None)
@given(value=JSON)
def test_the_parser_that_gives_way_reads_the_same(value: Any) -> None:
    text = json.dumps(value)
    assert body._GivingWay().decode(text) == value == parse_json(text)


@pytest.mark.parametrize("text", ["", "[", "{", '{"a"', '{"a": }', "[1,]", '"', "[1] 2", "nul", '{"a": 1,}'])
def test_the_parser_that_gives_way_refuses_the_same(text: str) -> None:
    for parse in (json.loads, body._GivingWay().decode):
        with pytest.raises(ValueError, match=r".+"):
            parse(text)


def test_an_answer_has_a_limit_of_values() -> None:
    assert len(parse_json("[" + "0," * (MOST_VALUES - 2) + "0]")) == MOST_VALUES - 1
    for one in ("0,", '"",', "[],", "{},"):
        with pytest.raises(ValueError, match="too many values"):
            parse_json("[" + one * (MOST_VALUES + 1) + "0]")


def test_others_work_while_many_values_are_parsed() -> None:
    turns, over = [0], threading.Event()

    def work() -> None:
        while not over.is_set():
            turns[0] += 1
            time.sleep(0)

    other = threading.Thread(target=work)
    other.start()
    try:
        before = turns[0]
        parse_json("[" + "[]," * (MOST_VALUES - 2) + "0]")
        assert turns[0] > before + 20  # the parser in C lets it work before and after, and not meanwhile
    finally:
        over.set()
        other.join()


def test_texts_of_many_values_are_parsed_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    many = json.dumps(list(range(body._AT_ONCE + 2)))
    monkeypatch.setattr(body, "_LONGEST_WAIT", 0.01)
    with body._ONE_AT_A_TIME:
        assert parse_json("[1]") == [1]
        with pytest.raises(DeadlineExceeded, match="other large answers are being read"):
            parse_json(many)
    assert parse_json(many)[-1] == body._AT_ONCE + 1
