"""What mount(8) asks of the program that mounts a type of file system, as flags of ``secretfs mount``.

    mount.secretfs SPEC DIRECTORY [-sfnv] [-o OPTION,...] [-t TYPE]     mount -t secretfs, and fstab
    secretfs SPEC DIRECTORY -o OPTION,...                              mount -t fuse.secretfs, through mount.fuse3

The options are the flags of the command, read off the command itself: a new flag is an option without a line here.
"""

import getopt
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import click

from secretfs.errors import ConfigurationError
from secretfs.settings import nearest

USAGE: Final = "SPEC DIRECTORY [-sfnv] [-o OPTION,...] [-t TYPE]"
HELP: Final = """\
Mount the secrets at DIRECTORY, an existing empty directory, as mount(8) and fstab(5) ask for it.

SPEC is the directory of the manifests, as an absolute path, or `none` if the option resources-path names it.

\b
  mount -t secretfs /etc/secretfs/components /srv/secrets -o app-id=shop,allow-other
  /etc/secretfs/components  /srv/secrets  secretfs  app-id=shop,allow-other,_netdev,nofail  0 0

Each option of secretfs-mount(1) is an option, without its leading dashes; `_` may stand for `-`. Quote a value that
contains a comma. Options of mount(8) and systemd.mount(5), such as _netdev, nofail, noauto, user and x-systemd.*, mean
what they say there; rw, dev, suid and exec have no effect. An unknown option is refused, unless -s is given. With -f
everything is checked, and nothing is mounted.

\b
Exit codes:
  0   mounted
  32  a mistake, a refusal, or a store that does not answer; standard error says which
"""
"""What ``mount.secretfs --help`` and ``mount.secretfs(8)`` say, as click reads it."""

_NO_DIRECTORY = ("", "none", "secretfs")
_FIRST_FIELD = "name the directory of the manifests, as an absolute path, or `none`"

# What is said to mount(8), fstab and systemd and not to us (mount(8), FILESYSTEM-INDEPENDENT MOUNT OPTIONS), or cannot
# be otherwise here: nothing in a mount is a device, can be executed, or gives anybody rights.
_FOR_OTHERS = frozenset(
    {
        *("defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "noowner", "group", "nogroup"),
        *("_netdev", "nofail", "comment", "helper", "uhelper", "default_permissions", "silent", "loud"),
        *("ro", "rw", "dev", "nodev", "suid", "nosuid", "exec", "noexec", "sync", "async", "dirsync", "mand", "nomand"),
        *("atime", "noatime", "diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
        *("lazytime", "nolazytime", "iversion", "noiversion"),
    }
)
_COMMENT = ("x-", "X-")

# A comma inside double quotes belongs to the value, as in libmount.
_OPTION = re.compile(r'(?:[^,"]|"[^"]*")+')


class MountRequest(NamedTuple):
    """A request of mount(8)."""

    flags: list[str]
    """For ``secretfs mount``, the mount point included."""
    source: str
    """What the table of mounts is to have as mounted."""
    again: list[str]
    """The same request, as `secretfs.cli.main` knows it: for the supervisor, which starts worker after worker."""
    pretend: bool
    """Do everything but mount (``-f``)."""


def translate(arguments: Sequence[str], mount: click.Command) -> MountRequest:
    """Say what a request means. Raises `ConfigurationError` for options that are none of ours or of mount(8)."""
    try:
        switches, positional = getopt.gnu_getopt(list(arguments), "sfnvo:t:")
    except getopt.GetoptError as error:
        raise ConfigurationError(str(error)) from None
    if len(positional) != 2:
        raise ConfigurationError(f"usage: mount.secretfs {USAGE}")
    spec, directory = positional
    given = {name for name, _ in switches}
    options = ",".join(value for name, value in switches if name == "-o") or "defaults"
    flags = [*_resources(spec), *_flags(options, mount, sloppy="-s" in given), "--", directory]
    again = [spec, directory, "-o", options, *given & {"-s"}]
    return MountRequest(flags, spec or "secretfs", again, pretend="-f" in given)


def asks_for_help(arguments: Sequence[str]) -> bool:
    """Whether a request is one for help: ``--help``, ``-h`` or the mount option ``help``."""
    values = [value for before, value in pairwise(arguments) if before == "-o"]
    return bool({"-h", "--help"} & set(arguments)) or any("help" in _OPTION.findall(value) for value in values)


def mount_options(mount: click.Command) -> list[tuple[str, str]]:
    """Return every mount option of ours, as it is written, with its help."""
    with click.Context(mount, info_name="mount") as context:
        records = [option.get_help_record(context) for option in _by_name(mount).values()]
    names = [f"{name} {option.metavar or ''}".strip().replace(" ", "=") for name, option in _by_name(mount).items()]
    return [(name, record[1]) for name, record in zip(names, records, strict=True) if record]


def help_text(mount: click.Command) -> str:
    """Return what ``mount.secretfs --help`` prints."""
    command = click.Command("mount.secretfs", help=HELP, options_metavar=None, add_help_option=False)
    with click.Context(command, info_name="mount.secretfs", max_content_width=100) as context:
        formatter = context.make_formatter()
        formatter.write_usage("mount.secretfs", USAGE)
        command.format_help_text(context, formatter)
        with formatter.section("Mount options"):
            formatter.write_dl(mount_options(mount))
        return formatter.getvalue()


def _by_name(mount: click.Command) -> Mapping[str, click.Option]:
    """Return the options of the command, each by every mount option that stands for it."""
    return {
        spelling.removeprefix("--"): parameter
        for parameter in mount.params
        if isinstance(parameter, click.Option)
        for spelling in parameter.opts
        if spelling.startswith("--")
    }


def _resources(spec: str) -> list[str]:
    if spec in _NO_DIRECTORY:
        return []
    if not Path(spec).is_absolute():
        raise ConfigurationError(f"{spec!r} is nothing that can be mounted; {_FIRST_FIELD}")
    return ["--resources-path", spec]


def _flags(options: str, mount: click.Command, *, sloppy: bool) -> Iterator[str]:
    """Yield the flags that a list of options, as in fstab, stands for."""
    known = _by_name(mount)
    for option in _OPTION.findall(options):
        name, equals, value = option.partition("=")
        if name in _FOR_OTHERS or name.startswith(_COMMENT):
            continue
        flag = name.replace("_", "-")  # allow_other, as FUSE has it
        if flag in known:
            yield _flag(flag, known[flag], value.replace('"', "") if equals else None)
        elif name == "remount":
            raise ConfigurationError(
                "a secretfs is not mounted again for other options: unmount it first; what its manifests and"
                " configuration say counts without that"
            )
        elif not sloppy:
            raise ConfigurationError(f"unknown mount option {name!r}{nearest(flag, [*known, *_FOR_OTHERS])}")


def _flag(name: str, parameter: click.Option, value: str | None) -> str:
    if parameter.is_flag and value is not None:
        raise ConfigurationError(f"the mount option {name} takes no value")
    if not parameter.is_flag and value is None:
        raise ConfigurationError(f"the mount option {name} needs a value: {name}={parameter.metavar or 'VALUE'}")
    return f"--{name}" if value is None else f"--{name}={value}"
