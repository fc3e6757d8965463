"""``secretstores.secretfs.keyring``: a keyring of the desktop, through the Secret Service of freedesktop.org.

GNOME Keyring, KWallet and KeePassXC speak it. Dapr has no such store. It is spoken by SecretStorage, on a connection of
its own for each call: a connection belongs to one thread, and the service may be restarted at any time.

Nothing here unlocks a keyring or answers a prompt: nobody may be there to see it.
"""

import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from jeepney import AuthenticationError, DBusErrorResponse
from jeepney.bus import get_bus
from jeepney.io.blocking import DBusConnection, prep_socket
from secretstorage import Collection, Item, get_all_collections
from secretstorage.exceptions import ItemNotFoundException, LockedException, SecretServiceNotAvailableException

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
        self._deadline = deadline

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
                return Secret({name: item.get_secret()}, modified=modified)
            except ItemNotFoundException:  # deleted since
                raise SecretNotFound(f"secret {name} not found") from None

    def close(self) -> None:
        """Do nothing: each call has closed its connection."""

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
            with _connect(self._deadline) as connection:
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


class _Connection(DBusConnection):  # type: ignore[misc]  # it has no types
    """A connection that waits no longer than a deadline, whatever is asked."""

    def __init__(self, address: str, deadline: float) -> None:
        self._ends_at = time.monotonic() + deadline
        transport = prep_socket(address, timeout=deadline)
        try:
            super().__init__(transport)
        except BaseException:
            transport.close()
            raise

    def send_and_get_reply(self, message: Any, *, timeout: float | None = None) -> Any:
        """Send a message, and wait for the reply until the deadline is over. ``timeout`` does not count."""
        left = max(0.001, self._ends_at - time.monotonic())
        try:
            return super().send_and_get_reply(message, timeout=left)
        except (KeyError, TypeError, ValueError, struct.error):  # as jeepney fails on what it cannot parse
            raise MalformedAnswer("what came over the session bus is not D-Bus") from None


def _connect(deadline: float) -> _Connection:
    try:
        address = get_bus("SESSION")
    except (KeyError, ValueError, RuntimeError):
        raise StoreUnavailable("there is no session bus: DBUS_SESSION_BUS_ADDRESS does not name one") from None
    return _Connection(address, deadline)


def open_store(settings: Settings, context: StoreContext) -> KeyringStore:
    """Open the keyring; nothing is asked yet."""
    return KeyringStore(settings.collection, settings.attributes, context.deadline)
