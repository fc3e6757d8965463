"""What happens upstream and to the configuration while others read: see `benchmarks.soak`.

Secrets are rotated, come and go; the server hangs, dies and answers nonsense; manifests are edited, well and badly; and
everything is refreshed. A value carries its checksum and the number of its version.
"""

import contextlib
import errno
import json
import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator

from benchmarks.fixtures import Fixtures, Mount
from benchmarks.soaker import DEADLINE, FIRM, PASSING, SHAKY
from tests.support.manifests import component, configuration, scope
from tests.support.servers.faulty import Faulty
from tests.support.servers.openbao import OpenBao
from tests.support.values import sealed

TTL = 1.0
_LARGE, _SMALL = 200_001, 4_000


class Churn:
    """Stores and manifests that change all the time. `findings` and `happened` are counted here and by the run."""

    def __init__(self, fixtures: Fixtures, server: OpenBao, way: Faulty, seed: int) -> None:
        self.findings: list[str] = []
        self.happened: Counter[str] = Counter()
        self.resources = fixtures.directory("resources")
        self.config = self.resources.parent / "config.yaml"
        self.vault: dict[str, str] = {}
        """The newest value of each secret, by name."""
        self.files: dict[str, dict[str, str]] = {"file": {}, "edited": {}}
        """The same for the stores that are files, by store."""
        self._random = random.Random(seed)
        self._server = server
        self._way = way
        self._over = threading.Event()
        self._reachable = threading.Lock()
        self._writing = threading.Lock()
        self._numbers: dict[str, int] = {}
        self._directory = fixtures.directory("stores")
        self._flip = False

    def prepare(self) -> None:
        """Write secrets and manifests."""
        names = [f"{FIRM}-{number}" for number in range(20)] + [f"{SHAKY}-{number}" for number in range(100)]
        for name in names:
            self._put("vault", name)
            for store, secrets in self.files.items():
                secrets[name] = self._next(f"{store}/{name}")
        for store in self.files:
            self._save(store)
        self._declare()

    def _declare(self) -> None:
        short = {"secretfs/ttl": f"{TTL:g}s", "secretfs/deadline": f"{DEADLINE:g}s", "secretfs/idle": "5s"}
        vault = {"vaultAddr": self._way.address, "vaultToken": self._server.token, "vaultKVPrefix": "soak"}
        component(self.resources, "vault", "hashicorp.vault", vault, annotations=short)
        component(
            self.resources, "file", "local.file", {"secretsFile": self._directory / "file.json"}, annotations=short
        )
        self._declare_edited()
        configuration(self.config.parent, scope("file"), name="config")

    def _declare_edited(self) -> None:
        annotations = {"secretfs/ttl": f"{TTL + self._flip:g}s", "secretfs/deadline": f"{DEADLINE:g}s"}
        properties = {"secretsFile": self._directory / "edited.json"}
        component(self.resources, "edited", "local.file", properties, annotations=annotations)

    def _next(self, name: str) -> str:
        """Make the next version of a value: mostly a small one."""
        limit = _LARGE if self._random.random() < 0.05 else _SMALL
        number = self._numbers.get(name, 0) + 1
        while number * 7919 % 200_000 >= limit:
            number += 1
        self._numbers[name] = number
        return sealed(number)

    def _put(self, store: str, name: str) -> None:
        value = self._next(f"{store}/{name}")
        if store == "vault":
            self.vault[name] = value
            self._server.put(f"secret/soak/{name}", {"key": value})
        else:
            with self._writing:
                self.files[store][name] = value
                self._save(store)

    def _delete(self, store: str, name: str) -> None:
        if store == "vault":
            del self.vault[name]
            self._server.delete(f"secret/soak/{name}")
        else:
            with self._writing:
                del self.files[store][name]
                self._save(store)

    def _save(self, store: str) -> None:
        path = self._directory / f"{store}.json"
        new = path.with_suffix(".new")
        new.write_text(json.dumps(self.files[store]))
        new.replace(path)

    # --- what happens ---

    @contextlib.contextmanager
    def busy(self, mount: Mount) -> Iterator[None]:
        """Rotate, break, reload and refresh."""
        works = (
            (self._rotate, 0.03),
            (self._come_and_go, 0.5),
            (self._break, 4.0),
            (lambda: self._reload(mount), 1.5),
            (lambda: self._refresh(mount), 0.7),
        )
        threads = [threading.Thread(target=self._again, args=work) for work in works]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _again(self, work: Callable[[], None], pause: float) -> None:
        while not self._over.wait(pause * self._random.uniform(0.5, 1.5)):
            try:
                work()
            except Exception as error:  # noqa: BLE001 - a finding, and the others go on
                self.findings.append(f"{getattr(work, '__name__', 'work')}: {type(error).__name__}: {error}")
                return

    def _rotate(self) -> None:
        store = self._random.choice(("vault", "vault", "file", "edited"))
        kind, count = self._random.choice(((FIRM, 20), (FIRM, 20), (SHAKY, 100)))
        name = f"{kind}-{self._random.randrange(count)}"
        if store != "vault":
            self._put(store, name)
        elif self._reachable.acquire(blocking=False):
            try:
                self._put(store, name)
            finally:
                self._reachable.release()
        self.happened["rotations"] += 1

    def _come_and_go(self) -> None:
        store, name = self._random.choice(("vault", "file")), f"{PASSING}-{self._random.randrange(10)}"
        there = name in (self.vault if store == "vault" else self.files[store])
        with self._reachable:
            (self._delete if there else self._put)(store, name)
        self.happened["secrets that came or went"] += 1

    def _break(self) -> None:
        how = self._random.choice(("stop", "kill", "reset", "black_hole", "swallow", "500", "429", "garbage", "drip"))
        lasts = self._random.uniform(0.5, 5.0)
        if how == "stop":
            with self._reachable, self._server.hanging():
                self._over.wait(lasts)
        elif how == "kill":
            with self._reachable:
                self._way.shut()  # while the new server is empty, nobody may see it: that would be "no such secret"
                self._server.kill()
                self._over.wait(lasts)
                self._server.start()
                for name, value in self.vault.items():
                    self._server.put(f"secret/soak/{name}", {"key": value})
                self._way.mend()
        else:
            match how:
                case "500" | "429":
                    self._way.answer(int(how), b'{"errors":["no"]}', "Retry-After: 2")
                case "garbage":
                    self._way.answer(200, b'{"data": {"data"')
                case _:
                    getattr(self._way, how)()
            self._over.wait(lasts)
            self._way.mend()
        self.happened[f"outages: {how}"] += 1

    def _reload(self, mount: Mount) -> None:
        match self._random.randrange(4):
            case 0:
                self._flip = not self._flip
                self._declare_edited()
            case 1:
                (self.resources / "edited.yaml").write_text("apiVersion: dapr.io/v1alpha1\nkind: Component\nmeta: [")
                os.kill(mount.pid, signal.SIGHUP)
                self._over.wait(0.3)
                self._declare_edited()
            case 2:
                extra = self.resources / "extra.yaml"
                if extra.exists():
                    extra.unlink()
                else:
                    component(self.resources, "extra", "local.env", {"prefix": "SOAK_"})
            case 3:
                denied = [f"{PASSING}-1"] if self._random.random() < 0.5 else []
                configuration(self.config.parent, scope("file", denied=denied), name="config")
        if self._random.random() < 0.7:
            os.kill(mount.pid, signal.SIGHUP)
        self.happened["reloads"] += 1

    def _refresh(self, mount: Mount) -> None:
        what = self._random.choice(("*", "vault", "file", f"vault/{FIRM}-3", f"file/{FIRM}-3", f"file/{PASSING}-3"))
        try:
            (mount.path / ".secretfs/refresh").write_text(what)
        except OSError as error:
            name = errno.errorcode[error.errno or 0]
            allowed = {"ENOENT"} if PASSING in what else set()
            allowed |= {"EIO", "ETIMEDOUT", "EBADMSG"} if what[0] in "*v" else set()
            if name not in allowed:
                self.findings.append(f"refresh {what}: {name}")
            self.happened[f"refreshes that failed: {name}"] += 1
        else:
            self.happened["refreshes"] += 1
