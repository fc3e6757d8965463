"""Permission rules that match no secret: most often a typo, which shows as a program that may not read its file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import trio

from secretfs.dapr.declaration import Declaration
from secretfs.errors import AccessDenied, Notice
from secretfs.permissions import PermissionRule
from secretfs.registry.opening import OpenedStore
from secretfs.scopes import SecretScope
from secretfs.store import SecretStore


class RuleCheck:
    """Finds the rules of all apps that match nothing, while the stores are looked into one after the other."""

    def __init__(self, declaration: Declaration) -> None:
        self._declaration = declaration
        rules = declaration.rules()
        self._rules = {shown: _rules_for(declaration, rules, shown) for shown in declaration.stores}
        self._used: dict[str, set[int]] = {}
        """By what is shown: the rules that match something there, by id, since two apps may have equal ones. What is
        missing is not known."""

    async def look_into(self, opened: OpenedStore) -> None:
        """Find the rules that match something in a store. One that does not answer in time shows nothing."""
        for name, store in self._declaration.stores.items():
            rules = self._rules[name] if store.component == opened.component.name else ()
            look = partial(_used, opened.store, name.rpartition("/")[2], store.scope, rules)
            if rules:
                with trio.move_on_after(opened.freshness.deadline), suppress(Exception):  # it was reported before
                    self._used[name] = set(map(id, await trio.to_thread.run_sync(look, abandon_on_cancel=True)))

    def notices(self) -> Iterator[Notice]:
        """Warn of each rule that matches nothing in any store that it is for, if all of them have been looked into."""
        for rule in _all_rules(self._declaration):
            places = [shown for shown, rules in self._rules.items() if any(one is rule for one in rules)]
            if all(shown in self._used and id(rule) not in self._used[shown] for shown in places):
                yield Notice(f"permissions: {rule.match} matches no secret", rule.source)


def _all_rules(declaration: Declaration) -> Sequence[PermissionRule]:
    own = [rule for app in (declaration.apps or {}).values() for rule in app.rules]
    return [*own, *(rule for component in declaration.components for rule in component.rules)]


def _rules_for(
    declaration: Declaration, rules: Mapping[str, Sequence[PermissionRule]], shown: str
) -> Sequence[PermissionRule]:
    """Return the rules that may be about a store that is shown."""
    app, _, name = shown.rpartition("/")
    own = declaration.apps[app].rules if declaration.apps else ()
    return [rule for rule in (*own, *rules.get(app, ())) if _leads_to(rule.match, [name])]


def _used(store: SecretStore, name: str, scope: SecretScope, rules: Sequence[PermissionRule]) -> list[PermissionRule]:
    """Return the rules that match a secret in scope. Lists only folders in which there may be one."""
    unused = list(rules)

    def take(path: str, *, below: bool = True) -> None:
        unused[:] = [
            rule for rule in unused if not _leads_to(rule.match, [name, path] if path else [name], below=below)
        ]

    def look(folder: str) -> None:
        try:
            names = store.names(folder)
        except AccessDenied:  # there may be one
            take(folder)
            return
        for secret in filter(scope.allows, names.secrets):
            take(secret, below=store.multi_valued)
        for below in names.folders:
            if any(_leads_to(rule.match, [name, below]) for rule in unused):
                look(below)

    look("")
    return [rule for rule in rules if not any(rule is one for one in unused)]


def _leads_to(glob: str, path: Sequence[str], *, below: bool = True) -> bool:
    """Whether a glob matches a path, or with ``below``, may match something below it."""
    rule, whole = PermissionRule(glob), "/".join(path)
    if rule.matches(whole):
        return True
    parts = glob.strip("/").split("/")
    depth = whole.count("/") + 1
    if not below:
        return False
    deep = next((place for place, part in enumerate(parts) if "**" in part), len(parts))
    if deep < depth:
        return PermissionRule("/".join([*parts[:deep], "**"])).matches(whole)
    return len(parts) > depth and PermissionRule("/".join(parts[:depth])).matches(whole)
