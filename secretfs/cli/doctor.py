"""``secretfs doctor``: the findings of `secretfs.cli.diagnose`, as they are made."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import click
import trio

from secretfs.cli.audit_check import examine_audit
from secretfs.cli.container_check import examine_container
from secretfs.cli.diagnose import (
    Finding,
    Level,
    examine_declaration,
    examine_machine,
    examine_stores,
    exit_code,
    summary,
    to_json,
)
from secretfs.cli.mount import mount_command
from secretfs.cli.options import PATH, take_audit, take_freshness, take_sources
from secretfs.cli.output import progress
from secretfs.cli.protection_check import examine_protections
from secretfs.cli.reporting import wrap
from secretfs.daemon.audience import require_rights
from secretfs.daemon.request import MountOptions
from secretfs.dapr.declaration import Declaration
from secretfs.dapr.load import load_declaration
from secretfs.errors import ConfigurationError
from secretfs.linux.log import printable


def _doctor(mountpoint: Path | None, *, as_json: bool, container: str, **flags: Any) -> NoReturn:
    """Look for all that keeps `mount` with the same flags from working: the machine, the mount point, the stores.

    Each finding is PASS, WARN or FAIL, with what to do about it. Nothing is mounted, and no secret is read but those
    that are the credentials of a store. With --container it says instead what a container sees of the mount at
    MOUNTPOINT.

    \b
    Exit codes:
      0  all is well
      1  there are warnings
      2  a mistake in flags, manifests or configuration
      3  the mount point or FUSE refuses
      4  a store does not answer, or refuses
    """  # noqa: D301 - a real backspace keeps click from wrapping what follows
    findings = []
    for finding in _diagnose_container(container, mountpoint) if container else _diagnose(mountpoint, flags):
        findings.append(finding)
        if not as_json:
            _print_finding(finding)
    click.echo(to_json(findings) if as_json else summary(findings))
    sys.exit(exit_code(findings))


def _diagnose_container(container: str, mountpoint: Path | None) -> Iterator[Finding]:
    if mountpoint is None:
        raise ConfigurationError(
            "--container takes the mount point as well: secretfs doctor --container NAME MOUNTPOINT"
        )
    yield examine_container(container, mountpoint)


def _diagnose(mountpoint: Path | None, flags: dict[str, Any]) -> Iterator[Finding]:
    """Make all findings, each when it is found."""
    place = {name: flags[name] for name in ("allow_other", "nonempty", "kernel_answers")}
    yield from examine_machine(mountpoint, **place)
    if mountpoint is not None:
        yield from examine_protections(mountpoint)
    options = MountOptions(mountpoint or Path(), allow_other=flags["allow_other"], uid=flags["uid"], api=flags["api"])
    for notice in options.notices:
        yield Finding.warn("flags", str(notice), "give that flag as well, unless only root shall read")
    yield from examine_audit(take_audit(flags, foreground=flags["foreground"]))
    named = take_sources(flags)
    if not named.resources:
        try:
            named.with_defaults()
        except ConfigurationError as error:  # without manifests only the machine is checked: no mistake
            yield Finding.warn("manifests", "no stores are looked at", str(error))
            return

    def load() -> Declaration:
        declaration = load_declaration(named)
        require_rights(options, declaration)
        return declaration

    findings, declaration = examine_declaration(load)
    yield from findings
    if declaration is not None:
        with progress(2 * len(declaration.components)) as step:
            findings = trio.run(examine_stores, declaration, take_freshness(flags), step)
        yield from findings


def _print_finding(finding: Finding) -> None:
    colour = {Level.PASS: "green", Level.WARN: "yellow", Level.FAIL: "red"}[finding.level]
    click.secho(finding.level.value, fg=colour, nl=False)
    text = wrap(f"      {printable(finding.check):<12} {printable(finding.text)}", sys.stdout, " " * 19)
    click.echo(text.removeprefix(" " * len(finding.level.value)))
    if finding.fix:
        click.echo(wrap(f"{'fix:':>18} {printable(finding.fix)}", sys.stdout, " " * 19))


doctor_command = click.Command(
    "doctor",
    callback=_doctor,
    help=_doctor.__doc__,
    params=[
        *(parameter for parameter in mount_command.params if parameter.name != "mountpoint"),
        click.Option(
            ["--container"],
            default="",
            metavar="NAME",
            help="A container of Docker or Podman, or the id of a process in one: say what it sees of the mount.",
        ),
        click.Option(["--json", "as_json"], is_flag=True, help="Print the findings for programs."),
        click.Argument(["mountpoint"], type=PATH, required=False),
    ],
)
"""It takes every flag of ``mount``."""
