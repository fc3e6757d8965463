"""What tests do with an audit log: read its records, and start programs in containers."""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.waiting import wait_until


class AuditFile:
    """A file with audit records."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def records(self) -> list[dict[str, Any]]:
        """What has been written by now. The last line may be on its way, and one without room is empty."""
        text = self.path.read_bytes() if self.path.exists() else b""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith(b"\n") and line.strip()]

    def of(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """Return the records of an event that have these fields."""
        return [
            record
            for record in self.records
            if record["event"] == event and all(record.get(name) == value for name, value in fields.items())
        ]

    def has_more(self, opens: int) -> bool:
        """Whether there are more records of opens than so many."""
        return len(self.of("open")) > opens

    def wait_for(self, event: str, times: int = 1, **fields: object) -> list[dict[str, Any]]:
        """Wait until there are so many of them: a thread of the daemon writes what nobody waits for."""
        wait_until(lambda: len(self.of(event, **fields)) >= times)
        return self.of(event, **fields)


@contextmanager
def in_container(
    cgroups: Sequence[Path], directory: Path, place: Path, script: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a shell script as a container runs it: in control groups, and in namespaces for mounts and processes.

    ``directory`` is bound to ``place`` there.
    """
    enter = "".join(f"echo $$ > {cgroup}/cgroup.procs; " for cgroup in cgroups)
    inside = f"mount --bind {directory} {place} || exit 9; {script}"
    process = subprocess.Popen(
        ["sh", "-c", f'{enter} exec unshare --mount --pid --fork sh -c "$0"', inside], stdin=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
