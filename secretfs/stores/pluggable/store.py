"""``secretstores.NAME``: whatever store a plug-in of Dapr serves on the socket ``NAME.*``, in any language.

The plug-in is asked for nothing when the component is opened, and initialised when it is first used: then it says
whether its secrets have several values. Nothing but BulkGet tells names, so that a listing reads all values; they are
dropped at once.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    MalformedAnswer,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
)
from secretfs.settings import every_property
from secretfs.store import Names, Secret, StoreContext
from secretfs.stores import _sockets as sockets
from secretfs.stores.pluggable import messages
from secretfs.stores.pluggable.client import NotImplementedByPlugIn
from secretfs.stores.pluggable.messages import Values
from secretfs.stores.pluggable.plug_in import MULTI_VALUED, PlugIn

SHAPE: Final = "secretfs/multi-valued"
"""The annotation that says whether secrets have several values, where the plug-in itself does not."""
LARGEST_BATCH: Final = 10_000
"""Secrets. A task waits for each of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, repr=False)
class Properties:
    """The properties of a component, for the plug-in to understand. There is no ``repr``: they hold credentials."""

    properties: Mapping[str, str] = every_property()


class PluggableStore:
    """The secrets of one plug-in."""

    def __init__(self, plug_in: PlugIn) -> None:
        self._plug_in = plug_in
        self._listed = 0
        """How many secrets there were when they were last listed; 0 while a BulkGet is of no use."""

    @property
    def multi_valued(self) -> bool:
        """Whether the plug-in says that its secrets have several values. Asks it once. Raises `StoreError`."""
        return self._plug_in.multi_valued

    def check(self) -> None:
        """Initialise the plug-in if it is not yet, and ping it. No Dapr does the latter, so it need not know how."""
        try:
            self._plug_in.ask("Ping", messages.EMPTY)
        except NotImplementedByPlugIn:
            logger.debug("a plug-in without Ping")

    def names(self, folder: str) -> Names:
        """List the names of all secrets. Reads their values, because the protocol has no other way."""
        if folder:
            return Names()
        try:
            return Names(frozenset(name for name, values in self._read_all().items() if name and values))
        except NotImplementedByPlugIn as error:
            raise AccessDenied(f"list of secrets: {error}: secrets can be read by their names only") from None
        except StoreError as error:
            raise type(error)(f"list of secrets: {error}") from None

    def fetch(self, name: str) -> Secret:
        """Read one secret. One without any value is none: many plug-ins answer so where there is none."""
        try:
            request = messages.get_request(name)
        except UnicodeEncodeError:
            raise SecretNotFound("a name that is not UTF-8 is not found") from None
        if not name:
            raise SecretNotFound("a name without a character is not found")
        try:
            return self._secret(name, messages.values(self._plug_in.ask("Get", request)))
        except StoreError as error:
            raise type(error)(f"secret {name}: {error}") from None

    @property
    def largest_batch(self) -> int:
        """As many secrets as there are: a BulkGet reads them all. 1 until they are listed, or when that has failed."""
        return max(1, min(self._listed, LARGEST_BATCH))

    def fetch_many(self, names: tuple[str, ...]) -> Mapping[str, Secret | StoreError]:
        """Read secrets with one BulkGet, if they are at least half of all: it reads the others, too."""
        if 2 * len(names) < self._listed:
            return {}
        try:
            found = self._read_all()
        except (AccessDenied, MalformedAnswer, StoreUnavailable) as error:
            logger.info("secrets are read one by one until they can be listed again: %s", error)
            return {}
        return {name: self._outcome(name, found[name]) for name in names if found.get(name)}

    def close(self) -> None:
        """Disconnect."""
        self._plug_in.close()

    def _read_all(self) -> dict[str, Values]:
        """Return all secrets. Raises `StoreError`."""
        try:
            found = messages.secrets(self._plug_in.ask("BulkGet", messages.EMPTY))
        except StoreError:
            self._listed = 0
            raise
        self._listed = len(found)
        return found

    def _outcome(self, name: str, values: Values) -> Secret | StoreError:
        try:
            return self._secret(name, values)
        except StoreError as error:
            return type(error)(f"secret {name}: {error}")

    def _secret(self, name: str, values: Values) -> Secret:
        """Return what was answered as a secret. Raises `StoreError`."""
        if not values:
            raise SecretNotFound("not found: the answer has no value")
        if self.multi_valued:
            return Secret(values)
        if len(values) > 1:
            hint = f'the annotation {SHAPE}: "true" shows them'
            raise MalformedAnswer(f"{len(values)} values, and Features do not have {MULTI_VALUED}; {hint}")
        (value,) = values.values()
        return Secret({name: value})


@dataclass(frozen=True, slots=True)
class PluggableType:
    """The type of store that one socket is: what a module is to other types (`secretfs.stores.StoreModule`)."""

    path: str
    """The socket, absolute."""
    Settings: ClassVar = Properties
    ANNOTATIONS: ClassVar = frozenset({SHAPE})

    def open_store(self, settings: Properties, context: StoreContext) -> PluggableStore:
        """Open the store; the plug-in is not asked yet. Raises `StoreUnavailable` for a socket not to be trusted."""
        if not (context.component.isascii() and context.component.isprintable()):
            raise ConfigurationError(f"{context.component}: a plug-in is told the name, which must be printable ASCII")
        sockets.inspect(self.path)
        shape = _shape(context.annotations.get(SHAPE))
        plug_in = PlugIn(self.path, context.component, settings.properties, context.deadline, multi_valued=shape)
        return PluggableStore(plug_in)


def _shape(text: str | None) -> bool | None:
    if text not in (None, "true", "false"):
        raise ConfigurationError(f"{SHAPE}: must be true or false")
    return None if text is None else text == "true"
