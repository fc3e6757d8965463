"""The flags that commands share, and what is read because of them."""

import grp
import pwd
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import click

from secretfs.api.address import parse_api_address
from secretfs.cache.freshness import FRESHNESS_HELP, Freshness
from secretfs.dapr.sources import DEFAULT_CONFIG, DEFAULT_RESOURCES, Sources
from secretfs.durations import parse_duration, show_duration
from secretfs.errors import ConfigurationError
from secretfs.observe.address import Address, parse_address
from secretfs.observe.audit_options import AuditMode, AuditOptions

F = TypeVar("F", bound=Callable[..., Any])


def _address(text: str) -> Address:
    """Read where to serve metrics."""
    try:
        return parse_address(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from None


class _Path(click.Path):
    """A path that nobody looks at while the command line is read: it may be a mount that hangs."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        return Path(value)


PATH = _Path()
"""A path as a flag or an argument."""


_NEVER_ZERO = ("deadline", "idle", "ttl")
_LARGEST_ID = 2**32 - 2  # the next one means "nobody in particular" to the kernel


def _user(text: str) -> int:
    """Read a user: a name that this machine knows, or an id."""
    return _id(text, "user", lambda: pwd.getpwnam(text).pw_uid)


def _group(text: str) -> int:
    """Read a group: a name that this machine knows, or an id."""
    return _id(text, "group", lambda: grp.getgrnam(text).gr_gid)


def _id(text: str, kind: str, by_name: Callable[[], int]) -> int:
    if text.isdecimal():
        if int(text) > _LARGEST_ID:
            raise click.BadParameter(f"{text!r} is more than the largest id, {_LARGEST_ID}")
        return int(text)
    try:
        return by_name()
    except (KeyError, ValueError):
        raise click.BadParameter(f"{text!r} is neither a {kind} of this machine nor an id") from None


def _mode(text: str) -> int:
    """Read permission bits, in octal."""
    try:
        mode = int(text, 8)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not an octal mode such as 0440") from None
    if mode not in (0o400, 0o440, 0o444):
        raise click.BadParameter(f"{text!r}: files here can be read and nothing else (0400, 0440, 0444)")
    return mode


def _duration(text: str) -> float:
    """Read a duration as Go writes it."""
    try:
        seconds = parse_duration(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r}: {error}") from None
    if seconds < 0:
        raise click.BadParameter(f"{text!r}: must not be less than nothing")
    return seconds


def _time(text: str) -> float:
    """Read a duration that is longer than nothing."""
    seconds = _duration(text)
    if not seconds:
        raise click.BadParameter(f"{text!r}: must be longer than nothing")
    return seconds


def _api_address(text: str) -> Address:
    """Read where the Secrets API listens."""
    try:
        return parse_api_address(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} {error}") from None


def freshness(command: F) -> F:
    """Add the flags that are the defaults of the annotations of the same names."""
    return _freshness(duration_flag(command, "idle", _default_of("idle"), show_duration(Freshness().idle)))


def freshness_for_a_command(command: F) -> F:
    """Add the same flags; but what a command has read stays in memory, None, as long as it runs."""
    idle = f"{_default_of('idle')}  [default: until the command ends]"
    return _freshness(duration_flag(command, "idle", idle, None))


def _freshness(command: F) -> F:
    for name in ("deadline", "max-stale", "ttl"):
        seconds = getattr(Freshness(), name.replace("-", "_"))
        command = duration_flag(command, name, _default_of(name), show_duration(seconds))
    return command


def _default_of(name: str) -> str:
    return f"Default of secretfs/{name}, {FRESHNESS_HELP[name.replace('-', '_')]}."


def take_freshness(flags: dict[str, Any]) -> Freshness:
    """Take the values of these flags out of all that a command was given."""
    return Freshness(**{field.name: flags.pop(field.name) for field in fields(Freshness) if field.name in flags})


def duration_flag(command: F, name: str, help_text: str, default: str | None) -> F:
    """Add a flag that is a time."""
    option = click.option(
        f"--{name}",
        type=_time if name in _NEVER_ZERO else _duration,
        default=default,
        metavar="TIME",
        show_default=default is not None,
        help=help_text,
    )
    return option(command)


def sources(command: F) -> F:
    """Add the flags that say what to load. Their names are Dapr's."""
    for option in (
        click.option(
            "--disable-builtin-k8s-secret-store",
            "no_builtin",
            is_flag=True,
            help="Inside a Kubernetes pod, do without the store `kubernetes` that needs no manifest.",
        ),
        click.option(
            "--app-objects",
            type=PATH,
            metavar="DIR",
            help="The same for sets whose authors are not trusted with this machine: apps name one as their objects.",
        ),
        click.option(
            "--app-resources",
            type=PATH,
            metavar="DIR",
            help="Directory of sets of manifests. An app that names one as its resources sees that set instead.",
        ),
        click.option(
            "--apps",
            type=PATH,
            multiple=True,
            metavar="DIR",
            help="Directory that declares apps; each gets a directory of its own at the root. Repeatable.",
        ),
        click.option(
            "--app-id", default="", metavar="ID", help="The app whose view this is; component scopes name it."
        ),
        click.option(
            "--config",
            "configs",
            type=PATH,
            multiple=True,
            metavar="FILE",
            help="Dapr Configuration with the secret scopes. Repeatable; a later file overrides.  [default:"
            f" {DEFAULT_CONFIG}, if it exists and there is no --resources-path]",
        ),
        click.option(
            "--resources-path",
            "resources",
            type=PATH,
            multiple=True,
            metavar="DIR",
            help=f"Directory of Dapr Component manifests. Repeatable.  [default: {DEFAULT_RESOURCES}]",
        ),
    ):
        command = option(command)
    return command


DIRECTORY = click.option(
    "--dir",
    "directory",
    type=PATH,
    metavar="DIR",
    help="The directory for documents of apps.  [default: the last one that --apps names for the mount]",
)


NONEMPTY = click.option(
    "--nonempty", is_flag=True, help="Mount over a directory that is not empty, and hide what is in it."
)


METRICS_LISTEN = click.option(
    "--metrics-listen",
    type=_address,
    metavar="ADDRESS",
    help="Serve metrics for Prometheus at unix:PATH, 127.0.0.1:PORT or [::1]:PORT.",
)


def metrics(command: F) -> F:
    """Add the flags that say where metrics go."""
    for option in (
        click.option(
            "--metrics-file",
            type=PATH,
            metavar="FILE",
            help="Write metrics to a file for node_exporter, whose name ends in .prom, every 15 s.",
        ),
        METRICS_LISTEN,
    ):
        command = option(command)
    return command


LOG_FORMAT = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="Write each line of the log for people, or as a JSON object.",
)


KERNEL_ANSWERS = click.option(
    "--kernel-answers/--no-kernel-answers",
    envvar="SECRETFS_KERNEL_ANSWERS",
    default=True,
    help="Have the kernel answer warm reads and listings without asking the daemon, where root mounts.  [default: yes]",
)


API = click.option(
    "--api",
    type=_api_address,
    metavar="ADDRESS",
    help="Serve Dapr's Secrets API too, at unix:/PATH or, with the token in DAPR_API_TOKEN, at 127.0.0.1:PORT.",
)


def auditing(command: F) -> F:
    """Add the flags of the audit log."""
    for option in (
        click.option(
            "--audit-names",
            type=click.Choice(["plain", "hash"]),
            default="plain",
            show_default=True,
            help="Write the names of secrets, or keyed hashes in their place.",
        ),
        click.option(
            "--audit-fail-closed",
            is_flag=True,
            help="With --audit=strict: refuse an open (EPERM) whose record cannot be written.",
        ),
        click.option(
            "--audit-to",
            default="",
            metavar="SINK",
            help="Where audit records go: a FILE, journal, syslog, or - for standard output.",
        ),
        click.option(
            "--audit",
            type=click.Choice([mode.value for mode in AuditMode]),
            default=AuditMode.OFF.value,
            show_default=True,
            help="Record who opens which secret. With strict, each open waits for its record.",
        ),
    ):
        command = option(command)
    return command


def take_audit(flags: dict[str, Any], *, foreground: bool) -> AuditOptions:
    """Take the values of these flags out of all that a command was given. Raises `ConfigurationError`."""
    mode, to, fail_closed, names = (
        flags.pop(name) for name in ("audit", "audit_to", "audit_fail_closed", "audit_names")
    )
    options = AuditOptions(AuditMode(mode), to, fail_closed, names == "hash")
    options.require(foreground=foreground)
    return options


def take_sources(flags: dict[str, Any]) -> Sources:
    """Take the values of these flags out of all that a command was given. Raises `ConfigurationError`."""
    resources, configs, app_id, apps = (flags.pop(name) for name in ("resources", "configs", "app_id", "apps"))
    if app_id and apps:
        raise ConfigurationError("--app-id shows one app and --apps shows many: leave one of them out")
    sets = {name: flags.pop(name) for name in ("app_resources", "app_objects")}
    for name, directory in sets.items():
        if directory and not apps:
            flag = f"--{name.replace('_', '-')}"
            raise ConfigurationError(f"{flag} is for the apps of a mount, which --apps declares")
    return Sources(resources, configs, app_id, not flags.pop("no_builtin"), apps, **sets)


def audience(command: F) -> F:
    """Add the flags that say which users may read the files."""
    for option in (
        click.option(
            "--mode",
            type=_mode,
            default="0400",
            metavar="OCTAL",
            show_default=True,
            help="Permission bits of the files.",
        ),
        click.option(
            "--gid", type=_group, metavar="GROUP", help="Group of the files, a name or an id.  [default: yours]"
        ),
        click.option(
            "--uid", type=_user, metavar="USER", help="Owner of the files, a name or an id.  [default: yours]"
        ),
        click.option(
            "--allow-other", is_flag=True, help="Let other users in, as far as --uid, --gid and --mode allow."
        ),
    ):
        command = option(command)
    return command
