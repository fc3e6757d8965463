"""``secretstores.secretfs.keyring``: a keyring of the desktop, through the Secret Service of freedesktop.org.

GNOME Keyring, KWallet and KeePassXC speak it. Dapr has no such store. It is spoken by SecretStorage, on one connection
that calls use in turn: many that come and go make GNOME Keyring abort (versions 42 to 50, its issue 196), and a desktop
that has lost its keyring is asked for the password again.

Nothing here unlocks a keyring or answers a prompt: nobody may be there to see it.
"""

import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from jeepney import AuthenticationError, DBusErrorResponse, message_bus
from jeepney.bus import get_bus
from jeepney.io.blocking import DBusConnection, Proxy, prep_socket
from secretstorage import Collection, Item, get_all_collections
from secretstorage.dhcrypto import Session
from secretstorage.exceptions import ItemNotFoundException, LockedException, SecretServiceNotAvailableException
from secretstorage.util import BUS_NAME, open_session

from secretfs.errors import AccessDenied, DeadlineExceeded, MalformedAnswer, SecretNotFound, StoreUnavailable
from secretfs.settings import setting
from secretfs.store import Names, Secret, StoreContext

_DEFAULT: Final = "/org/freedesktop/secrets/aliases/default"


def _attributes(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


@dataclass(frozen=True, slots=True)
class Settings:
    """The properties of a ``secretstores.secretfs.keyring`` component."""

    collection: str = setting(
        "collection", "The keyring, by the name that it shows. Without it, the default keyring.", guards=True
    )
    attributes: tuple[str, ...] = setting(
        "nameAttributes",
        "The attributes of an item that make its name, with commas between. Without them, its label is its name.",
        default=(),
        parse=_attributes,
    )


class KeyringStore:
    """The items of one keyring. Each is one value."""

    multi_valued = False

    def __init__(self, collection: str, attributes: tuple[str, ...], deadline: float) -> None:
        self._name = collection
        self._attributes = attributes
        self._bus = _SessionBus(deadline)

    def check(self) -> None:
        """Look whether the keyring is there, and unlocked."""
        with self._collection():
            pass

    def names(self, folder: str) -> Names:
        """List the names of all items. The secrets are not asked for."""
        if folder:
            return Names()
        with self._collection() as collection:
            return Names(frozenset(name for name, _ in self._items(collection)))

    def fetch(self, name: str) -> Secret:
        """Read one item; of several with this name the one that was changed last."""
        with self._collection() as collection:
            found = [item for known, item in self._items(collection) if known == name]
            if not found:
                raise SecretNotFound(f"secret {name} not found")
            try:
                modified, item = max(((float(item.get_modified()), item) for item in found), key=lambda each: each[0])
                item.session = self._bus.session()
                return Secret({name: item.get_secret()}, modified=modified)
            except ItemNotFoundException:  # deleted since
                raise SecretNotFound(f"secret {name} not found") from None

    def close(self) -> None:
        """Close the connection, once the call that has it is over."""
        self._bus.close()

    def _items(self, collection: Collection) -> Iterator[tuple[str, Item]]:
        for item in collection.get_all_items():
            try:
                name = self._name_of(item)
            except ItemNotFoundException:  # deleted since they were listed
                continue
            if name:
                yield name, item

    def _name_of(self, item: Item) -> str:
        """Return the name of an item; empty if it has not all the attributes."""
        if not self._attributes:
            return str(item.get_label())
        given = item.get_attributes()
        parts = [given.get(attribute, "") for attribute in self._attributes]
        return "/".join(parts) if all(parts) else ""

    @contextmanager
    def _collection(self) -> Iterator[Collection]:
        """Open the keyring for one call. Raises `StoreError`, also for what its body raises."""
        subject = f"keyring {self._name}" if self._name else "default keyring"
        try:
            with self._bus.connection() as connection:
                collection = self._find(connection)
                if collection.is_locked():
                    raise AccessDenied(f"{subject}: it is locked")
                yield collection
        except LockedException:
            raise AccessDenied(f"{subject}: it is locked, or the item is") from None
        except ItemNotFoundException:
            raise StoreUnavailable(f"{subject}: there is none") from None
        except TimeoutError:
            raise DeadlineExceeded(f"{subject}: no answer in time") from None
        except MalformedAnswer as error:
            raise MalformedAnswer(f"{subject}: {error}") from None
        except SecretServiceNotAvailableException:
            raise StoreUnavailable(f"{subject}: nothing on the session bus offers the Secret Service") from None
        except DBusErrorResponse as error:
            refused = error.name.endswith((".IsLocked", ".AccessDenied"))
            raise (AccessDenied if refused else StoreUnavailable)(f"{subject}: {error.name}") from None
        except (OSError, AuthenticationError) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise StoreUnavailable(f"{subject}: the session bus cannot be reached: {reason}") from None

    def _find(self, connection: DBusConnection) -> Collection:
        if not self._name:
            return Collection(connection, _DEFAULT)
        for collection in get_all_collections(connection):
            if collection.get_label() == self._name:
                return collection
        raise ItemNotFoundException(self._name)


class _SessionBus:
    """The connection to the session bus, which one call has at a time: jeepney's belongs to one thread."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._service = ""  # the unique name of the service that has the session
        self._session: Session | None = None

    @contextmanager
    def connection(self) -> Iterator[DBusConnection]:
        """Lend the connection; made, if there is none that works. One whose reply is outstanding is not used again."""
        ends_at = time.monotonic() + self._deadline
        if not self._lock.acquire(timeout=self._deadline):
            raise TimeoutError
        try:
            yield self._working(ends_at)
        except (OSError, MalformedAnswer):
            self._disconnect()
            raise
        finally:
            self._lock.release()

    def session(self) -> Session:
        """Return the session in which secrets are encrypted on the bus. Only for who has the connection."""
        if self._session is None:
            self._session = open_session(self._connection)
        return self._session

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._disconnect()

    def _working(self, ends_at: float) -> DBusConnection:
        """Return a connection whose bus answers. A session of a service that has been restarted since is forgotten."""
        if self._connection is not None:
            self._connection.ends_at = ends_at
            try:
                service = _owner(self._connection)
            except TimeoutError:
                raise
            except OSError:  # the bus was restarted
                self._disconnect()
            else:
                if service != self._service:
                    self._service, self._session = service, None
                return self._connection
        self._connection = _connect(ends_at)
        self._service = _owner(self._connection)
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._session = None


class _Connection(DBusConnection):  # type: ignore[misc]  # it has no types
    """A connection that waits no longer than until ``ends_at``, of `time.monotonic`, whatever is asked."""

    def __init__(self, address: str, ends_at: float) -> None:
        self.ends_at = ends_at
        transport = prep_socket(address, timeout=self._left())
        try:
            super().__init__(transport)
        except BaseException:
            transport.close()
            raise

    def send_and_get_reply(self, message: Any, *, timeout: float | None = None) -> Any:
        """Send a message, and wait for the reply until the deadline is over. ``timeout`` does not count."""
        try:
            return super().send_and_get_reply(message, timeout=self._left())
        except (KeyError, TypeError, ValueError, struct.error):  # as jeepney fails on what it cannot parse
            raise MalformedAnswer("what came over the session bus is not D-Bus") from None

    def _left(self) -> float:
        return max(0.001, self.ends_at - time.monotonic())


def _connect(ends_at: float) -> _Connection:
    try:
        address = get_bus("SESSION")
    except (KeyError, ValueError, RuntimeError):
        raise StoreUnavailable("there is no session bus: DBUS_SESSION_BUS_ADDRESS does not name one") from None
    return _Connection(address, ends_at)


def _owner(connection: _Connection) -> str:
    """Return the unique name of the service; empty if none runs, though the bus may start one when it is asked."""
    try:
        return str(Proxy(message_bus, connection).GetNameOwner(BUS_NAME)[0])
    except DBusErrorResponse:
        return ""


def open_store(settings: Settings, context: StoreContext) -> KeyringStore:
    """Open the keyring; nothing is asked yet."""
    return KeyringStore(settings.collection, settings.attributes, context.deadline)
