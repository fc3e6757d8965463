"""Where an answer of secretfs and one of Dapr disagree."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from secretfs.dapr.component import DEFAULT_INIT_TIMEOUT, PREFIX, Component
from secretfs.dapr.configuration import Configuration
from secretfs.dapr.object_metadata import DAPR_SKIPS
from secretfs.scopes import ALLOW_ALL
from tests.vectors.subject import PARKED, Answer
from tests.vectors.vector import OLD, Vector, key_of, text_of, texts_of

REFUSED = "we refuse what Dapr takes"
TAKEN = "we take what Dapr refuses"
SKIPPED = "we refuse where Dapr skips a document"
NOTED = "we serve, with a notice, what Dapr skips"
DIFFERS = "a value differs"
PANIC = "Dapr crashes"
RANDOM = "Dapr's answer varies"


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NOTHING = re.compile(r"(?!)")


class Disagreement(NamedTuple):
    """One thing in which two answers differ."""

    kind: str
    what: str
    """The field, or the name of what differs."""
    ours: str
    dapr: str


def disagreements(vector: Vector, ours: Answer, dapr: Mapping[str, Any], version: str) -> list[Disagreement]:
    """Compare our answer with that of a version of Dapr."""
    if "panic" in dapr:
        return [Disagreement(PANIC, "", ours.error, str(dapr["panic"]))]
    if dapr.get("unstable"):
        return [Disagreement(RANDOM, "", ours.error, "")]
    refused = dapr["error"] if "error" in dapr else dapr.get("initError")
    if refused is not None:
        return [] if ours.error else [Disagreement(TAKEN, "", "", str(text_of(refused)))]
    if ours.error:
        warnings = [str(text_of(warning)) for warning in dapr.get("warnings", ())]
        if vector.area == "manifest" and warnings:
            return [Disagreement(SKIPPED, "", ours.error, warnings[0])]
        return [Disagreement(REFUSED, "", ours.error, "")]
    return list(_COMPARE[vector.area](vector, ours, dapr, version))


def _compare(pairs: Sequence[tuple[str, Any, Any]]) -> Iterator[Disagreement]:
    for what, ours, dapr in pairs:
        if ours != dapr:
            yield Disagreement(DIFFERS, what, repr(ours), repr(dapr))


def _manifest(vector: Vector, ours: Answer, dapr: Mapping[str, Any], version: str) -> Iterator[Disagreement]:
    theirs = [one for one in dapr["components"] if text_of(one["type"]).startswith(PREFIX)]
    if version == OLD:  # its loader filtered later
        app, namespace = vector.given["app_id"], vector.given.get("env", {}).get("NAMESPACE", "")
        theirs = [one for one in theirs if not one["scopes"] or app in one["scopes"]]
        theirs = [one for one in theirs if not namespace or one["namespace"] in ("", namespace)]
    components: Sequence[Component] = ours.value
    skipped = [notice for notice in ours.notices if notice.message.endswith(DAPR_SKIPS)]
    if skipped and len(components) > len(theirs):
        yield Disagreement(NOTED, "", str(skipped[0]), str(text_of(dapr["warnings"][0])))
        return
    if len(components) > len(theirs) and dapr["warnings"]:
        yield Disagreement(TAKEN, "", "", str(text_of(dapr["warnings"][0])))
        return
    yield from _compare([("components", len(components), len(theirs))])
    for component, other in zip(components, theirs, strict=False):
        yield from _component(component, other, version)


def _component(ours: Component, dapr: Mapping[str, Any], version: str) -> Iterator[Disagreement]:
    parsed = dapr["initTimeoutParsed"] or {}
    timeout = int(parsed.get("ns", 0)) / 1e9
    yield from _compare(
        [
            ("name", ours.name, text_of(dapr["name"])),
            ("namespace", ours.namespace, text_of(dapr["namespace"])),
            ("type", ours.type, text_of(dapr["type"])),
            ("version", ours.version, text_of(dapr["version"])),
            ("ignoreErrors", ours.ignore_errors, dapr["ignoreErrors"]),
            ("initTimeout", ours.init_timeout, timeout if timeout > 0 else DEFAULT_INIT_TIMEOUT),
            ("secretStore", ours.secret_store, text_of(dapr["secretStore"])),
            ("scopes", list(ours.scopes), [text_of(scope) for scope in dapr["scopes"]]),
            ("annotations", dict(ours.annotations), texts_of(dapr["annotations"])),
            ("items", len(ours.items), len(dapr["items"])),
        ]
    )
    for item, other in zip(ours.items, dapr["items"], strict=False):
        reference, name = item.secret_key_ref, text_of(other["secretKeyRef"]["name"])
        theirs = (name, text_of(other["secretKeyRef"]["key"]) or name) if name else None
        yield from _compare(
            [
                ("item.name", item.name, text_of(other["name"])),
                ("item.value", item.value or "", text_of(other["value"])),
                ("item has a value", item.value is not None, other["raw"] is not None),
                ("item.secretKeyRef", (reference.name, reference.key) if reference else None, theirs),
                ("item.envRef", item.env_ref, item.env_ref if version == OLD else text_of(other["envRef"])),
            ]
        )


def _config(vector: Vector, ours: Answer, dapr: Mapping[str, Any], version: str) -> Iterator[Disagreement]:
    found: Configuration = ours.value
    theirs = {
        text_of(scope["storeName"]): tuple({text_of(name) for name in scope[each]} for each in _LISTS)
        for scope in dapr["scopes"]
    }
    mine = {name: (set(it.allowed_secrets), set(it.denied_secrets)) for name, it in found.scopes.items()}
    yield from _compare([("scopes", mine, theirs)])
    for (store, name), allowed in zip(vector.given["queries"], dapr["allowed"], strict=True):
        decided = found.scopes.get(store, ALLOW_ALL).allows(name)
        yield from _compare([(f"decision on {name!r} of {store!r}", decided, allowed)])
    if version != OLD:  # which had no deny list
        for (kind, number), allowed in zip(vector.given["components"], dapr["componentAllowed"], strict=True):
            denied = found.denies(Component("x", kind, number))
            yield from _compare([(f"decision on {kind}/{number}", not denied, allowed)])


_LISTS = ("allowedSecrets", "deniedSecrets")


def _file(_: Vector, ours: Answer, dapr: Mapping[str, Any], __: str) -> Iterator[Disagreement]:
    theirs = {key_of(name): texts_of(values) for name, values in dapr["bulk"].items()}
    yield from _compare([("names", sorted(ours.value), sorted(theirs))])
    for name in ours.value.keys() & theirs.keys():
        mine, other = ours.value[name], theirs[name]
        yield from _compare([("keys", sorted(mine), sorted(other))])
        yield from _compare([("leaf", mine[key], other[key]) for key in mine.keys() & other.keys()])
    for name, got in dapr["gets"].items():
        yield from _compare([("get", key_of(name) in ours.value, "error" not in got)])


def _env(_: Vector, ours: Answer, dapr: Mapping[str, Any], __: str) -> Iterator[Disagreement]:
    names, gets = ours.value
    yield from _compare([("names", names, {key_of(name) for name in dapr["bulk"]})])
    for name, got in dapr["gets"].items():
        yield from _compare([(f"get {key_of(name)!r}", gets[key_of(name)], texts_of(got["data"]))])


def _settings(_: Vector, ours: Answer, dapr: Mapping[str, Any], __: str) -> Iterator[Disagreement]:
    theirs = dapr["settings"]
    optional = [name for name in ours.value if name in theirs or name.startswith("env:")]
    yield from _compare([(name, ours.value[name], theirs.get(name, "")) for name in optional])


def _resolve(vector: Vector, ours: Answer, dapr: Mapping[str, Any], __: str) -> Iterator[Disagreement]:
    for mine, other in zip_longest(ours.value, dapr["components"]):
        if other["missingStore"]:
            yield from _compare([("parked", mine, PARKED)])
        elif other["error"]:
            if not isinstance(mine, Answer):
                yield Disagreement(TAKEN, "", "", str(other["error"]))
        elif isinstance(mine, Answer):
            yield Disagreement(REFUSED, "", mine.error, "")
        else:
            random = _UUID if "{uuid}" in vector.text else _NOTHING
            theirs = {name: random.sub("UUID", it) for name, it in texts_of(other["properties"]).items()}
            yield from _compare([(name, random.sub("UUID", mine[name]), it) for name, it in theirs.items()])


_COMPARE: dict[str, Callable[[Vector, Answer, Mapping[str, Any], str], Iterator[Disagreement]]] = {
    "config": _config,
    "env": _env,
    "file": _file,
    "manifest": _manifest,
    "resolve": _resolve,
    "settings": _settings,
}
