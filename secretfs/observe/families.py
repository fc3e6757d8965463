"""Families of metrics, and the page that they make, in the formats of Prometheus. Names begin with ``secretfs_``."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client import exposition as classic
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from secretfs.histogram import BOUNDS, Distribution, Labels
from secretfs.observe.measures import Format

_BOUNDS: Final = (*(f"{bound:g}" for bound in BOUNDS), "+Inf")


def page(families: Callable[[], Iterator[Metric]], form: Format) -> bytes:
    """Return the page with these families."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(families))
    if form == "openmetrics":
        return bytes(openmetrics.generate_latest(registry))  # type: ignore[no-untyped-call]
    return bytes(classic.generate_latest(registry))


def content_type(form: Format) -> str:
    """Return the media type of a page."""
    if form == "openmetrics":
        return str(openmetrics.CONTENT_TYPE_LATEST)
    return str(classic.CONTENT_TYPE_PLAIN_0_0_4)


def info(name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, Mapping[str, str]]]) -> Metric:
    """Make a family of facts: each has labels, and further ones that tell it."""
    family = InfoMetricFamily(f"secretfs_{name}", text, labels=labels)
    for at, facts in values:
        family.add_metric(at, dict(facts))
    return family


def gauge(name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, Any]]) -> Metric:
    """Make a family of numbers that go up and down."""
    family = GaugeMetricFamily(f"secretfs_{name}", text, labels=labels)
    for at, value in values:
        family.add_metric(at, float(value))
    return family


def counter(name: str, text: str, labels: Labels, values: Iterable[tuple[Labels, float]]) -> Metric:
    """Make a family of numbers that only grow."""
    family = CounterMetricFamily(f"secretfs_{name}", text, labels=labels)
    for at, value in values:
        family.add_metric(at, value)
    return family


def histogram(name: str, text: str, labels: Labels, values: Mapping[Labels, Distribution]) -> Metric:
    """Make a family of distributions of seconds."""
    family = HistogramMetricFamily(f"secretfs_{name}", text, labels=labels)
    for at, each in sorted(values.items()):
        buckets = list(zip(_BOUNDS, map(float, accumulate(each.counts)), strict=True))
        family.add_metric(at, buckets, each.total)
    return family


class _Collector(Collector):
    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families()
