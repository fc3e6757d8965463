"""A desktop's keyring for tests: a session bus and GNOME Keyring on it, with an empty keyring that is unlocked."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import secretstorage
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


@dataclass(frozen=True)
class SecretService:
    """A session bus with a keyring."""

    address: str

    def put(self, label: str, value: bytes, **attributes: str) -> None:
        """Create an item, or give the one of this label and these attributes another value."""
        with secretstorage.dbus_init() as connection:
            keyring = secretstorage.get_default_collection(connection)
            for item in keyring.get_all_items():
                if item.get_label() == label and attributes.items() <= item.get_attributes().items():
                    item.set_secret(value)
                    return
            keyring.create_item(label, {"test": label, **attributes}, value)

    def clear(self) -> None:
        """Delete all items."""
        with secretstorage.dbus_init() as connection:
            for item in list(secretstorage.get_default_collection(connection).get_all_items()):
                item.delete()

    def lock(self) -> None:
        """Lock the keyring. Only somebody at a screen could unlock it again."""
        with secretstorage.dbus_init() as connection:
            secretstorage.get_default_collection(connection).lock()


@contextmanager
def secret_service(directory: Path) -> Iterator[SecretService]:
    """Start both, with all that they write below a directory. Its path must be short: a socket is made there."""
    bus = directory / "bus"
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "XDG_DATA_HOME": str(directory),
        "XDG_RUNTIME_DIR": str(directory),
        "DBUS_SESSION_BUS_ADDRESS": f"unix:path={bus}",
    }
    (directory / "bus.conf").write_text(_BUS.format(address=f"unix:path={bus}"), encoding="ascii")
    daemon = ["dbus-daemon", f"--config-file={directory}/bus.conf", "--nofork", "--nopidfile"]
    keyring = ["gnome-keyring-daemon", "--foreground", "--unlock", "--components=secrets"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(daemon, env=env, **quiet) as first:  # type: ignore[call-overload]
        try:
            wait_until(bus.exists)
            with subprocess.Popen(keyring, env=env, stdin=subprocess.PIPE, **quiet) as second:  # type: ignore[call-overload]
                try:
                    second.stdin.write(b"a password")
                    second.stdin.close()
                    wait_until(lambda: _answers(bus))
                    yield SecretService(f"unix:path={bus}")
                finally:
                    second.terminate()
        finally:
            first.terminate()


def _answers(bus: Path) -> bool:
    before = os.environ.get("DBUS_SESSION_BUS_ADDRESS")
    os.environ["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={bus}"
    try:
        with secretstorage.dbus_init() as connection:
            return not secretstorage.Collection(connection, "/org/freedesktop/secrets/aliases/default").is_locked()
    except (SecretStorageException, OSError):
        return False
    finally:
        if before is None:
            del os.environ["DBUS_SESSION_BUS_ADDRESS"]
        else:
            os.environ["DBUS_SESSION_BUS_ADDRESS"] = before
