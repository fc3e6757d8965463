"""What a user asks to be mounted, and how. It imports little: `secretfs mount` only passes it on to a worker."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from secretfs.cache.freshness import Freshness
from secretfs.dapr.sources import Sources
from secretfs.errors import Notice
from secretfs.observe.address import Address
from secretfs.observe.audit_options import AuditOptions


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Where to mount, and for whom. Ids are the host's."""

    mountpoint: Path
    allow_other: bool = False
    nonempty: bool = False
    """Mount also where there are files, which the mount hides."""
    uid: int | None = None
    gid: int | None = None
    mode: int = 0o400
    """Permission bits of the files."""
    source: str = "secretfs"
    """What the table of mounts has as mounted. `mount -a` looks for what fstab has."""
    kernel_answers: bool = True
    """Have the kernel answer warm reads and listings without asking us, where it can."""
    audit: AuditOptions = field(default_factory=AuditOptions)
    metrics_listen: Address | None = None
    """Where to serve metrics."""
    metrics_file: Path | None = None
    """Which file to write them to, again and again."""
    api: Address | None = None
    """Where the Secrets API listens; None if it does not."""
    default: Freshness = field(default_factory=Freshness)
    """Of the stores that do not say otherwise."""

    @property
    def notices(self) -> list[Notice]:
        """Options that may not mean what the user expects."""
        if self.uid in (None, os.getuid()) or self.allow_other:
            return []
        return [Notice(f"user {self.uid} owns the files and cannot get at them without --allow-other")]


class Request(NamedTuple):
    """What is to be mounted, and how."""

    sources: Sources
    options: MountOptions
    foreground: bool = False
    log_file: Path | None = None
    log_as_json: bool = False
