"""Owner, group and mode of what an app sees, and rules that change them for some of its secrets. Pure.

A rule is a glob over ``STORE/SECRET`` or ``STORE/SECRET/KEY``, with names as the store has them. ``*`` and ``?`` do not
match a slash, ``**`` does. A rule for a secret covers its keys. The first rule that matches decides.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final, NamedTuple

from secretfs.errors import Source

FILE_MODES: Final = (0o400, 0o440, 0o444)
"""The permission bits that a file may have: a secret can be read, and nothing else."""
LARGEST_ID: Final = 2**32 - 2
"""The id above it, -1, means "leave it as it is" to chown(2)."""


class Permissions(NamedTuple):
    """Owner, group and permission bits of one inode. Ids are the host's."""

    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True)
class PermissionRule:
    """What is different for the secrets that a glob matches. None leaves a field as it is for the others."""

    match: str
    gid: int | None = None
    mode: int | None = None
    source: Source | None = field(default=None, compare=False)

    def matches(self, path: str) -> bool:
        """Whether the glob matches ``STORE/SECRET[/KEY]``, or the secret that the key belongs to."""
        return _compiled(self.match).fullmatch(path) is not None

    def applied_to(self, permissions: Permissions) -> Permissions:
        """Return ``permissions`` with what this rule says in its place."""
        gid = permissions.gid if self.gid is None else self.gid
        return Permissions(permissions.uid, gid, permissions.mode if self.mode is None else self.mode)


class ViewPermissions(NamedTuple):
    """The permissions of all that an app sees."""

    default: Permissions
    """Of files that no rule matches, and the owner and group of directories."""
    rules: Sequence[PermissionRule] = ()

    def of_file(self, path: str) -> Permissions:
        """Return the permissions of a file at ``STORE/SECRET[/KEY]``: those of the first rule that matches."""
        for rule in self.rules:
            if rule.matches(path):
                return rule.applied_to(self.default)
        return self.default

    def of_bulk_file(self) -> Permissions:
        """Return the permissions of a file that holds many secrets: with rules, for the owner alone."""
        return self.default._replace(mode=0o400) if self.rules else self.default

    def of_directory(self) -> Permissions:
        """Return the permissions of a directory: an ``x`` for every ``r``.

        A rule that lets somebody else in makes directories searchable for everybody: those who know the name
        of a secret can look it up, and nobody else can list the names.
        """
        uid, gid, mode = self.default
        mode |= (mode & 0o444) >> 2
        widens = any(rule.gid not in (None, gid) or (rule.mode or 0) & ~mode for rule in self.rules)
        return Permissions(uid, gid, mode | 0o111 if widens else mode)


def parse_mode(text: str) -> int:
    """Read the permission bits of a file, in octal. Raises ValueError with what is possible."""
    try:
        mode = int(text, 8)
    except ValueError:
        raise ValueError(f"{text!r} is not an octal mode such as 0440") from None
    if mode not in FILE_MODES:
        raise ValueError(f"{text!r}: a file here can be read and nothing else (0400, 0440, 0444)")
    return mode


@lru_cache(maxsize=1024)
def _compiled(glob: str) -> re.Pattern[str]:
    wild = {"**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = re.split(r"(\*\*|\*|\?)", glob.strip("/"))
    return re.compile("".join(wild.get(part, re.escape(part)) for part in parts) + "(?:/.*)?", re.DOTALL)
