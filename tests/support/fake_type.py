"""A store type of somebody else: ``secretstores.fake``, known by an entry point alone, as those of other packages are.

It does what its properties say, so that a test, also one that starts a process, can have any trouble it wants.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from secretfs import errors
from secretfs.settings import setting, truthy
from secretfs.store import CachedRead, Secret, StoreContext
from tests.support.canary import secret
from tests.support.manifests import component
from tests.support.memory_store import MemoryStore
from tests.support.waiting import PATIENCE

TYPE = "secretstores.fake"

events: list[str] = []
"""What happened in this process, in order: ``open NAME``, ``check NAME``, ``close NAME``."""
tokens: dict[str, str] = {}
"""The token that each component was opened with."""
released = threading.Event()
"""Set, it ends every call that hangs."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.fake`` component."""

    secrets: Mapping[str, Mapping[str, str]] = setting(
        "secrets", "The secrets, as JSON.", default=None, parse=json.loads
    )
    token: str = setting("token", "A credential.", aliases=("accessToken",))
    multi_valued: bool = setting("multiValued", "Whether secrets have keys.", default=True, parse=truthy)
    folders: bool = setting("folders", "List one folder at a time.", default=False, parse=truthy)
    fail: tuple[tuple[str, str], ...] = setting(
        "fail",
        "What goes wrong, as `open=ValueError check=hang names:team=AccessDenied`.",
        default=(),
        parse=lambda text: tuple((what, how) for what, _, how in (word.partition("=") for word in text.split())),
    )
    meet: int = setting("meet", "How many secrets must be asked for at the same time.", default=0, parse=int)
    delay: float = setting("delay", "Seconds that each call takes.", default=0.0, parse=float)
    record: str = setting("record", "File to write the process group and session into when it is opened.")


class FakeStore(MemoryStore):
    """A `MemoryStore` that writes down its life and fails on demand."""

    def __init__(self, name: str, settings: Settings) -> None:
        super().__init__(
            {
                key: {part: value.encode() for part, value in values.items()}
                for key, values in (settings.secrets or {}).items()
            },
            multi_valued=settings.multi_valued,
            folders=settings.folders,
        )
        self._name = name
        self._fail = dict(settings.fail)
        self._delay = settings.delay
        self._meeting = threading.Barrier(settings.meet) if settings.meet else None

    def fetch(self, name: str) -> Secret:
        if self._meeting is not None:
            self._meeting.wait(PATIENCE)
        return super().fetch(name)

    def check(self) -> None:
        events.append(f"check {self._name}")
        super().check()

    def watch(self, changed: Callable[[frozenset[str]], None]) -> None:
        """Report nothing, or go wrong."""
        self._go_wrong("watch")

    def unchanged(self, known: Mapping[str, CachedRead]) -> frozenset[str]:
        """Vouch for nothing, or go wrong."""
        self._go_wrong("unchanged")
        return frozenset()

    def close(self) -> None:
        events.append(f"close {self._name}")
        super().close()
        self._go_wrong("close")

    def _called(self, call: str) -> None:
        super()._called(call)
        time.sleep(self._delay)
        self._go_wrong(call)

    def _go_wrong(self, call: str) -> None:
        go_wrong(self._fail.get(call, ""))


def open_store(settings: Settings, context: StoreContext) -> FakeStore:
    """Open, or do what ``fail`` says."""
    events.append(f"open {context.component}")
    tokens[context.component] = settings.token
    if settings.record:
        Path(settings.record).write_text(f"{os.getpgid(0)} {os.getsid(0)}", encoding="ascii")
    go_wrong(dict(settings.fail).get("open", ""))
    return FakeStore(context.component, settings)


def go_wrong(how: str) -> None:
    """Raise the error of that name, or hang. The text of an error that is not ours holds a secret."""
    if how == "hang":
        released.wait(PATIENCE)
    elif how == "ConfigurationError":
        raise errors.ConfigurationError("token: cannot be used")
    elif hasattr(errors, how):
        raise getattr(errors, how)("the fake says so")
    elif how:
        raise {"ValueError": ValueError, "OSError": OSError, "SystemExit": SystemExit}[how](
            f"token is {secret('in-an-error')}"
        )


@contextmanager
def installed(directory: Path) -> Iterator[Path]:
    """Make this type known to this process, from a directory that is like site-packages. For others: PYTHONPATH."""
    information = directory / "fake_store-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-store\nVersion: 1.0\n", encoding="utf-8")
    (information / "entry_points.txt").write_text(f"[secretfs.stores]\n{TYPE} = {__name__}\n", encoding="utf-8")
    sys.path.append(str(directory))
    events.clear()
    tokens.clear()
    released.clear()
    try:
        yield directory
    finally:
        released.set()
        sys.path.remove(str(directory))


@dataclass(frozen=True)
class Fakes:
    """Writes components of this type, and others, into a directory."""

    directory: Path
    site: Path
    """For the PYTHONPATH of a process that shall know the type."""
    env: Mapping[str, str] = field(default_factory=dict)

    def add(
        self,
        name: str,
        properties: Mapping[str, object] | None = None,
        *,
        type: str = TYPE,  # noqa: A002
        spec: Mapping[str, object] | None = None,
        secret_store: str = "",
        scopes: tuple[str, ...] = (),
        annotations: Mapping[str, str] | None = None,
        **more: object,
    ) -> Path:
        """Write one component. ``spec`` is merged into its spec: ignoreErrors, initTimeout."""
        path = component(
            self.directory,
            name,
            type,
            dict(properties or {}) | more,
            secret_store=secret_store,
            scopes=scopes,
            annotations=annotations,
        )
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        document["spec"] = {**document["spec"], **(spec or {})}
        path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
        return path


def reference(name: str, key: str = "") -> dict[str, object]:
    """Make the value of a property that is a secret of another store."""
    return {"secretKeyRef": {"name": name, **({"key": key} if key else {})}}
