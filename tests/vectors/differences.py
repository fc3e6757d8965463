"""What is different from Dapr, and which vectors show it: docs/differences-from-dapr.md, in the form of conditions.

A disagreement belongs to the first difference whose condition it meets. One that meets none is a mistake.
"""

import re
from ast import literal_eval
from collections.abc import Callable
from typing import Final

from tests.vectors.compare import DIFFERS, NOTED, PANIC, RANDOM, REFUSED, SKIPPED, TAKEN, Disagreement
from tests.vectors.vector import Vector

Condition = Callable[[Vector, Disagreement], bool]

_GO_FORMAT = re.compile(r"'?%!s\((?:float64=.*|bool=(?:true|false)|<nil>)\)'?", re.DOTALL)
_READ_BY_OTHERS = frozenset(f"scalar:{name}" for name in ("tracing", "sampling", "metric", "meta", "root", "kind"))
"""Slots of a Configuration for what secretfs does not read."""


def _refused(area: str, reason: str) -> Condition:
    """Match an input of an area that only we refuse, for a reason."""
    return lambda v, d: v.area == area and d.kind == REFUSED and re.search(reason, d.ours) is not None


def _taken(area: str, reason: str) -> Condition:
    """Match an input of an area that only Dapr refuses, for a reason."""
    return lambda v, d: v.area == area and d.kind == TAKEN and re.search(reason, d.dapr) is not None


def _differs(area: str, what: str) -> Condition:
    """Match another value in a field."""
    return lambda v, d: v.area == area and d.kind == DIFFERS and re.fullmatch(what, d.what) is not None


def _either(*conditions: Condition) -> Condition:
    return lambda v, d: any(condition(v, d) for condition in conditions)


def _both(*conditions: Condition) -> Condition:
    return lambda v, d: all(condition(v, d) for condition in conditions)


def _text(pattern: str) -> Condition:
    return lambda v, _: re.search(pattern, v.text) is not None


EXPECTED: Final[dict[str, Condition]] = {
    # component manifests
    "broken-store": lambda _, d: d.kind == SKIPPED,
    "object-metadata": lambda _, d: d.kind == NOTED,
    "two-spellings": _refused("manifest", r" is the same field as "),
    "no-name": _refused("manifest", r"metadata\.name is missing"),
    "no-type": _refused("manifest", r"spec\.type is missing"),
    "no-app-id": _both(_taken("manifest", r"duplicate definition"), lambda v, _: not v.given["app_id"]),
    "last-separator": _both(_differs("manifest", "components"), _text(r"\n---.*\Z")),
    # YAML in general
    "yaml-slash": _both(
        _either(_taken("manifest", "unknown escape"), _taken("config", "unknown escape")), _text(r"\\/")
    ),
    "yaml-flow": _either(
        _both(_refused("manifest", r"found unexpected ':'"), _text(r"[\[{].*:[,}\]]")),
        _both(_taken("manifest", r"did not find expected ',' or '}'"), _text("!,")),
    ),
    "yaml-bom": _both(lambda v, _: v.area in ("manifest", "config"), _text("(?s).\ufeff")),
    "yaml-bytes": _both(lambda _, d: d.kind == DIFFERS, _text(r"!!binary")),
    # references
    "quoted-bytes": _both(_differs("resolve", r"[pqr]"), lambda v, _: r"\\377" in v.given["secrets"]),
    "env-keys": _both(_differs("resolve", "p"), lambda v, _: v.kind == "envallow"),
    "no-secret-store": _refused("resolve", r"does not say of which store: set auth\.secretStore"),
    # Configuration
    "configuration-other": _both(
        _taken("config", r"cannot unmarshal|cannot decode|invalid base64"), lambda v, _: v.kind in _READ_BY_OTHERS
    ),
    "configuration-bool": _both(_taken("config", r"cannot decode !!str"), _text("!!bool")),
    "configuration-separator": _both(_taken("config", r"mapping values are not allowed"), _text(r"\n--- *\w")),
    "yaml-circle": _refused("config", r"an anchor's value contains itself"),
    # local.file
    "json-leaf": lambda v, d: (
        d.kind == DIFFERS and v.area in ("file", "resolve") and _GO_FORMAT.fullmatch(d.dapr) is not None
    ),
    "json-number": _taken("file", r"cannot unmarshal number -?[0-9.]+[eE]"),
    "json-collision": lambda v, d: v.area == "file" and d.kind == RANDOM and "two entries have the name" in d.ours,
    # local.env
    "env-missing": _both(_differs("env", r"get '.*'"), lambda _, d: d.ours == "None"),
    # Vault
    "vault-token": lambda v, d: _differs("settings", "token")(v, d) and d.ours == repr(literal_eval(d.dapr).strip()),
    "vault-slashes": lambda v, d: (
        _differs("settings", "engine|prefix")(v, d) and d.ours == repr(literal_eval(d.dapr).strip("/"))
    ),
    "vault-address": _refused("settings", r"vaultAddr"),
    "vault-ca-path": lambda v, d: d.kind == PANIC and "caPath" in d.ours,
    # Azure
    "azure-vault-name": _refused("settings", r"vaultName is (?:neither|required)"),
    "azure-identity": lambda v, d: (
        d.kind in (REFUSED, TAKEN) and "no suitable token provider for Azure AD" in d.ours + d.dapr
    ),
}
"""Id of a difference to the disagreements that it explains."""


def explain(vector: Vector, disagreement: Disagreement) -> str | None:
    """Return the id of the difference that a disagreement belongs to; None if there is none."""
    return next((name for name, condition in EXPECTED.items() if condition(vector, disagreement)), None)
