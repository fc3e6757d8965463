"""How long the Vault store's tokens live, on a clock that the test moves; and how long a call may take."""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from secretfs.errors import AccessDenied, DeadlineExceeded, MalformedAnswer, StoreError, StoreUnavailable
from secretfs.stores._http.trust import Trust, tls_context
from secretfs.stores.vault.http import Connections, Endpoint, PoolAdapter
from secretfs.stores.vault.renewal import LeaseTerm, Scheduler, retry_at
from secretfs.stores.vault.response import Response
from secretfs.stores.vault.token import FileToken, Session
from tests.support.canary import CANARY, secret
from tests.support.opened import opened
from tests.support.waiting import PATIENCE

TYPE = "secretstores.hashicorp.vault"


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Plans(Scheduler):
    """Does nothing by itself."""

    def __init__(self, clock: Clock) -> None:
        super().__init__("test", clock)
        self.planned: dict[object, tuple[float, Callable[[], None]]] = {}

    def at(self, when: float, key: object, action: Callable[[], None]) -> None:
        self.planned[key] = when, action

    @property
    def due(self) -> float:
        ((when, _),) = self.planned.values()
        return when

    def run(self) -> None:
        """Do what is planned."""
        ((_, action),) = self.planned.values()
        self.planned.clear()
        action()


class Server(PoolAdapter):
    """Vault's answers about tokens, and a count of the questions."""

    def __init__(self, clock: Clock) -> None:
        trust = Trust("store", lambda: tls_context([]))
        super().__init__(Connections(Endpoint("http://127.0.0.1:1", 5, trust)))
        self.clock = clock
        self.asked: list[str] = []
        self.logins = 0
        self.ttl: Any = 60
        self.renewable = True
        self.renews: Any = 60
        self.fails: dict[str, StoreError] = {}
        self.dead: set[str] = set()

    def bearing(self, token: str) -> PoolAdapter:
        other = Server.__new__(Server)
        other.__dict__ = {**self.__dict__, "_token": token}
        return other

    def ask(self, method: str, target: str, *, json: Any = None, once: bool = False) -> tuple[Response, str]:
        what = target.removeprefix("/v1/auth/token/")
        self.asked.append(what)
        if what in self.fails:
            raise self.fails[what]
        if self._token in self.dead:
            raise AccessDenied("permission denied (403)")
        auth = {"lease_duration": self.renews, "renewable": self.renewable}
        return Response("{}", {"auth": auth, "data": {}}), self._token

    def login(self, _: PoolAdapter) -> dict[str, Any]:
        self.asked.append("login")
        if "login" in self.fails:
            raise self.fails["login"]
        self.logins += 1
        return {"client_token": secret(f"{self.logins}"), "lease_duration": self.ttl, "renewable": self.renewable}

    def take(self) -> list[str]:
        """Return what was asked since the last time."""
        asked, self.asked[:] = self.asked[:], []
        return asked


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server(clock: Clock) -> Server:
    return Server(clock)


@pytest.fixture
def plans(clock: Clock) -> Plans:
    return Plans(clock)


@pytest.fixture
def session(clock: Clock, server: Server, plans: Plans) -> Session:
    return Session("test", server.login, server, plans, changed=lambda _: None, lent=lambda: None, clock=clock)


# --- a life ---


def test_a_life() -> None:
    life = LeaseTerm.lent(1000.0, 60, renewable=True)
    assert (life.expires, life.full, life.last) == (1060.0, 60.0, False)
    assert 1033 <= life.due <= 1040
    assert len({LeaseTerm.lent(0.0, 60, renewable=True).due for _ in range(10)}) > 1
    assert LeaseTerm.lent(1000.0, 60, renewable=False).last
    assert not LeaseTerm.lent(1000.0, 59, renewable=True, full=60).last
    assert LeaseTerm.lent(1000.0, 50, renewable=True, full=60).last


def test_nothing_is_for_ever_before_and_the_end_after() -> None:
    assert LeaseTerm.lent(1000.0, 0, renewable=False).due == math.inf
    ended = LeaseTerm.lent(1000.0, 0, renewable=True, full=60)
    assert (ended.expires, ended.last) == (1000.0, True)


@pytest.mark.parametrize("ttl", [None, "60", True])
def test_a_duration_must_be_one(ttl: Any) -> None:
    with pytest.raises(MalformedAnswer, match="the answer has no duration"):
        LeaseTerm.lent(0.0, ttl, renewable=True)


def test_trying_again_while_there_is_time() -> None:
    life = LeaseTerm.lent(0.0, 90, renewable=True)
    assert [retry_at(now, life) for now in (60.0, 89.9, 90.0)] == [70.0, 90.10000000000001, None]
    assert retry_at(0.0, LeaseTerm.lent(0.0, 86400, renewable=True)) == 30.0


# --- things in the background ---


def test_the_background_does_what_is_due_in_order() -> None:
    done: list[str] = []
    ended = threading.Event()
    background = Scheduler("test")
    now = time.monotonic()
    background.at(now + 0.05, "b", lambda: done.append("b"))
    background.at(now + 60, "never", lambda: done.append("never"))
    background.at(now + 60, "a", lambda: done.append("late"))
    background.at(now, "a", lambda: done.append("a"))
    background.at(now + 0.06, "c", ended.set)
    assert ended.wait(PATIENCE)
    background.close()
    background.at(now, "d", lambda: done.append("d"))
    assert done == ["a", "b"]


def test_a_defect_does_not_end_the_background(expect_log: Callable[[str], None]) -> None:
    expect_log("test: a defect in its renewals: ZeroDivisionError")
    done = threading.Event()
    background = Scheduler("test")
    background.at(0, "a", lambda: [1 // 0])  # type: ignore[arg-type]
    background.at(0.1, "b", done.set)
    assert done.wait(PATIENCE)
    background.close()


# --- a session ---


def test_a_token_is_renewed_when_two_thirds_are_over(
    clock: Clock, server: Server, plans: Plans, session: Session
) -> None:
    token = session()
    assert CANARY not in f"{session!r} {session._current!r}"
    for _ in range(3):
        clock.now = plans.due
        plans.run()
    assert session() == token
    assert server.take() == ["login", "renew-self", "renew-self", "renew-self"]


def test_near_its_longest_life_a_token_is_replaced_instead(
    clock: Clock, server: Server, plans: Plans, session: Session
) -> None:
    first = session()
    server.renews = 20
    for _ in range(2):
        clock.now = plans.due
        plans.run()
    assert server.take() == ["login", "renew-self", "login"]
    assert session() != first
    session.close()
    assert server.take() == ["revoke-self"] * 2  # the first one lives on for those who use it


def test_an_outage_is_waited_out_while_the_token_lives(
    clock: Clock, server: Server, plans: Plans, session: Session
) -> None:
    token = session()
    server.fails = {"renew-self": StoreUnavailable("down"), "login": StoreUnavailable("down")}
    clock.now = plans.due
    plans.run()
    assert server.take() == ["login", "renew-self"]
    clock.now = plans.due
    plans.run()
    assert server.take() == ["renew-self", "login"]  # the last third: any token will do
    assert session() == token
    server.fails.clear()
    clock.now = plans.due
    plans.run()
    assert session() == token


def test_a_token_that_ended_unseen_is_replaced_by_the_next_reader(
    clock: Clock, server: Server, plans: Plans, session: Session
) -> None:
    session()
    server.fails = {"renew-self": StoreUnavailable("down"), "login": StoreUnavailable("down")}
    clock.now += 61
    plans.run()
    assert plans.planned == {}
    with pytest.raises(StoreUnavailable):
        session()
    server.fails.clear()
    assert session() == secret("2")


def test_a_refusal_is_worth_one_look_a_second(clock: Clock, server: Server, session: Session) -> None:
    token = session()
    server.take()
    for _ in range(100):
        assert not session.replaced(token, "/v1/secret/data/forbidden")
        clock.now += 0.05
    assert 5 <= server.take().count("lookup-self") <= 6
    assert server.logins == 1


def test_what_was_allowed_is_worth_a_look_at_once(server: Server, session: Session) -> None:
    token = session()
    session.accepted("/known")
    assert not session.replaced(token, "/forbidden")
    server.dead.add(token)
    assert not session.replaced(token, "/forbidden")
    assert session.replaced(token, "/known")
    assert session.replaced(token, "/known")  # somebody else was late
    assert server.logins == 2


def test_a_token_that_may_not_look_itself_up_makes_no_storm(clock: Clock, server: Server, session: Session) -> None:
    server.fails["lookup-self"] = AccessDenied("permission denied (403)")
    for _ in range(600):
        session.replaced(session(), "/forbidden")
        clock.now += 0.1
    assert server.logins <= 6


def test_a_refused_login_is_tried_once_a_second(clock: Clock, server: Server, session: Session) -> None:
    server.fails["login"] = AccessDenied("refused (400)")
    for _ in range(100):
        with pytest.raises(AccessDenied):
            session()
        clock.now += 0.05
    assert 5 <= len(server.take()) <= 6


def test_an_outage_during_a_look_is_an_outage(server: Server, session: Session) -> None:
    token = session()
    server.fails["lookup-self"] = StoreUnavailable("down")
    with pytest.raises(StoreUnavailable):
        session.replaced(token, "/any")
    assert session() == token
    server.fails.clear()
    server.dead.add(token)
    assert session.replaced(token, "/any")  # the look that told nothing does not count


def test_an_outage_during_a_login_is_an_outage(server: Server, session: Session) -> None:
    token = session()
    server.dead.add(token)
    server.fails["login"] = StoreUnavailable("down")
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            session.replaced(token, "/any")
    server.fails.clear()
    assert session.replaced(token, "/any")
    assert server.take().count("lookup-self") == 1


def test_a_closed_session_logs_in_no_more(server: Server, session: Session) -> None:
    session()
    session.close()
    with pytest.raises(StoreUnavailable, match="the store is closed"):
        session()
    assert server.take() == ["login", "revoke-self"]


def test_a_token_file_may_have_another_token_by_now() -> None:
    tokens = ["old"]
    credential = FileToken(lambda: tokens[-1])
    assert not credential.replaced("old", "/any")
    tokens.append("new")
    assert credential.replaced("old", "/any")


# --- one deadline for everything ---


@pytest.fixture
def dripping(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a server whose answers never end, a byte at a time: in the head or in the body."""
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" if request.param == "body" else b"HTTP/1.1 200 OK\r\nX: "
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def drip(connection: socket.socket) -> None:
            with connection:
                try:
                    connection.recv(65536)
                    connection.sendall(head)
                    while not stop.wait(0.02):
                        connection.sendall(b"x")
                except OSError:
                    return

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=drip, args=(connection,)).start()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        stop.set()
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("dripping", ["head", "body"], indirect=True)
def test_a_server_that_drips_is_out_of_time_in_time(dripping: str) -> None:
    properties = {"vaultAddr": dripping, "vaultToken": secret("token")}
    with opened(TYPE, properties, deadline=0.3) as store, pytest.raises(DeadlineExceeded, match="no answer in time"):
        store.fetch("db")  # it would drip for ever
