"""Permission rules as users write them: lists of globs with a group and a mode, and names of users and groups."""

import grp
import pwd
from collections.abc import Callable, Iterable
from typing import TypeVar

from secretfs.dapr.component_yaml import Field, Object
from secretfs.dapr.goyaml import ScalarNode, parse
from secretfs.errors import ConfigurationError, Source
from secretfs.permissions import LARGEST_ID, PermissionRule, parse_mode
from secretfs.settings import nearest

_RULE_FIELDS = ("match", "group", "mode")

T = TypeVar("T")


def parse_rules(rules: Field) -> tuple[PermissionRule, ...]:
    """Read a list of permission rules. Raises `ConfigurationError`."""
    return tuple(_rule(rule.members(), rule.source) for rule in rules.elements())


def rules_of_annotation(text: str, source: Source) -> tuple[PermissionRule, ...]:
    """Read the list of rules that is the text of an annotation. Raises `ConfigurationError`."""
    node = parse(text, source.path, source.line)
    return parse_rules(Field("secretfs/permissions", source, node))


def _rule(rule: Object, source: Source) -> PermissionRule:
    refuse_unknown(rule, _RULE_FIELDS)
    match = rule["match"].string()
    if not match.strip("/"):
        raise ConfigurationError(f"{rule['match'].path} is missing: a glob such as vault/tls/*", source)
    return PermissionRule(
        match.strip("/"),
        gid=given(rule["group"], group_id),
        mode=given(rule["mode"], parse_mode),
        source=source,
    )


def user_id(text: str) -> int:
    """Return the id of a user, given by name or as a host id. Raises ValueError with the nearest name."""
    return _id(text, "user", lambda name: pwd.getpwnam(name).pw_uid, lambda: (user.pw_name for user in pwd.getpwall()))


def group_id(text: str) -> int:
    """Return the id of a group, given by name or as a host id. Raises ValueError with the nearest name."""
    return _id(text, "group", lambda name: grp.getgrnam(name).gr_gid, lambda: (g.gr_name for g in grp.getgrall()))


def _id(text: str, what: str, find: Callable[[str], int], known: Callable[[], Iterable[str]]) -> int:
    if text.isascii() and text.isdecimal():
        if int(text) > LARGEST_ID:
            raise ValueError(f"{text} is not the id of a {what}: ids end at {LARGEST_ID}")
        return int(text)
    try:
        return find(text)
    except KeyError:
        raise ValueError(f"there is no {what} {text!r} on this host{nearest(text, tuple(known()))}") from None


def given(field_: Field, parse: Callable[[str], T]) -> T | None:
    """Parse a field that is there. Raises `ConfigurationError` that names it, where ``parse`` raises ValueError."""
    text = field_.string()
    if not text:
        return None
    if isinstance(field_.node, ScalarNode):
        text = field_.node.text  # a mode without quotes is a number to YAML: 0400 would come out as 256
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigurationError(f"{field_.path}: {error}", field_.source) from None


def refuse_unknown(fields: Object, known: Iterable[str]) -> None:
    """Raise `ConfigurationError` for a field that is none of ``known``, with the nearest of them."""
    for notice in fields.unknown(known):
        raise ConfigurationError(notice.message.replace(" is ignored", ""), notice.source)
