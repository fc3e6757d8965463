"""A desktop's keyring for tests: a session bus and GNOME Keyring on it, with an empty keyring that is unlocked."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import secretstorage
from jeepney import DBusErrorResponse
from jeepney.io.blocking import DBusConnection, prep_socket
from secretstorage.exceptions import SecretStorageException

from tests.support.waiting import wait_until

# It starts no service: whoever asks before the keyring is there would have a second one started, which is locked.
_BUS = """<busconfig>
  <type>session</type>
  <listen>{address}</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/>
  </policy>
</busconfig>
"""


_QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@dataclass
class SecretService:
    """A session bus with a keyring, and a connection to it: GNOME Keyring does not survive many that come and go."""

    directory: Path
    bus: subprocess.Popen[bytes] = field(init=False)
    keyring: subprocess.Popen[bytes] = field(init=False)
    connection: DBusConnection = field(init=False)

    @property
    def address(self) -> str:
        """The address of the bus."""
        return f"unix:path={self.directory}/bus"

    def start_bus(self) -> None:
        """Start the bus, and what is on it."""
        config = self.directory / "bus.conf"
        config.write_text(_BUS.format(address=self.address), encoding="ascii")
        self.bus = subprocess.Popen(["dbus-daemon", f"--config-file={config}", "--nofork", "--nopidfile"], **_QUIET)  # type: ignore[call-overload]
        wait_until(self._is_connected)
        self.start_keyring()

    def start_keyring(self) -> None:
        """Start the keyring. It has the items of the one before."""
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "XDG_DATA_HOME": str(self.directory),
            "XDG_RUNTIME_DIR": str(self.directory),
            "DBUS_SESSION_BUS_ADDRESS": self.address,
        }
        command = ["gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"]
        self.keyring = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, **_QUIET)  # type: ignore[call-overload]
        assert self.keyring.stdin is not None
        with self.keyring.stdin as password:
            password.write(b"a password")
        wait_until(self._is_unlocked)

    def stop_keyring(self) -> None:
        """Stop the keyring."""
        self.keyring.terminate()
        self.keyring.send_signal(signal.SIGCONT)  # a test may have stopped it
        self.keyring.wait()

    def stop_bus(self) -> None:
        """Stop the bus, and what is on it."""
        self.stop_keyring()
        self.connection.close()
        self.bus.terminate()
        self.bus.wait()
        (self.directory / "bus").unlink(missing_ok=True)

    def put(self, label: str, value: bytes, **attributes: str) -> None:
        """Create an item, or give the one of this label and these attributes another value."""
        keyring = secretstorage.get_default_collection(self.connection)
        for item in keyring.get_all_items():
            if item.get_label() == label and attributes.items() <= item.get_attributes().items():
                item.set_secret(value)
                return
        keyring.create_item(label, {"test": label, **attributes}, value)

    def clear(self) -> None:
        """Delete all items."""
        for item in list(secretstorage.get_default_collection(self.connection).get_all_items()):
            item.delete()

    def lock(self) -> None:
        """Lock the keyring. Only somebody at a screen could unlock it again."""
        secretstorage.get_default_collection(self.connection).lock()

    def connections(self) -> int:
        """Connect, and return how many had done so before on this bus: it counts them in the names that it gives."""
        with self._connect() as connection:
            return int(connection.unique_name.rpartition(".")[2])

    def _is_connected(self) -> bool:
        try:
            self.connection = self._connect()
        except OSError:
            return False
        return True

    def _connect(self) -> DBusConnection:
        return DBusConnection(prep_socket(f"{self.directory}/bus"))

    def _is_unlocked(self) -> bool:
        try:
            return not secretstorage.Collection(self.connection).is_locked()
        except (SecretStorageException, DBusErrorResponse):
            return False


@contextmanager
def secret_service(directory: Path) -> Iterator[SecretService]:
    """Start both, with all that they write below a directory. Its path must be short: a socket is made there."""
    service = SecretService(directory)
    service.start_bus()
    try:
        yield service
    finally:
        service.stop_bus()
