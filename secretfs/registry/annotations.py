"""Settings of ours that Dapr does not have: component annotations, which Dapr ignores, so one manifest serves both."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from secretfs.cache.freshness import Freshness
from secretfs.cache.limits import Limits
from secretfs.dapr.component import PERMISSIONS, Component
from secretfs.dapr.references import TemplateContext, resolve_annotations
from secretfs.durations import parse_duration
from secretfs.errors import ConfigurationError
from secretfs.settings import nearest
from secretfs.store import LARGEST_LISTING
from secretfs.stores import load_store_type

PREFIX: Final = "secretfs/"
FRESHNESS: Final = {
    "secretfs/ttl": "ttl",
    "secretfs/negative-ttl": "negative_ttl",
    "secretfs/max-stale": "max_stale",
    "secretfs/deadline": "deadline",
    "secretfs/bulk-deadline": "bulk_deadline",
    "secretfs/idle": "idle",
}
"""Annotation to field of `Freshness`; the values are durations such as 30s."""

LIMITS: Final = {"secretfs/max-names": "names", "secretfs/max-size": "size"}
"""Annotation to field of `Limits`; the values are numbers such as 200000 or 64Mi."""
LARGEST: Final = {"names": LARGEST_LISTING, "size": 1 << 30}
_UNITS: Final = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_QUANTITY: Final = re.compile(r"([0-9]{1,18})(Ki|Mi|Gi|)")


def freshness(component: Component, default: Freshness) -> Freshness:
    """Return the freshness that a component's annotations ask for. Raises `ConfigurationError` for a mistake."""
    chosen = default
    for name, text in component.annotations.items():
        if not name.startswith(PREFIX):
            continue
        source = component.annotation_sources.get(name, component.source)
        if name not in FRESHNESS:
            if name == PERMISSIONS or name in LIMITS or name in store_annotations(component):
                continue
            raise ConfigurationError(f"unknown annotation {name}{_nearest(name, component)}", source)
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            raise ConfigurationError(f"{name}: {error}", source) from None
        if seconds < 0 or (not seconds and FRESHNESS[name] not in ("max_stale", "negative_ttl")):
            raise ConfigurationError(f"{name}: must be longer than nothing", source)
        chosen = replace(chosen, **{FRESHNESS[name]: seconds})
    limits(component)  # a mistake in one is as bad
    return chosen


def limits(component: Component) -> Limits:
    """Return the limits that a component's annotations ask for. Raises `ConfigurationError` for a mistake."""
    chosen = Limits()
    for name, field in LIMITS.items():
        text = component.annotations.get(name)
        if text is None:
            continue
        source = component.annotation_sources.get(name, component.source)
        found = _QUANTITY.fullmatch(text)
        if found is None:
            raise ConfigurationError(f"{name}: not a whole number such as 200000 or 64Mi", source)
        number, most = int(found[1]) * _UNITS[found[2]], LARGEST[field]
        if not 0 < number <= most:
            raise ConfigurationError(f"{name}: must be at least 1 and at most {most}", source)
        chosen = replace(chosen, **{field: number})
    return chosen


def own_annotations(component: Component) -> list[tuple[str, str]]:
    """Return the annotations that may decide which secrets a store has: all of ours that do not say how it is asked."""
    general = {*FRESHNESS, *LIMITS, PERMISSIONS}
    return sorted(it for it in component.annotations.items() if it[0].startswith(PREFIX) and it[0] not in general)


def store_annotations(component: Component) -> Mapping[str, str]:
    """Return the annotations that are for the component's store. Raises `ConfigurationError` if there is none."""
    return {name: text for name, text in component.annotations.items() if name in _declared(component)}


def resolved_annotations(component: Component, templates: TemplateContext) -> Mapping[str, str]:
    """Return the annotations that are for the component's store, with what their templates mean.

    Raises `ConfigurationError` if there is no such store, or for a template that means nothing.
    """
    return resolve_annotations(component, store_annotations(component), templates)


def _nearest(name: str, component: Component) -> str:
    """Compare without the prefix that all of them share: it would make any two look alike."""
    known = [known.removeprefix(PREFIX) for known in (*FRESHNESS, *LIMITS, PERMISSIONS, *_declared(component))]
    return nearest(name.removeprefix(PREFIX), known).replace("mean ", f"mean {PREFIX}")


def _declared(component: Component) -> frozenset[str]:
    module = load_store_type(component.type, component.version, component.source)
    return getattr(module, "ANNOTATIONS", frozenset())
