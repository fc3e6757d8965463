"""What a user asks of the audit log. It imports little: `secretfs mount` only passes it on to a worker."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from secretfs.errors import ConfigurationError

_NO_FILES: Final = ("-", "journal", "syslog")


class AuditMode(Enum):
    """Whether those who open a file wait for its record."""

    OFF = "off"
    OBSERVE = "observe"
    """Nobody waits. Equal records that wait to be written are one, and what cannot be written is counted."""
    STRICT = "strict"
    """Each open waits until its record is written: there is exactly one for each."""


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """How to keep an audit log."""

    mode: AuditMode = AuditMode.OFF
    to: str = ""
    """A file, ``journal``, ``syslog``, or ``-`` for standard output."""
    fail_closed: bool = False
    """In strict mode: an open whose record cannot be written is refused."""
    hash_names: bool = False
    """Write keyed hashes in the place of the names of secrets."""

    @property
    def file(self) -> Path | None:
        """The file that records go to, if they go to a file."""
        return None if self.to in ("", *_NO_FILES) else Path(self.to)

    def require(self, *, foreground: bool) -> None:
        """Raise `ConfigurationError` for what does not fit together."""
        if self.mode is AuditMode.OFF:
            if self.to or self.fail_closed or self.hash_names:
                raise ConfigurationError("no audit log is kept: add --audit=observe or --audit=strict")
        elif not self.to:
            raise ConfigurationError(
                f"--audit={self.mode.value} needs a place for its records: --audit-to=FILE, journal, syslog or -"
            )
        elif self.to == "-" and not foreground:
            raise ConfigurationError("--audit-to=- is standard output, which a mount in the background does not have")
        if self.fail_closed and self.mode is AuditMode.OBSERVE:
            raise ConfigurationError("--audit-fail-closed needs --audit=strict: else nobody waits for a record")
