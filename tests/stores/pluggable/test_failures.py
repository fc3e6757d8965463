"""What a plug-in can do wrong, and what comes of it: the right error, in time, without a word of what it said."""

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from secretfs.errors import (
    AccessDenied,
    DeadlineExceeded,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.store import SecretStore
from secretfs.stores._sockets import FOLDER
from secretfs.stores.pluggable.client import LARGEST_ANSWER
from secretfs.stores.pluggable.plug_in import SERVICE
from secretfs.stores.pluggable.store import PluggableStore
from tests.support.canary import secret
from tests.support.opened import opened
from tests.support.pluggable import socket_folder
from tests.support.scripted_plug_in import (
    REFLECTION,
    ScriptedPlugIn,
    fails,
    listed,
    message,
    pair,
    says,
    scripted_plug_in,
)

TYPE = "secretstores.example"
SHORT = 0.3
"""Seconds until a call that hangs is given up."""

CODES: dict[grpc.StatusCode, type[StoreError]] = {
    grpc.StatusCode.CANCELLED: StoreUnavailable,
    grpc.StatusCode.UNKNOWN: StoreUnavailable,  # an exception, which may mean anything
    grpc.StatusCode.INVALID_ARGUMENT: StoreUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: SecretNotFound,
    grpc.StatusCode.ALREADY_EXISTS: StoreUnavailable,
    grpc.StatusCode.PERMISSION_DENIED: AccessDenied,
    grpc.StatusCode.RESOURCE_EXHAUSTED: StoreUnavailable,
    grpc.StatusCode.FAILED_PRECONDITION: StoreUnavailable,
    grpc.StatusCode.ABORTED: StoreUnavailable,
    grpc.StatusCode.OUT_OF_RANGE: StoreUnavailable,
    grpc.StatusCode.UNIMPLEMENTED: MalformedAnswer,
    grpc.StatusCode.INTERNAL: StoreUnavailable,
    grpc.StatusCode.UNAVAILABLE: StoreUnavailable,
    grpc.StatusCode.DATA_LOSS: MalformedAnswer,
    grpc.StatusCode.UNAUTHENTICATED: AccessDenied,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return socket_folder(tmp_path, monkeypatch)


@pytest.fixture
def plug_in(folder: Path) -> Iterator[ScriptedPlugIn]:
    with scripted_plug_in(folder / "example.sock") as plug_in:
        yield plug_in


@contextmanager
def listening(path: Path, talk: Callable[[socket.socket], object], backlog: int = 8) -> Iterator[None]:
    """Accept connections on a socket, and do with them what is not gRPC."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen(backlog)
        open_ones: list[socket.socket] = []

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                open_ones.append(connection)
                talk(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in open_ones:
                connection.close()


def every_call(store: SecretStore) -> list[Callable[[], Any]]:
    return [store.check, lambda: store.names(""), lambda: store.fetch("a")]


def test_every_status_code_has_a_meaning() -> None:
    assert CODES.keys() == set(grpc.StatusCode) - {grpc.StatusCode.OK}


@pytest.mark.parametrize("code", CODES, ids=lambda code: code.name)
def test_what_a_status_means(plug_in: ScriptedPlugIn, code: grpc.StatusCode) -> None:
    """Its details hold a value: that no error shows it is looked at after each test."""
    plug_in.answers["Get"] = fails(code, secret("details"))
    with opened(TYPE, {}) as store, pytest.raises(CODES[code]) as caught:
        store.fetch("a")
    assert re.fullmatch(rf"secret a: plug-in example\.sock: Get: [a-z ]+ \({code.name}\)", str(caught.value))


@pytest.mark.parametrize("method", ["Init", "Features", REFLECTION.format("v1alpha"), "BulkGet", "Ping"])
def test_only_a_get_says_that_there_is_no_secret(plug_in: ScriptedPlugIn, method: str) -> None:
    plug_in.answers[method] = fails(grpc.StatusCode.NOT_FOUND)
    with opened(TYPE, {}) as store:
        check, names, _ = every_call(store)
        for call in {"BulkGet": [names], "Ping": [check]}.get(method, every_call(store)):
            with pytest.raises(StoreUnavailable, match=rf"{method.rpartition('/')[2]}: it failed \(NOT_FOUND\)"):
                call()


@pytest.mark.parametrize("method", ["Get", "Init", "Features", REFLECTION.format("v1alpha")])
def test_a_call_that_hangs_has_a_deadline(plug_in: ScriptedPlugIn, method: str) -> None:
    plug_in.answers[method] = plug_in.hang
    with opened(TYPE, {}, deadline=SHORT) as store, pytest.raises(DeadlineExceeded, match=r"secret a: .*in time"):
        store.fetch("a")


def test_who_waits_while_another_initialises_has_a_deadline(plug_in: ScriptedPlugIn) -> None:
    plug_in.answers["Init"] = plug_in.hang
    errors: list[StoreError] = []
    with opened(TYPE, {}, deadline=SHORT) as store:

        def fetch() -> None:
            with pytest.raises(DeadlineExceeded) as caught:
                store.fetch("a")
            errors.append(caught.value)

        threads = [threading.Thread(target=fetch) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(errors) == 3


def test_a_socket_that_says_nothing_has_a_deadline(folder: Path) -> None:
    with listening(folder / "example.sock", lambda _: None), opened(TYPE, {}, deadline=SHORT) as store:
        for call in every_call(store):
            with pytest.raises(DeadlineExceeded, match=r"plug-in example\.sock: .*in time"):
                call()


def test_a_socket_that_accepts_nobody_has_a_deadline(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
        server.bind(str(folder / "example.sock"))
        server.listen(0)
        other.connect(str(folder / "example.sock"))  # now the queue is full
        with opened(TYPE, {}, deadline=SHORT) as store:
            for call in every_call(store):
                with pytest.raises((StoreUnavailable, DeadlineExceeded)):
                    call()


@pytest.mark.parametrize(
    "talk",
    [
        pytest.param(lambda connection: connection.close(), id="reset"),
        pytest.param(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 99), id="HTTP/1.1"),
        pytest.param(lambda connection: connection.sendall(b"\0\xff" * 5000), id="garbage"),
    ],
)
def test_a_socket_that_speaks_no_grpc(folder: Path, talk: Callable[[socket.socket], object]) -> None:
    with listening(folder / "example.sock", talk), opened(TYPE, {}, deadline=SHORT) as store:
        for call in every_call(store):
            with pytest.raises((StoreUnavailable, DeadlineExceeded)):
                call()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        pytest.param(b"\xff\xff\xff", "no message of a secret store", id="garbage"),
        pytest.param(pair(b"a", secret("a").encode())[:-3], "no message of a secret store", id="cut off"),
        pytest.param(pair(b"a", secret("a").encode() + b"\xff"), "a text is not UTF-8", id="value not UTF-8"),
        pytest.param(pair(secret("key").encode() + b"\xff", b"x"), "a text is not UTF-8", id="key not UTF-8"),
        pytest.param(pair(b"a", b"x") + pair(b"b", b"y"), "2 values, and Features do not have", id="two values"),
    ],
)
def test_an_answer_that_is_none(plug_in: ScriptedPlugIn, answer: bytes, reason: str) -> None:
    plug_in.answers |= {"Get": says(answer), "BulkGet": says(message(1, message(1, b"a") + message(2, answer)))}
    with opened(TYPE, {}) as store:
        with pytest.raises(MalformedAnswer, match=f"secret a: .*{reason}"):
            store.fetch("a")
        if "values" not in reason:  # names do not depend on that
            with pytest.raises(MalformedAnswer, match=f"list of secrets: .*{reason}"):
                store.names("")


def test_an_answer_over_grpcs_own_limit_is_read(plug_in: ScriptedPlugIn) -> None:
    """4 MiB, which Dapr does not read either."""
    value = secret("large").encode() + bytes(5 << 20).replace(b"\0", b"x")
    plug_in.answers["Get"] = says(pair(b"a", value))
    with opened(TYPE, {}) as store:
        assert store.fetch("a").values == {"a": value}


def test_an_answer_over_our_limit_is_not(plug_in: ScriptedPlugIn) -> None:
    answer = pair(b"a", bytes(LARGEST_ANSWER).replace(b"\0", b"x"))
    plug_in.answers |= {"Get": says(answer), "BulkGet": says(message(1, message(1, b"a") + message(2, answer)))}
    with opened(TYPE, {}) as store:
        for call in every_call(store)[1:]:
            with pytest.raises(MalformedAnswer, match=r"Get: the answer is larger than 16 MiB$"):
                call()
        store.check()


def test_another_service_never_sees_the_properties(plug_in: ScriptedPlugIn) -> None:
    plug_in.answers[REFLECTION.format("v1alpha")] = says(listed("dapr.proto.components.v1.StateStore"))
    with opened(TYPE, {"password": secret("password")}) as store:
        for call in (store.check, lambda: store.multi_valued):
            with pytest.raises(MalformedAnswer, match=f"it offers no secret store: its services do not have {SERVICE}"):
                call()
    assert "Init" not in plug_in.calls


@pytest.mark.parametrize("version", ["v1", None])
def test_newer_reflection_and_none(plug_in: ScriptedPlugIn, version: str | None) -> None:
    del plug_in.answers[REFLECTION.format("v1alpha")]
    if version:
        plug_in.answers[REFLECTION.format(version)] = says(listed(SERVICE))
    with opened(TYPE, {}) as store:
        assert store.fetch("a").values == {"a": b"1"}
    del plug_in.answers["Init"]
    with opened(TYPE, {}) as store, pytest.raises(MalformedAnswer, match=r"it offers no secret store$"):
        store.fetch("a")


def test_one_that_cannot_list_is_read_by_names(plug_in: ScriptedPlugIn) -> None:
    del plug_in.answers["BulkGet"]
    with opened(TYPE, {}) as store:
        assert isinstance(store, PluggableStore)
        with pytest.raises(AccessDenied, match=r"BulkGet: not implemented \(UNIMPLEMENTED\): secrets can be read by"):
            store.names("")
        assert store.largest_batch == 1
        assert store.fetch("a").values == {"a": b"1"}


def test_one_without_ping_is_well(plug_in: ScriptedPlugIn) -> None:
    """No Dapr has ever called it."""
    del plug_in.answers["Ping"]
    with opened(TYPE, {}) as store:
        store.check()


@pytest.mark.parametrize("code", [grpc.StatusCode.UNKNOWN, grpc.StatusCode.PERMISSION_DENIED])
def test_secrets_are_read_alone_while_a_bulk_get_fails(plug_in: ScriptedPlugIn, code: grpc.StatusCode) -> None:
    """One secret that it cannot read fails it as a whole."""
    both = message(1, message(1, b"a") + message(2, pair(b"k", b"1"))) + message(1, message(1, b"b"))
    plug_in.answers["BulkGet"] = says(both)
    with opened(TYPE, {}) as store:
        assert isinstance(store, PluggableStore)
        store.names("")
        plug_in.answers["BulkGet"] = fails(code)
        assert store.largest_batch == 2
        assert store.fetch_many(("a", "b")) == {}
        assert store.largest_batch == 1
        plug_in.answers["BulkGet"] = says(both)
        store.names("")
        assert store.largest_batch == 2


def test_an_answer_of_a_process_that_is_new_does_not_count(plug_in: ScriptedPlugIn, folder: Path) -> None:
    """It is started again while it is asked: who has answered may not have been initialised."""
    other = ScriptedPlugIn()
    other.answers["Get"] = says(pair(b"value", b"2"))
    with ExitStack() as stack, opened(TYPE, {}) as store:

        def start_again(request: bytes, context: Any) -> bytes:
            stack.enter_context(scripted_plug_in(folder / "example.sock", other))
            return pair(b"value", b"1")

        plug_in.answers["Get"] = start_again
        assert store.fetch("a").values == {"a": b"2"}
    assert other.calls[1:] == ["Init", "Features", "Get"]


def test_a_bad_socket_costs_only_itself(folder: Path) -> None:
    with (
        listening(folder / "hangs.sock", lambda _: None),
        listening(folder / "closes.sock", lambda connection: connection.close()),
        scripted_plug_in(folder / "example.sock"),
        opened(TYPE, {}) as store,
    ):
        (folder / "file.sock").write_text("no socket")
        (folder / "directory.sock").mkdir()
        assert store.fetch("a").values == {"a": b"1"}


def test_a_path_may_have_any_characters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """gRPC takes a URI."""
    odd = folder / "a b%20?c#ü"
    odd.mkdir()
    with scripted_plug_in(folder / "example.sock") as plug_in:
        (folder / "example.sock").rename(odd / "example.sock")  # the server's own address is a URI as well
        monkeypatch.setenv(FOLDER, str(odd))
        with opened(TYPE, {}) as store:
            assert store.fetch("a").values == {"a": b"1"}
    assert "Get" in plug_in.calls


def test_a_store_that_is_closed_opens_nothing_any_more(plug_in: ScriptedPlugIn) -> None:
    with opened(TYPE, {}) as store:
        store.check()
    with pytest.raises(StoreUnavailable, match="it is not used any more"):
        store.fetch("a")


def test_closing_lets_a_call_end(plug_in: ScriptedPlugIn) -> None:
    asked = threading.Event()
    closed = threading.Event()

    def slow(request: bytes, context: Any) -> bytes:
        asked.set()
        closed.wait()
        return pair(b"value", b"1")

    plug_in.answers["Get"] = slow
    answers: list[object] = []
    with opened(TYPE, {}) as store:
        thread = threading.Thread(target=lambda: answers.append(store.fetch("a").values))
        thread.start()
        asked.wait()
    closed.set()
    thread.join()
    assert answers == [{"a": b"1"}]
