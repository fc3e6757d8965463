"""The page of metrics: what it has, in both formats, and how much of it there is."""

from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_classic

from secretfs.histogram import Histogram
from secretfs.observe.measures import MountMeasures, StoreMeasures
from secretfs.observe.metrics import render
from secretfs.store import Expiry


def durations(*seconds: float) -> Histogram:
    histogram = Histogram()
    for each in seconds:
        histogram.observe(each)
    return histogram


STORE = StoreMeasures(
    name="vault",
    type="secretstores.hashicorp.vault",
    state="ok",
    ttl=60,
    max_stale=3600,
    last_success=1000.0,
    next_probe=None,
    breaker_openings=2,
    exceeded={"names": 1, "size": 0},
    calls={("fetch", "ok"): durations(0.002, 0.3).now(), ("names", "failed"): durations(6).now()},
    calls_waiting=1,
    calls_running=2,
    hits={"value": (10, 3), "listing": (4, 0)},
    waits={("value", "ok"): durations(0.3).now()},
    readers_waiting=5,
    values=7,
    values_in_use=6,
    values_stale=1,
    value_bytes=70,
    oldest_in_use=990.0,
    rotated=3,
    last_rotation=995.0,
    publications=durations(0.001).now(),
    expiry=Expiry(2000.0, 1, 1500.0),
)
MOUNT = MountMeasures(
    mountpoint='/mnt/"a"\nb',
    version="1.2.3",
    born=900.0,
    started=950.0,
    takeovers=1,
    by_kernel=True,
    inodes=8,
    apps=0,
    requests=1,
    requests_refused=0,
    messages={"lookup": durations(0.00005).now()},
    errors={"ENOENT": 4},
    reloaded=None,
    declaration_refused=False,
    resident_bytes=1 << 20,
    locked_bytes=0,
    cpu_seconds=1.5,
    open_files=10,
    states=("ok", "refused", "in doubt", "down"),
    stores=[STORE],
)


def samples(measures: MountMeasures) -> dict[str, float]:
    """Return the samples of a page, by name and the values of labels other than the mount point."""
    found = {}
    for family in parse_openmetrics(render(measures, "openmetrics").decode()):  # type: ignore[no-untyped-call]
        for sample in family.samples:
            assert sample.labels.pop("mountpoint") == measures.mountpoint
            found[" ".join((sample.name, *(value for _, value in sorted(sample.labels.items()))))] = sample.value
    return found


def test_what_is_measured_is_on_the_page() -> None:
    found = samples(MOUNT)
    assert found["secretfs_build_info 1.2.3"] == 1
    assert found["secretfs_takeovers_total"] == 1
    assert found["secretfs_store_state ok vault"] == 1
    assert found["secretfs_store_state down vault"] == 0
    assert found["secretfs_store_call_duration_seconds_count fetch ok vault"] == 2
    assert found["secretfs_store_call_duration_seconds_bucket 0.005 fetch ok vault"] == 1
    assert found["secretfs_store_call_duration_seconds_bucket 0.5 fetch ok vault"] == 2
    assert found["secretfs_store_call_duration_seconds_sum names failed vault"] == 6
    assert found["secretfs_cache_hits_total vault value"] == 10
    assert found["secretfs_cache_stale_hits_total vault value"] == 3
    assert found["secretfs_token_expiry_timestamp_seconds vault"] == 2000
    assert found["secretfs_leases vault"] == 1
    assert found["secretfs_fuse_errors_total ENOENT"] == 4
    assert found["secretfs_fuse_message_duration_seconds_bucket 0.0001 lookup"] == 1
    assert found["secretfs_publication_delay_seconds_count vault"] == 1


def test_what_is_not_known_is_left_out() -> None:
    found = samples(replace(MOUNT, stores=[STORE._replace(oldest_in_use=None, expiry=Expiry())]))
    assert "secretfs_store_next_probe_timestamp_seconds vault" not in found
    assert "secretfs_oldest_value_timestamp_seconds vault" not in found
    assert "secretfs_token_expiry_timestamp_seconds vault" not in found


def test_audit_records_are_there_with_an_audit() -> None:
    assert not [name for name in samples(MOUNT) if "audit" in name]
    found = samples(replace(MOUNT, audit={"written": 5, "lost": 0}))
    assert found["secretfs_audit_records_total written"] == 5


def test_both_formats_say_the_same() -> None:
    classic = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse_classic(render(MOUNT, "classic").decode())
        for sample in family.samples
    }
    text = render(MOUNT, "openmetrics").decode()
    assert text.endswith("# EOF\n")
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in parse_openmetrics(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }
    assert found == classic


@pytest.mark.parametrize("number", [1, 3])
def test_series_depend_on_stores_alone(number: int) -> None:
    of_mount = len(samples(replace(MOUNT, stores=[])))
    of_store = len(samples(MOUNT)) - of_mount
    stores = [STORE._replace(name=f"store{each}", values=10**6) for each in range(number)]
    assert len(samples(replace(MOUNT, stores=stores, apps=1000))) == of_mount + number * of_store
    assert of_store < 150
