"""Settings of ours that Dapr does not have: component annotations, which Dapr ignores, so one manifest serves both."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from secretfs.cache.freshness import Freshness
from secretfs.dapr.component import PERMISSIONS, Component
from secretfs.durations import parse_duration
from secretfs.errors import ConfigurationError
from secretfs.settings import nearest
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


def freshness(component: Component, default: Freshness) -> Freshness:
    """Return the freshness that a component's annotations ask for. Raises `ConfigurationError` for a mistake."""
    chosen = default
    for name, text in component.annotations.items():
        if not name.startswith(PREFIX):
            continue
        source = component.annotation_sources.get(name, component.source)
        if name not in FRESHNESS:
            if name == PERMISSIONS or name in store_annotations(component):
                continue
            raise ConfigurationError(f"unknown annotation {name}{_nearest(name, component)}", source)
        try:
            seconds = parse_duration(text)
        except ValueError as error:
            raise ConfigurationError(f"{name}: {error}", source) from None
        if seconds < 0 or (not seconds and FRESHNESS[name] not in ("max_stale", "negative_ttl")):
            raise ConfigurationError(f"{name}: must be longer than nothing", source)
        chosen = replace(chosen, **{FRESHNESS[name]: seconds})
    return chosen


def store_annotations(component: Component) -> Mapping[str, str]:
    """Return the annotations that are for the component's store. Raises `ConfigurationError` if there is none."""
    return {name: text for name, text in component.annotations.items() if name in _declared(component)}


def _nearest(name: str, component: Component) -> str:
    """Compare without the prefix that all of them share: it would make any two look alike."""
    known = [known.removeprefix(PREFIX) for known in (*FRESHNESS, PERMISSIONS, *_declared(component))]
    return nearest(name.removeprefix(PREFIX), known).replace("mean ", f"mean {PREFIX}")


def _declared(component: Component) -> frozenset[str]:
    module = load_store_type(component.type, component.version, component.source)
    return getattr(module, "ANNOTATIONS", frozenset())
