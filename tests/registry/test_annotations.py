"""Our settings in annotations: durations, and what is said about a mistake."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from secretfs.cache.freshness import Freshness
from secretfs.cache.limits import Limits
from secretfs.dapr.component import Component, load_manifests
from secretfs.errors import ConfigurationError
from secretfs.registry.annotations import FRESHNESS, LIMITS, freshness, limits
from secretfs.registry.opening import OpenedStore
from tests.support.manifests import component
from tests.support.memory_store import MemoryStore

DEFAULT = Freshness()


def declared(directory: Path, annotations: dict[str, str]) -> Component:
    component(directory, "env", "local.env", annotations=annotations)
    (found,) = load_manifests([directory], namespace="").visible_to("").components
    return found


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, DEFAULT),
        ({"secretfs/ttl": "30s"}, Freshness(ttl=30)),
        ({"secretfs/deadline": "1.5s"}, Freshness(deadline=1.5)),
        ({"secretfs/ttl": "1h30m", "secretfs/deadline": "250ms"}, Freshness(ttl=5400, deadline=0.25)),
        ({"dapr.io/app-id": "x", "secretfs.io/ttl": "nonsense", "ttl": "1s"}, DEFAULT),
    ],
)
def test_durations(tmp_path: Path, annotations: dict[str, str], expected: Freshness) -> None:
    assert freshness(declared(tmp_path, annotations), DEFAULT) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("secretfs/ttl", "30", "secretfs/ttl: not a duration such as 30s, 5m or 1h30m"),
        ("secretfs/ttl", "", "secretfs/ttl: not a duration such as 30s, 5m or 1h30m"),
        ("secretfs/ttl", "0s", "secretfs/ttl: must be longer than nothing"),
        ("secretfs/ttl", "-1s", "secretfs/ttl: must be longer than nothing"),
        ("secretfs/deadline", "5 s", "secretfs/deadline: not a duration: the units are ns, us, ms, s, m and h"),
        ("secretfs/deadline", "5d", "secretfs/deadline: not a duration: the units are ns, us, ms, s, m and h"),
        ("secretfs/deadline", "inf", "secretfs/deadline: not a duration such as 30s, 5m or 1h30m"),
        ("secretfs/tll", "1s", "unknown annotation secretfs/tll (did you mean secretfs/ttl?)"),
        ("secretfs/dead-line", "1s", "unknown annotation secretfs/dead-line (did you mean secretfs/deadline?)"),
        ("secretfs/TTL", "1s", "unknown annotation secretfs/TTL (did you mean secretfs/ttl?)"),
    ],
)
def test_a_mistake_names_file_line_and_annotation(tmp_path: Path, name: str, value: str, message: str) -> None:
    annotated = declared(tmp_path, {"dapr.io/app-id": "x", name: value})
    with pytest.raises(ConfigurationError) as caught:
        freshness(annotated, DEFAULT)
    assert str(caught.value) == f"{tmp_path}/env.yaml:7: {message}"


def test_every_field_of_freshness_has_its_annotation() -> None:
    assert sorted(FRESHNESS.values()) == sorted(field.name for field in fields(Freshness))
    assert all(name == f"secretfs/{field.replace('_', '-')}" for name, field in FRESHNESS.items())


@pytest.mark.parametrize("name", FRESHNESS)
def test_every_annotation_is_read_and_checked(tmp_path: Path, name: str) -> None:
    assert freshness(declared(tmp_path / "good", {name: "90s"}), DEFAULT) == replace(DEFAULT, **{FRESHNESS[name]: 90.0})
    with pytest.raises(ConfigurationError, match=f"{name}: not a duration"):
        freshness(declared(tmp_path / "bad", {name: "soon"}), DEFAULT)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, Limits()),
        ({"secretfs/max-names": "1000"}, Limits(names=1000)),
        ({"secretfs/max-size": "64Mi", "secretfs/ttl": "1s"}, Limits(size=64 << 20)),
        ({"secretfs/max-names": "200Ki", "secretfs/max-size": "1Gi"}, Limits(200 << 10, 1 << 30)),
    ],
)
def test_limits(tmp_path: Path, annotations: dict[str, str], expected: Limits) -> None:
    assert limits(declared(tmp_path, annotations)) == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("secretfs/max-names", "many", "secretfs/max-names: not a whole number such as 200000 or 64Mi"),
        ("secretfs/max-names", "-1", "secretfs/max-names: not a whole number such as 200000 or 64Mi"),
        ("secretfs/max-size", "1.5Mi", "secretfs/max-size: not a whole number such as 200000 or 64Mi"),
        ("secretfs/max-size", "16MB", "secretfs/max-size: not a whole number such as 200000 or 64Mi"),
        ("secretfs/max-size", "9" * 5000, "secretfs/max-size: not a whole number such as 200000 or 64Mi"),
        ("secretfs/max-names", "0", "secretfs/max-names: must be at least 1 and at most 1000000"),
        ("secretfs/max-size", "2Gi", "secretfs/max-size: must be at least 1 and at most 1073741824"),
        ("secretfs/max-name", "1", "unknown annotation secretfs/max-name (did you mean secretfs/max-names?)"),
    ],
)
def test_a_mistake_in_a_limit(tmp_path: Path, name: str, value: str, message: str) -> None:
    annotated = declared(tmp_path, {"dapr.io/app-id": "x", name: value})
    with pytest.raises(ConfigurationError) as caught:
        freshness(annotated, DEFAULT)
    assert str(caught.value) == f"{tmp_path}/env.yaml:7: {message}"


def test_every_limit_has_its_annotation() -> None:
    assert sorted(LIMITS.values()) == sorted(field.name for field in fields(Limits))


@pytest.mark.parametrize(
    ("name", "value", "other"),
    [
        ("secretfs/token-file", "/a", True),
        ("secretfs/endpoint", "https://x", True),
        ("secretfs/ttl", "5s", False),
        ("secretfs/max-names", "5", False),
        ("dapr.io/x", "5", False),
    ],
)
def test_what_an_annotation_makes_of_what_is_known(tmp_path: Path, name: str, value: str, *, other: bool) -> None:
    """What a store has answered is its own. One that asks elsewhere, or as somebody else, is another one."""
    plain = OpenedStore.of(declared(tmp_path, {}), MemoryStore(), DEFAULT)
    annotated = OpenedStore.of(declared(tmp_path, {name: value}), MemoryStore(), DEFAULT)
    assert (plain.declaration != annotated.declaration) is other
