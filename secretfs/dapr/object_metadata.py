"""Kubernetes' ObjectMeta in a component: fields that exported manifests carry, and that nobody reads here.

Dapr decodes them all the same, and skips the whole component when one has another type than Kubernetes gives it
(k8s.io/apimachinery ``meta/v1``). Here it is served, with a notice: the same manifest has to serve both.
"""

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

from secretfs.dapr.component_yaml import Field, Object
from secretfs.errors import ConfigurationError, Notice

DAPR_SKIPS: Final = ": Dapr skips this component"
"""The end of each notice of `what_dapr_skips`."""

_STRINGS = ("generateName", "selfLink", "uid", "resourceVersion")
_INTEGERS = ("generation", "deletionGracePeriodSeconds")
_TIMES = ("creationTimestamp", "deletionTimestamp")
_LISTS_OF_MAPS = ("ownerReferences", "managedFields")

METADATA_FIELDS: Final = (
    *("name", "namespace", "labels", "annotations", "finalizers"),
    *(*_STRINGS, *_INTEGERS, *_TIMES, *_LISTS_OF_MAPS),
)

# Go's time.RFC3339: an hour of one digit and a comma before the fraction are taken, lower case letters are not.
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d?:\d\d:\d\d)(?:[.,]\d+)?(?:Z|[+-](?:[01]\d|2[0-4]):[0-5]\d)", re.ASCII)


def what_dapr_skips(metadata: Object) -> Iterator[Notice]:
    """Yield a notice for each field because of which Dapr skips the component."""
    for names, read in _READERS.items():
        for name in names:
            field = metadata[name]
            try:
                read(field)
            except ConfigurationError as error:
                yield Notice(f"{error.args[0]}{DAPR_SKIPS}", error.source)


def _string_map(field: Field) -> None:
    for member in field.members().fields.values():
        member.string()


def _integer(field: Field) -> None:
    if field.is_null():
        return
    text = field.json()
    if not re.fullmatch(r"-?[0-9]+", text) or not -(1 << 63) <= int(text) < 1 << 63:
        raise ConfigurationError(f"{field.path} must be an integer", field.source)


def _time(field: Field) -> None:
    if field.is_null():
        return
    match = _RFC3339.fullmatch(field.strict_string())
    try:
        if match:
            datetime.fromisoformat(f"{match[1]} {match[2].rjust(8, '0')}")
            return
    except ValueError:
        pass
    raise ConfigurationError(f"{field.path} must be a time such as 2026-01-31T12:00:00Z", field.source)


def _strings(field: Field) -> None:
    for element in field.elements():
        element.string()


def _maps(field: Field) -> None:
    for element in field.elements():
        element.members()


_READERS: dict[tuple[str, ...], Callable[[Field], object]] = {
    ("labels",): _string_map,
    _STRINGS: Field.string,
    _INTEGERS: _integer,
    _TIMES: _time,
    ("finalizers",): _strings,
    _LISTS_OF_MAPS: _maps,
}
