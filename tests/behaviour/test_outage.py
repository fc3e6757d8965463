"""When a store hangs, dies, refuses or answers nonsense."""

import json
import os
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext

import pytest
import trustme

from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted
from tests.support.servers.faulty import Faulty
from tests.support.servers.openbao import OpenBao
from tests.support.shell import errno_of, lines, run, wait_until
from tests.support.vault_fixtures import Folder

pytestmark = pytest.mark.mount

TTL = 0.2
DEADLINE = 2.0
AT_ONCE = DEADLINE / 2  # for most of many calls
SLACK = 30.0  # seconds a busy machine may add to a promise
QUICK = {"secretfs/ttl": "200ms", "secretfs/deadline": "2s"}
BRIEF = {**QUICK, "secretfs/max-stale": "1s"}
PATIENT = {"secretfs/ttl": "1h", "secretfs/deadline": "1m"}
CROWD = 150  # more than the 99 requests that pyfuse3 serves at once if left alone
COLD = 120
OLD, NEW = secret("old"), secret("new, and longer")


class Certificates:
    """An authority, a certificate that is good, and one that was."""

    def __init__(self, directory: Path) -> None:
        authority = trustme.CA()
        self.authority = directory / "ca.pem"
        authority.cert_pem.write_to_path(self.authority)
        past = datetime.now(UTC) - timedelta(days=1)
        self.good = _server_side(authority.issue_cert("127.0.0.1"))
        self.expired = _server_side(authority.issue_cert("127.0.0.1", not_after=past))


def _server_side(certificate: trustme.LeafCert) -> SSLContext:
    context = SSLContext(PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


@dataclass(frozen=True)
class Shop:
    """Stores on one server that a test may hurt, one that fails by itself, and one that does not fail."""

    mount: Mounted
    server: OpenBao
    way: Faulty
    """Between us and the server, for all stores but `other`."""
    other_way: Faulty
    certificates: Certificates
    file: Path
    taken: Iterator[int]

    @property
    def quick(self) -> Path:
        return self.mount.path / "quick"

    @property
    def patient(self) -> Path:
        return self.mount.path / "patient"

    def cold(self) -> Path:
        """Return the file of a secret that nobody has read yet."""
        return self.quick / f"cold-{next(self.taken)}/key"

    def put(self, name: str, value: str) -> None:
        self.server.put(f"secret/shop/{name}", {"key": value})

    def ready(self, store: str = "quick") -> None:
        """Wait until all is well: what is known is fresh, what is listed is what there is, and nothing is in doubt.

        The last is because requests that were under way when the test before mended a way have failed.
        """
        path = self.mount.path / store / "warm/key"
        wait_until(lambda: works(path) and stale(path) == "0")
        wait_until(lambda: len(os.listdir(path.parents[1])) > COLD)  # noqa: PTH208
        wait_until(lambda: self.state(store) not in ("in doubt", "down"))

    def state(self, store: str) -> str:
        """Return what `status.json` says of a store."""
        status = json.loads((self.mount.path / ".secretfs/status.json").read_text("utf-8"))
        return str(status["stores"][store]["state"])


def works(path: Path) -> bool:
    return errno_of(path.read_bytes) == ""


def stale(path: Path) -> str:
    """Return what the attribute says, or the errno that asking for it ends with."""
    value = b""

    def ask() -> None:
        nonlocal value
        value = os.getxattr(path, "user.secretfs.stale")

    return errno_of(ask) or value.decode()


@pytest.fixture
def shop(street: Shop) -> Iterator[Shop]:
    """Give the test the shop in order, and put in order what it leaves."""
    yield street
    street.way.present(street.certificates.good)
    street.way.mend()
    street.other_way.mend()


@pytest.fixture(scope="module")
def street(scratch: Path, own_server: OpenBao) -> Iterator[Shop]:
    seed(own_server)
    file = scratch / "secrets.json"
    file.write_text(json.dumps({"secret": secret("file")}))
    certificates = Certificates(scratch)
    with ExitStack() as stack:
        way = stack.enter_context(Faulty(own_server.port, certificates.good))
        other_way = stack.enter_context(Faulty(own_server.port))
        folder, trust = Folder(own_server, "shop"), str(certificates.authority)
        for name, annotations in (("quick", QUICK), ("brief", BRIEF), ("patient", PATIENT)):
            properties = folder.metadata(vaultAddr=way.address, caCert=trust)
            component(scratch / "manifests", name, "hashicorp.vault", properties, annotations=annotations)
        properties = folder.metadata(vaultAddr=other_way.address)
        component(scratch / "manifests", "other", "hashicorp.vault", properties, annotations=QUICK)
        component(scratch / "manifests", "file", "local.file", {"secretsFile": file}, annotations=BRIEF)
        component(scratch / "manifests", "env", "local.env", {"prefix": "OUTAGE_"}, annotations=QUICK)
        expected = ["quick: ", "brief: ", "patient: ", "other: ", "file: "]  # each trouble is logged, once
        environment = {"OUTAGE_TOKEN": secret("env")}
        mount = stack.enter_context(mounted(scratch / "manifests", env=environment, expect_log=expected))
        # Against the order of listings: else two in a row have others fetched ahead, which are not cold any more.
        taken = iter(sorted(range(COLD), key=str, reverse=True))
        yield Shop(mount, own_server, way, other_way, certificates, file, taken)


def seed(server: OpenBao) -> None:
    names = ["warm", "doomed", *(f"cold-{number}" for number in range(COLD))]
    for name in (*names, *(f"crowd-{number}" for number in range(CROWD))):
        server.put(f"secret/shop/{name}", {"key": secret(name)})


def listing(path: Path) -> Callable[[], object]:
    """Return a call that lists a directory."""
    return partial(os.listdir, path)


def took(call: Callable[[], object]) -> tuple[str, float]:
    """Call, and return the errno it ended with and how long it took."""
    begin = time.monotonic()
    return errno_of(call), time.monotonic() - begin


def side_by_side(calls: list[Callable[[], object]]) -> list[tuple[str, float]]:
    """Call all of them at the same time."""
    results: list[tuple[str, float]] = []
    threads = [threading.Thread(target=lambda call=call: results.append(took(call))) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Patron:
    """Reads one file over and over, and takes the time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: list[tuple[str, float]] = []
        self.contents: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> "Patron":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _read(self) -> None:
        while not self._over.wait(0.005):
            self.results.append(took(lambda: self.contents.update([self.path.read_text()])))

    def is_content(self) -> None:
        """It never had to wait longer than the deadline, nor an error; as a rule it did not wait at all."""
        assert {error for error, _ in self.results} == {""}
        assert max(seconds for _, seconds in self.results) < DEADLINE + SLACK
        assert statistics.median(seconds for _, seconds in self.results) < AT_ONCE


# --- all that may happen ---

Fault = Callable[[Shop], AbstractContextManager[None]]


@contextmanager
def stopped(shop: Shop) -> Iterator[None]:
    with shop.server.hanging():
        yield


@contextmanager
def killed(shop: Shop) -> Iterator[None]:
    shop.server.kill()
    try:
        yield
    finally:
        for way in (shop.way, shop.other_way):
            way.shut()  # nobody may see it before it has its secrets again
        shop.server.start()
        seed(shop.server)
        for way in (shop.way, shop.other_way):
            way.mend()


def broken(how: str, *arguments: object) -> Fault:
    @contextmanager
    def fault(shop: Shop) -> Iterator[None]:
        getattr(shop.way, how)(*arguments)
        yield
        shop.way.mend()

    return fault


@contextmanager
def expired(shop: Shop) -> Iterator[None]:
    shop.way.present(shop.certificates.expired)
    yield
    shop.way.present(shop.certificates.good)


FAULTS: dict[str, tuple[Fault, str]] = {
    "stopped": (stopped, "ETIMEDOUT"),
    "killed": (killed, "EIO"),
    "refused": (broken("shut"), "EIO"),
    "reset": (broken("reset"), "EIO"),
    "black hole": (broken("black_hole"), "ETIMEDOUT"),
    "silent": (broken("swallow"), "ETIMEDOUT"),
    "dripping": (broken("drip"), "ETIMEDOUT"),
    "500": (broken("answer", 500), "EIO"),
    "429": (broken("answer", 429), "EIO"),
    "429, later": (broken("answer", 429, b"", "Retry-After: 60"), "EIO"),
    "malformed": (broken("answer", 200, b'{"data": {"data"'), "EBADMSG"),
    "expired certificate": (expired, "EIO"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_known(shop: Shop, fault: str) -> None:
    """stale-1: While a store fails, in whatever way, its cached values, sizes and listings are served."""
    how, error = FAULTS[fault]
    shop.ready()
    warm, known = shop.quick / "warm/key", secret("warm")
    with Patron(warm) as patron:
        with how(shop):
            wait_until(lambda: stale(warm) == "1")
            # What is not known fails in time; and when a few have failed, at once.
            first = side_by_side([shop.cold().read_bytes for _ in range(3)])
            assert [name for name, _ in first] == [error] * 3
            assert max(seconds for _, seconds in first) < DEADLINE + SLACK
            later = [took(call) for call in (shop.cold().read_bytes, shop.cold().stat, listing(shop.cold().parent))]
            assert [name for name, _ in later] == [error] * 3
            assert statistics.median(seconds for _, seconds in later) < AT_ONCE
            # What is known does not.
            shop.way.forget()
            begun = time.monotonic()
            for _ in range(20):
                assert (warm.read_text(), warm.stat().st_size) == (known, len(known))
                assert len(os.listdir(shop.quick)) > COLD  # noqa: PTH208
                assert os.listdir(warm.parent) == ["key"]  # noqa: PTH208
            assert stale(warm) == "1"
            assert (shop.mount.path / "env/TOKEN").read_text() == secret("env")
            asked, passed = [request for _, request in shop.way.requests()], time.monotonic() - begun
            assert len(asked) <= 6 + 3 * passed, asked  # three stores, each of which tries again now and then
        # It answers again: that shows by itself.
        wait_until(lambda: stale(warm) == "0")
        cold = shop.cold()
        wait_until(lambda: works(cold))
    patron.is_content()
    assert set(patron.contents) == {known}


def test_what_is_stale_says_so(shop: Shop) -> None:
    """stale-2: `user.secretfs.stale` of a secret and its keys is 1 while an expired value is served, else 0."""
    shop.ready()
    warm = shop.quick / "warm/key"
    shop.way.shut()
    wait_until(lambda: stale(warm) == "1")
    assert stale(warm.parent) == "1"
    fetched = os.getxattr(warm, "user.secretfs.fetched")
    time.sleep(1.1)  # it counts in seconds
    assert os.getxattr(warm, "user.secretfs.fetched") == fetched
    shop.way.mend()
    wait_until(lambda: (stale(warm), stale(warm.parent)) == ("0", "0"))
    assert _moment(os.getxattr(warm, "user.secretfs.fetched")) > _moment(fetched)


def _moment(text: bytes) -> float:
    return datetime.fromisoformat(text.decode()).timestamp()


def text_of(path: Path) -> str:
    """Read a file; nothing if that fails."""
    try:
        return path.read_text()
    except OSError:
        return ""


def test_stale_has_an_end(shop: Shop) -> None:
    """stale-3: Nothing that was fetched more than `max-stale` (1 h by default) ago is served."""
    shop.ready("brief")
    brief, quick = shop.mount.path / "brief/warm/key", shop.quick / "warm/key"
    assert works(quick)
    shop.way.shut()
    texts: set[str] = set()

    def ended() -> bool:
        texts.add(text_of(brief))
        return "" in texts

    wait_until(ended)
    assert texts <= {secret("warm"), ""}
    calls: list[Callable[[], object]] = [
        brief.read_bytes,
        brief.stat,
        listing(brief.parent),
        listing(brief.parents[1]),
        (brief.parents[1] / "never-there").stat,
        (brief.parents[1] / ".bulk.json").read_bytes,
    ]
    wait_until(lambda: {errno_of(call) for call in calls} == {"EIO"})  # what was fetched last ends last
    assert works(quick)
    shop.way.mend()
    shop.ready("brief")


@pytest.mark.parametrize("refusal", ["gone", "forbidden"])
def test_a_refusal(shop: Shop, refusal: str) -> None:
    """stale-4: A secret that its store reports as gone or forbidden is so within `ttl`, even if other stores fail."""
    shop.ready("other")
    shop.ready()
    doomed = shop.mount.path / "other/doomed/key"
    wait_until(lambda: works(doomed))
    shop.way.shut()
    wait_until(lambda: stale(shop.quick / "warm/key") == "1")
    if refusal == "gone":
        shop.server.delete("secret/shop/doomed")
    else:
        shop.other_way.answer(403, b'{"errors":["permission denied"]}')
    errors: list[str] = []

    def works_no_more() -> bool:
        errors.append(errno_of(doomed.read_bytes))
        return errors[-1] != ""

    wait_until(works_no_more)
    assert errors[-1] == ("ENOENT" if refusal == "gone" else "EACCES")
    shop.other_way.mend()
    seed(shop.server)
    shop.way.mend()
    wait_until(lambda: works(doomed))
    shop.ready()


def test_a_refusal_after_an_outage(shop: Shop) -> None:
    """A stale value that turns out to be refused is not served again (stale-4)."""
    shop.ready("other")
    doomed = shop.mount.path / "other/doomed/key"
    wait_until(lambda: works(doomed))
    shop.other_way.shut()
    wait_until(lambda: stale(doomed) == "1")
    shop.server.delete("secret/shop/doomed")
    assert works(doomed)
    shop.other_way.mend()
    wait_until(lambda: errno_of(doomed.read_bytes) == "ENOENT")
    shop.other_way.shut()
    time.sleep(2 * TTL)
    assert errno_of(doomed.read_bytes) in ("ENOENT", "EIO")
    shop.other_way.mend()
    seed(shop.server)
    wait_until(lambda: works(doomed))


def test_return(shop: Shop) -> None:
    """stale-5: When a store answers again, all that is in use is fresh within seconds, each secret fetched once."""
    shop.ready()
    paths = [shop.quick / f"crowd-{number}/key" for number in range(CROWD)]
    assert all(map(works, paths))
    shop.way.shut()
    wait_until(lambda: all(stale(path) == "1" for path in paths))
    for number in range(CROWD):
        shop.put(f"crowd-{number}", NEW)
    with Patron(paths[0]) as patron:
        shop.way.forget()
        shop.way.mend()
        wait_until(lambda: all(path.read_text() == NEW for path in paths))
        ended = time.monotonic()
    patron.is_content()
    # With so short a ttl each is asked for again all the time: as often as that, and never twice at once.
    requests = [(at, request) for at, request in shop.way.requests() if "/crowd-" in request and at <= ended]
    began = requests[0][0]
    soonest = 0.7 * 0.1  # until an answer is due to be asked for again: it lives for 0.1 s from when it arrives
    assert max(Counter(request for _, request in requests).values()) <= 1 + (ended - began) / soonest
    assert max(Counter(request for at, request in requests if at < began + soonest).values()) == 1
    seed(shop.server)


# --- a store that hangs ---


def test_a_hung_store(shop: Shop) -> None:
    """error-1: What is not cached is ETIMEDOUT if its store does not answer within `deadline` (5 s by default)."""
    shop.ready()
    with shop.server.hanging():
        for call in (shop.cold().read_bytes, shop.cold().stat, listing(shop.cold().parent)):
            error, seconds = took(call)
            assert error == "ETIMEDOUT", call
            assert seconds < DEADLINE + SLACK
    shop.ready()


def test_other_stores_go_on(shop: Shop) -> None:
    """error-2: A store that hangs delays no other store, however many readers wait for it."""
    shop.ready("patient")
    waiting: list[str] = []

    def read(number: int) -> None:
        waiting.append(errno_of(os.listdir, shop.patient / f"crowd-{number}"))

    crowd = [threading.Thread(target=read, args=(number,)) for number in range(CROWD)]
    with shop.server.hanging():
        for thread in crowd:
            thread.start()
        for _ in range(5):
            assert (shop.mount.path / "env/TOKEN").read_text() == secret("env")
            assert (shop.mount.path / "file/secret").read_text() == secret("file")
            assert lines("ls", shop.mount.path) == ["brief", "env", "file", "other", "patient", "quick"]
        assert waiting == []  # they did wait all the time
    for thread in crowd:
        thread.join()
    assert waiting == [""] * CROWD


def test_what_is_fresh_is_served(shop: Shop) -> None:
    """error-3: A value younger than `ttl` is served whatever happens to its store."""
    path = shop.patient / "warm/key"
    wait_until(lambda: works(path))
    with shop.server.hanging():
        run("cat", path).check_returncode()
        assert path.read_text() == secret("warm")
        assert stale(path) == "0"
    shop.ready("patient")


# --- a store that is gone ---


def test_a_dead_store(scratch: Path, own_server: OpenBao) -> None:
    """error-5: What is not cached is EIO, at once, if its store cannot be reached. It is never ENOENT."""
    folder = Folder(own_server, "shop")
    with Faulty(own_server.port) as way:
        properties, annotations = folder.metadata(vaultAddr=way.address), {"secretfs/deadline": "5m"}
        component(scratch / "dead", "vault", "hashicorp.vault", properties, annotations=annotations)
        with mounted(scratch / "dead", expect_log=["vault: "]) as mount:
            vault = mount.path / "vault"
            way.shut()
            calls: list[Callable[[], object]] = [
                (vault / "warm/key").read_bytes,
                (vault / "warm").stat,
                listing(vault),
                (vault / "never-there").stat,
                (vault / ".bulk.json").read_bytes,
                (vault / ".bulk.env").read_bytes,
            ]
            for call in calls:
                error, seconds = took(call)
                assert error == "EIO"
                assert seconds < SLACK


def test_a_name_that_was_not_there(shop: Shop) -> None:
    """error-13: While a store fails, a name that was missing from its last listing is ENOENT."""
    shop.ready()
    shop.way.shut()
    wait_until(lambda: stale(shop.quick / "warm/key") == "1")
    assert errno_of((shop.quick / "never-there").stat) == "ENOENT"
    assert errno_of((shop.quick / "warm/never-there").stat) == "ENOENT"
    shop.way.mend()
    shop.ready()


def test_back_again(shop: Shop) -> None:
    """error-6: When a store answers again, its files can be read again; no remount or restart is needed."""
    shop.ready()
    cold = shop.cold()
    with killed(shop):
        wait_until(lambda: errno_of(cold.read_bytes) == "EIO")
    wait_until(lambda: works(cold))
    shop.mount.said("quick: answers again")


def test_an_outage_is_logged_once(shop: Shop) -> None:
    """error-7: The log says when an outage begins, when its reason changes and when it ends, not at every read."""
    shop.ready("patient")
    cold = [shop.patient / f"cold-{number}" for number in range(60, 70)]
    reloads = shop.mount.log.count("INFO serving ")
    shop.mount.process.send_signal(signal.SIGHUP)
    shop.mount.said("INFO serving ", reloads + 1)  # so what was said of outages before is in the log as well
    begun = shop.mount.log.count("WARNING patient: ")
    ended = shop.mount.log.count("patient: answers again")
    shop.way.shut()
    for _ in range(3):
        assert [errno_of(os.listdir, path) for path in cold] == ["EIO"] * len(cold)
    shop.way.mend()
    wait_until(lambda: works(cold[0] / "key"))
    shop.mount.said("patient: answers again", ended + 1)
    assert shop.mount.log.count("WARNING patient: ") == begun + 1


def test_nobody_asks_a_store_that_is_down(shop: Shop) -> None:
    """error-12: After three failures in a row the circuit breaker opens; probes, 1 s to 30 s apart, close it."""
    shop.ready("patient")
    cold = [shop.patient / f"cold-{number}" for number in range(20, 50)]
    shop.way.answer(500)
    shop.way.forget()
    begun = time.monotonic()
    assert {errno_of(os.listdir, path) for path in cold} == {"EIO"}
    asked, passed = [request for _, request in shop.way.requests() if "/cold-" in request], time.monotonic() - begun
    assert 3 <= len(asked) < len(cold) / 3 + 3 * passed  # a trial may have succeeded between two of these
    shop.way.mend()
    wait_until(lambda: works(cold[0] / "key"))
    assert all(works(path / "key") for path in cold)


# --- a store that answers something else ---


def test_refused(scratch: Path, openbao_server: OpenBao) -> None:
    """error-8: A secret that the store refuses to our credentials is EACCES; so is a listing that it refuses."""
    Folder(openbao_server, "refused").put("mine", {"key": secret("mine")})
    Folder(openbao_server, "refused").put("theirs", {"key": secret("theirs")})
    token = openbao_server.limited_token(**{"secret/data/refused/mine": "read"})
    folder = Folder(openbao_server, "refused")
    component(scratch / "refused", "vault", "hashicorp.vault", folder.metadata(vaultToken=token))
    with mounted(scratch / "refused", expect_log=[r"permission denied \(403\)"]) as mount:
        assert errno_of(os.listdir, mount.path / "vault") == "EACCES"
        assert (mount.path / "vault/mine/key").read_text() == secret("mine")
        for path in ("vault/theirs", "vault/theirs/key", "vault/never-there"):
            assert errno_of((mount.path / path).stat) == "EACCES"


def test_refused_from_now_on(scratch: Path, openbao_server: OpenBao) -> None:
    """error-16: A secret that a store gave and then refuses is EACCES once that is known, not when `ttl` is over."""
    folder = Folder(openbao_server, "withdrawn")
    folder.put("mine", {"key": secret("mine"), "other": secret("mine")})
    token = openbao_server.limited_token(**{"secret/*": "read list"})
    properties = folder.metadata(vaultToken=token)
    component(scratch / "withdrawn", "vault", "hashicorp.vault", properties, annotations={"secretfs/ttl": "1h"})
    with mounted(scratch / "withdrawn", expect_log=[r"permission denied|\(403\)|invalid token"]) as mount:
        path = mount.path / "vault/mine/key"
        with path.open("rb", buffering=0) as opened:
            assert path.read_text() == secret("mine")
            openbao_server.call("POST", "auth/token/revoke", {"token": token})
            assert path.read_text() == secret("mine")  # nobody knows yet
            assert secretfs("refresh", mount.path, "vault/mine").status != 0
            assert errno_of(path.read_bytes) == "EACCES"
            assert errno_of((mount.path / "vault/mine/other").stat) == "EACCES"
            assert opened.read() == secret("mine").encode()


def test_malformed(shop: Shop) -> None:
    """error-9: A malformed answer, such as a secrets file that is not JSON, is EBADMSG."""
    path = shop.mount.path / "file/secret"
    assert path.read_text() == secret("file")
    content = shop.file.read_bytes()
    shop.file.write_bytes(content[:-5])
    wait_until(lambda: errno_of(path.read_bytes) == "EBADMSG")  # when max-stale is over
    shop.file.unlink()
    wait_until(lambda: errno_of(path.read_bytes) == "EIO")  # gone is not "no such secret"
    shop.file.write_bytes(content)
    wait_until(lambda: works(path))


def test_not_there(shop: Shop) -> None:
    """error-10: What does not exist is ENOENT, and nothing else is."""
    shop.ready()
    for path in ("nope", "quick/nope", "quick/warm/nope", "quick/nope/nope", "env/NOPE", "file/nope"):
        assert errno_of((shop.mount.path / path).stat) == "ENOENT"
    assert errno_of((shop.quick / "warm/key/below").stat) == "ENOTDIR"
    assert errno_of((shop.quick / "warm").read_bytes) == "EISDIR"
    assert errno_of(os.listdir, shop.quick / "warm/key") == "ENOTDIR"
