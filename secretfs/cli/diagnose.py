"""``secretfs doctor``: whether a mount would come up here, and be visible to its readers.

A check is a generator of findings. What is wrong is said, with its fix, where `mount` itself would meet it: here it is
only put together. The machine is looked at first; then what is declared; then the stores are asked.
"""

import json
import logging
import os
import platform
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Final

import trio

import secretfs
from secretfs.cache.freshness import Freshness
from secretfs.cli.rule_check import RuleCheck
from secretfs.cli.scope_check import unmatched
from secretfs.dapr.component import Component
from secretfs.dapr.declaration import Declaration
from secretfs.durations import show_duration
from secretfs.errors import (
    AccessDenied,
    ConfigurationError,
    DeadlineExceeded,
    MalformedAnswer,
    MountError,
    Notice,
    SecretFSError,
    SecretNotFound,
    StoreError,
    StoreUnavailable,
    as_store_error,
)
from secretfs.fuse import inode_for_handle, session
from secretfs.linux import preflight
from secretfs.linux.mountinfo import is_mounted, mount_ids, surrounding
from secretfs.linux.mountpoint import is_dead, is_empty, require_place, resolve
from secretfs.linux.process import forbid_dumps, lock_memory
from secretfs.registry.opening import OpenedStore, open_registry
from secretfs.scopes import SecretScope
from secretfs.store import ClockedStore, Names

log = logging.getLogger(__name__)

RESEND: Final = (6, 9)
"""The first Linux with FUSE_NOTIFY_RESEND (linux/fuse.h, protocol 7.40)."""

SKEW: Final = 30.0
"""Seconds by which two clocks may differ: signed tokens are commonly taken within a minute."""

_PACKAGES: Final = ("pyfuse3", "trio", "hvac", "kubernetes", "azure-identity", "azure-keyvault-secrets")

_SCOPE: Final = "compare the names in the secret scopes of the configuration with those in the store"
_RULES: Final = "compare the rule with the names of stores and secrets that `secretfs check --connect` shows"
_MEND: Final = "correct that; `secretfs check` reads it again"
_WAYS_OUT: Final[Mapping[type[StoreError], str]] = {
    AccessDenied: "look at the credentials that the component names, and at what their role or policy allows",
    DeadlineExceeded: "look at the store, and at proxies and firewalls on the way; initTimeout says how long to wait",
    StoreUnavailable: "start the store, or correct its address in the manifest",
    SecretNotFound: "look whether the manifest names what is there: address, engine, path, namespace",
    MalformedAnswer: "check what answers at that address: a proxy, or another service?",
}


class Level(Enum):
    """How bad a finding is."""

    PASS = "PASS"  # noqa: S105 - not a password
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    check: str
    text: str
    level: Level = Level.PASS
    fix: str = ""
    """What to do about it; not empty unless it is a PASS."""
    exit_code: int = 0
    """That of the command, if this is the worst that is found."""

    @classmethod
    def warn(cls, check: str, text: str, fix: str) -> "Finding":
        """Make a finding of something that a mount survives."""
        return cls(check, text, Level.WARN, fix, 1)

    @classmethod
    def fail(cls, check: str, error: MountError) -> "Finding":
        """Make a finding of an error that stops a mount."""
        return cls(check, error.reason, Level.FAIL, error.fix, error.exit_code)


def exit_code(findings: Iterable[Finding]) -> int:
    """0 if all is well, the exit code of the first failure, else 1 for warnings."""
    codes = [finding.exit_code for finding in findings if finding.level is not Level.PASS]
    return next((code for code in codes if code > 1), max(codes, default=0))


def summary(findings: Iterable[Finding]) -> str:
    """Sum findings up in a line."""
    count = Counter(finding.level for finding in findings)
    bad = [f"{count[level]} {level.value}" for level in (Level.FAIL, Level.WARN) if count[level]]
    return ", ".join(bad) or "all is well"


def to_json(findings: Sequence[Finding]) -> str:
    """Write findings down for programs."""
    rows = [
        {"check": one.check, "level": one.level.value, "finding": one.text, "fix": one.fix or None} for one in findings
    ]
    document = {"version": secretfs.__version__, "exit_code": exit_code(findings), "findings": rows}
    return json.dumps(document, indent=2, ensure_ascii=False)


# --- the machine ---


def examine_machine(
    mountpoint: Path | None, *, allow_other: bool, nonempty: bool, kernel_answers: bool = True
) -> Iterator[Finding]:
    """Look at the kernel, at what this user may do in it, and at the place of the mount, if one is named."""
    yield _kernel(platform.release())
    yield _passes("device", preflight.require_device, _device)
    yield _passes("permission", preflight.require_privilege, _permission)
    if allow_other and not preflight.may_mount():
        yield _passes("allow_other", preflight.require_allow_other, lambda: "users may let others into their mounts")
    yield _namespace()
    yield _unless(forbid_dumps(), "core dumps", "none is made of a process that holds secrets, and none may trace it")
    yield _unless(lock_memory(), "memory", "no secret is swapped out")
    yield _packages()
    yield _warm_reads(session.HOOK, kernel_answers=kernel_answers, is_root=os.geteuid() == 0)
    if mountpoint is not None:
        yield from _place(mountpoint, nonempty=nonempty)


def _passes(check: str, require: Callable[[], object], tell: Callable[[], str]) -> Finding:
    try:
        require()
    except MountError as error:
        return Finding.fail(check, error)
    return Finding(check, tell())


def _device() -> str:
    return f"{preflight.DEVICE} opens; its mode is {stat.S_IMODE(preflight.DEVICE.stat().st_mode):04o}"


def _permission() -> str:
    user = os.geteuid()
    if not preflight.may_mount():
        return f"fusermount3 mounts for user {user}"
    return "root may mount" if user == 0 else f"user {user} may mount, in this user namespace"


def _unless(notice: Notice | None, check: str, text: str) -> Finding:
    return Finding.warn(check, notice.message, notice.fix) if notice else Finding(check, text)


def _kernel(release: str) -> Finding:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if numbers and (int(numbers[1]), int(numbers[2])) >= RESEND:
        return Finding("kernel", f"Linux {release}")
    needed = ".".join(map(str, RESEND))
    return Finding.warn(
        "kernel",
        f"Linux {release} has no FUSE_NOTIFY_RESEND: a daemon that crashes leaves its mount dead",
        f"use Linux {needed} or newer",
    )


def _packages() -> Finding:
    versions = ", ".join(f"{name} {number}" for name in _PACKAGES if (number := _version(name)))
    return Finding("packages", f"secretfs {secretfs.__version__}, Python {platform.python_version()}, {versions}")


def _warm_reads(hook: inode_for_handle.Hook | None, *, kernel_answers: bool, is_root: bool) -> Finding:
    """Say who will answer warm reads and listings."""
    check = "warm reads"
    asked = "the daemon answers each, by two messages"
    if not kernel_answers:
        return Finding(check, f"{asked}: --no-kernel-answers")
    if not is_root:
        return Finding(check, f"{asked}; the kernel answers them where root mounts")
    if hook is None:
        fix = "install a C compiler, and secretfs again; or give --no-kernel-answers"
        return Finding.warn(check, f"{asked}: {inode_for_handle.LACKING}", fix)
    return Finding(check, f"the kernel answers them: requests get their inode as handle ({hook.name})")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _namespace() -> Finding:
    """Compare the mounts that we see with those that process 1 sees: their ids are never the same in two namespaces.

    /proc/1/ns/mnt would show the same, but only to a user who may trace process 1.
    """
    check = "namespace"
    theirs = mount_ids(1)
    if not theirs:
        return Finding.warn(
            check, "/proc/1 is hidden, so it is not known whether process 1 sees what is mounted here", "run it as root"
        )
    if theirs & mount_ids(os.getpid()):
        return Finding(check, "what is mounted here is seen by the rest of this machine, or container")
    return Finding.warn(
        check,
        "this process has a mount namespace of its own: nobody outside of it will see the mount",
        "start it outside; in a unit, without ProtectSystem=, PrivateTmp= and what else makes one (systemd.exec(5))",
    )


def _place(named: Path, *, nonempty: bool) -> Iterator[Finding]:
    check = "mount point"
    try:
        path = resolve(named)
        if not is_mounted(path):
            require_place(path, nonempty=nonempty)
            if is_empty(path):
                yield Finding(check, f"{path} is there, and nothing in it")
            else:
                hidden = f"{path} is not empty: what is in it is hidden while secrets are mounted there"
                yield Finding.warn(check, hidden, "name an empty directory, unless that is meant")
        elif is_dead(path):
            fix = f"`secretfs mount` replaces it, secretfs unmount {path} clears it"
            yield Finding.warn(check, f"{path} has the dead mount of a secretfs that was killed", fix)
        else:
            yield Finding(check, f"{path} has a secretfs mounted, which answers")
    except MountError as error:
        yield Finding.fail(check, error)
        return
    yield _propagation(path)


def _propagation(path: Path) -> Finding:
    mount = surrounding(path)
    if mount.shared:
        return Finding("propagation", f"{mount.path} is shared: containers that run see what is mounted below it")
    return Finding.warn(
        "propagation",
        f"{mount.path} is private: containers and sandboxed services that run already will not see the mount",
        f"mount --make-rshared {mount.path}, or start them after it",
    )


# --- what is declared ---


def examine_declaration(load: Callable[[], Declaration]) -> tuple[list[Finding], Declaration | None]:
    """Load what is declared, as a mount does."""
    try:
        declaration = load()
    except ConfigurationError as error:
        return [_wrong("manifests", error, str(error))], None
    stores = ", ".join(component.name for component in declaration.components)
    whose = "this app" if declaration.apps is None else f"{len(declaration.apps)} apps"
    found = Finding("manifests", f"the stores of {whose}: {stores}")
    return [found, *(_noted("manifests", notice) for notice in declaration.notices)], declaration


def _noted(check: str, notice: Notice) -> Finding:
    return Finding.warn(check, str(notice), notice.fix or _MEND)


def _wrong(check: str, error: SecretFSError, text: str, *, ignored: bool = False) -> Finding:
    """Make a finding of an error of a manifest or of a store; one of a store that may fail is a warning."""
    if isinstance(error, StoreError):
        ways = (fix for kind, fix in _WAYS_OUT.items() if isinstance(error, kind))
        fix = next(ways, "docs/stores has a page for each store, with all its settings")
    else:
        fix = _MEND
    if ignored:
        return Finding.warn(check, f"{text} (ignoreErrors)", fix)
    return Finding(check, text, Level.FAIL, fix, error.exit_code)


# --- the stores ---


async def examine_stores(declaration: Declaration, default: Freshness, step: Callable[[], None]) -> list[Finding]:
    """Open every store and ask it, as a mount does. ``step`` is called twice for each component, as it goes on."""
    found: dict[str, list[Finding]] = {}
    rules = RuleCheck(declaration)

    async def look_into(opened: OpenedStore) -> None:
        component = opened.component
        try:
            with trio.fail_after(opened.freshness.deadline):
                scopes = [shown.scope for shown in declaration.stores.values() if shown.component == component.name]
                found[component.name] = await trio.to_thread.run_sync(
                    _store_findings, opened, scopes, abandon_on_cancel=True
                )
        except trio.TooSlowError:
            late = DeadlineExceeded(f"no answer within {show_duration(opened.freshness.deadline)}")
            found[component.name] = [_failed(component, late)]
        except SecretFSError as error:
            found[component.name] = [_failed(component, error)]
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a store may be anybody's
            found[component.name] = [_failed(component, as_store_error(log, error))]
        else:
            await rules.look_into(opened)
        step()

    async with open_registry(declaration.components, declaration.context, default, lambda _: step()) as registry:
        found |= {failure.component.name: [_failed(failure.component, failure.error)] for failure in registry.failures}
        async with trio.open_nursery() as nursery:
            for component in declaration.components:
                if component.name in found:
                    step()
                else:
                    nursery.start_soon(look_into, registry.stores[component.name])
        notices = [_noted("manifests", notice) for notice in registry.notices]
        stores = [finding for component in declaration.components for finding in found[component.name]]
        unused = [Finding.warn("permissions", str(notice), _RULES) for notice in rules.notices()]
        return [*notices, *stores, *unused, *_clocks(registry.stores)]


def _store_findings(opened: OpenedStore, scopes: Sequence[SecretScope]) -> list[Finding]:
    """Ask an open store. Only names that an app may see are counted."""
    check = f"store {opened.component.name}"
    began = perf_counter()
    opened.store.check()
    took = perf_counter() - began
    answers = f"answers in {show_duration(took)}" if took >= 0.001 else "answers in less than 1ms"
    try:
        names = opened.store.names("")
    except AccessDenied as error:
        fix = "allow its credentials to list, unless its secrets are only read by names that are known"
        return [Finding.warn(check, f"{answers}, and does not let us list its names: {error}", fix)]
    seen = sum(any(scope.allows(name) for scope in scopes) for name in names.secrets)
    name = opened.component.name
    asked = scopes if names.secrets or names.folders else []
    typos = [typo for scope in asked for typo in unmatched(opened.store, name, scope, names)]
    return [_counted(check, answers, seen, names), *(Finding.warn(check, str(typo), _SCOPE) for typo in typos)]


def _counted(check: str, answers: str, seen: int, names: Names) -> Finding:
    if names.folders:
        below = "1 folder" if len(names.folders) == 1 else f"{len(names.folders)} folders"
        return Finding(check, f"{answers}, {_count(seen)} and {below} at the top")
    if seen:
        return Finding(check, f"{answers}, {_count(seen)}")
    if names.secrets:
        return Finding(check, f"{answers}, no name that this app may see")
    return Finding.warn(
        check, f"{answers}, and is empty", "look whether the manifest names the right place in the store"
    )


def _count(names: int) -> str:
    return "1 name" if names == 1 else f"{names} names"


def _failed(component: Component, error: SecretFSError) -> Finding:
    text = str(error) if isinstance(error, ConfigurationError) else f"{component.source}: {error}"
    return _wrong(f"store {component.name}", error, text, ignored=component.ignore_errors)


def _clocks(stores: Mapping[str, OpenedStore]) -> Iterator[Finding]:
    """Compare the clocks of the stores that report the time with ours."""
    reported = {
        name: opened.store.clock_skew() for name, opened in stores.items() if isinstance(opened.store, ClockedStore)
    }
    skews = {name: seconds for name, seconds in reported.items() if seconds is not None}
    for name, seconds in skews.items():
        off = show_duration(round(abs(seconds)))
        if abs(seconds) > SKEW:
            yield Finding.warn(
                "clock",
                f"the clock here is {off} {'behind' if seconds > 0 else 'ahead of'} that of {name}",
                "set the wrong one (timedatectl set-ntp true): certificates and tokens go by both",
            )
    if agreed := [name for name, seconds in skews.items() if abs(seconds) <= SKEW]:
        yield Finding("clock", f"it agrees with that of {', '.join(agreed)}")
