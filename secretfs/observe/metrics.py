"""Metrics as text, in the formats of Prometheus: what `secretfs.observe.measures` has, in one pass.

The number of series depends on how many stores there are, and on nothing else: neither on secrets, nor on apps.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Final

from prometheus_client.metrics_core import Metric

from secretfs.histogram import Distribution, Labels
from secretfs.observe.families import counter, gauge, histogram, info, page
from secretfs.observe.measures import Format, MountMeasures, StoreMeasures

_MOUNT: Final = "mountpoint"
_STORE: Final = (_MOUNT, "store")

Get = Callable[[StoreMeasures], float | None]


def render(measures: MountMeasures, form: Format) -> bytes:
    """Return the page."""
    parts = (_of_mount, _of_process, _of_stores, _of_readers)
    return page(lambda: chain.from_iterable(part(measures) for part in parts), form)


def _of_mount(mount: MountMeasures) -> Iterator[Metric]:
    at = mount.mountpoint
    version = [((at,), {"version": mount.version})]
    yield info("build", "The version that serves the mount.", (_MOUNT,), version)
    for name, text, value in (
        ("mounted_timestamp_seconds", "When the mount was made.", mount.born),
        ("started_timestamp_seconds", "When the process that serves it now began to.", mount.started),
        ("warm_reads_by_kernel", "1 if the kernel answers warm reads by itself.", mount.by_kernel),
        ("inodes", "Files and directories that the kernel knows.", mount.inodes),
        ("apps", "Apps with a directory, in a mount for many apps.", mount.apps),
        ("requests_in_progress", "Requests of the kernel that are not answered yet.", mount.requests),
        ("reload_timestamp_seconds", "When what is declared was last read again; 0 for never.", mount.reloaded or 0),
        (
            "declaration_refused",
            "1 if what is declared now has a mistake and is not served.",
            mount.declaration_refused,
        ),
    ):
        yield gauge(name, text, (_MOUNT,), [((at,), value)])
    for name, text, count in (
        ("takeovers", "Processes that have served the mount before this one.", mount.takeovers),
        ("requests_refused", "Requests that failed because their app had too many.", mount.requests_refused),
    ):
        yield counter(name, text, (_MOUNT,), [((at,), count)])
    held = [((at, name), holds) for name, holds in mount.protections.items()]
    yield gauge("protection", "1 if it protects the secrets of the process.", (_MOUNT, "protection"), held)
    errors = [((at, name), count) for name, count in sorted(mount.errors.items())]
    yield counter("fuse_errors", "Messages of the kernel that were answered with an error.", (_MOUNT, "errno"), errors)
    messages: Mapping[Labels, Distribution] = {(at, kind): each for kind, each in mount.messages.items()}
    text = "How long messages of the kernel took to be answered, waits for stores included."
    yield histogram("fuse_message_duration_seconds", text, (_MOUNT, "message"), messages)
    if mount.audit:
        records = [((at, event), count) for event, count in sorted(mount.audit.items())]
        yield counter("audit_records", "Audit records, by what became of them.", (_MOUNT, "event"), records)
        text = "Audit records that wait to be written."
        yield gauge("audit_records_waiting", text, (_MOUNT,), [((at,), mount.audit_waiting)])


def _of_process(mount: MountMeasures) -> Iterator[Metric]:
    at = (mount.mountpoint,)
    for name, text, value in (
        ("process_resident_memory_bytes", "Memory of the process that serves the mount.", mount.resident_bytes),
        ("process_locked_memory_bytes", "The part of it that is never written to swap.", mount.locked_bytes),
        ("process_open_fds", "Its open file descriptors.", mount.open_files),
    ):
        yield gauge(name, text, (_MOUNT,), [(at, value)])
    yield counter("process_cpu_seconds", "CPU time that it has used.", (_MOUNT,), [(at, mount.cpu_seconds)])


def _of_stores(mount: MountMeasures) -> Iterator[Metric]:
    """Yield what backends do."""
    at, stores = mount.mountpoint, mount.stores
    yield info("store", "The type of a store.", _STORE, [((at, store.name), {"type": store.type}) for store in stores])
    states = [((at, store.name, state), float(state == store.state)) for store in stores for state in mount.states]
    yield gauge("store_state", "1 for the state that a store is in.", (*_STORE, "state"), states)
    gauges: Sequence[tuple[str, str, Get]] = (
        ("store_ttl_seconds", "Age up to which values are served without asking.", lambda store: store.ttl),
        ("store_max_stale_seconds", "Age up to which they are while the store fails.", lambda store: store.max_stale),
        ("store_last_success_timestamp_seconds", "When the store last answered.", lambda store: store.last_success),
        ("store_next_probe_timestamp_seconds", "When a store that is down is called.", lambda store: store.next_probe),
        ("calls_waiting", "Calls of the store that wait for their turn.", lambda store: store.calls_waiting),
        ("calls_running", "Calls of the store under way.", lambda store: store.calls_running),
        ("token_expiry_timestamp_seconds", "When our token for the store ends.", lambda store: store.expiry.token),
        ("leases", "Leases that the store has given us.", lambda store: store.expiry.leases),
        ("lease_expiry_timestamp_seconds", "When the next of them ends.", lambda store: store.expiry.next_lease),
    )
    yield from _gauges(mount, gauges)
    openings = [((at, store.name), store.breaker_openings) for store in stores]
    yield counter("breaker_openings", "How often the circuit breaker has opened.", _STORE, openings)
    exceeded = [((at, store.name, limit), number) for store in stores for limit, number in store.exceeded.items()]
    yield counter("limits_exceeded", "Answers of the store that were beyond a limit.", (*_STORE, "limit"), exceeded)
    calls = {(at, store.name, *labels): each for store in stores for labels, each in store.calls.items()}
    text = "How long calls of the store took."
    yield histogram("store_call_duration_seconds", text, (*_STORE, "operation", "outcome"), calls)


def _of_readers(mount: MountMeasures) -> Iterator[Metric]:
    """Yield what readers get."""
    at, stores = mount.mountpoint, mount.stores
    gauges: Sequence[tuple[str, str, Get]] = (
        ("values", "Values in memory.", lambda store: store.values),
        ("value_bytes", "Their size.", lambda store: store.value_bytes),
        ("values_in_use", "Values that were opened lately, and are kept fresh.", lambda store: store.values_in_use),
        ("values_stale", "Values that are served although they expired.", lambda store: store.values_stale),
        (
            "oldest_value_timestamp_seconds",
            "When the oldest value in use was fetched.",
            lambda store: store.oldest_in_use,
        ),
        ("readers_waiting", "Readers that wait for the store.", lambda store: store.readers_waiting),
        ("last_rotation_timestamp_seconds", "When a known value last changed.", lambda store: store.last_rotation),
    )
    yield from _gauges(mount, gauges)
    hits = [((at, store.name, what), sum_) for store in stores for what, (sum_, _) in store.hits.items()]
    yield counter("cache_hits", "Answers for which nobody waited.", (*_STORE, "what"), hits)
    stale = [((at, store.name, what), count) for store in stores for what, (_, count) in store.hits.items()]
    yield counter("cache_stale_hits", "The part of them that had expired.", (*_STORE, "what"), stale)
    rotations = [((at, store.name), store.rotated) for store in stores]
    yield counter("rotations", "Known values that have changed.", _STORE, rotations)
    waits = {(at, store.name, *labels): each for store in stores for labels, each in store.waits.items()}
    text = "How long readers waited for the store: cold reads."
    yield histogram("read_wait_seconds", text, (*_STORE, "what", "outcome"), waits)
    delays: Mapping[Labels, Distribution] = {(at, store.name): store.publications for store in stores}
    text = "From when a change of values was noticed until it was published."
    yield histogram("publication_delay_seconds", text, _STORE, delays)


def _gauges(mount: MountMeasures, gauges: Iterable[tuple[str, str, Get]]) -> Iterator[Metric]:
    """Yield gauges of all stores; what is not known of a store is left out."""
    for name, text, get in gauges:
        known = [((mount.mountpoint, store.name), value) for store in mount.stores if (value := get(store)) is not None]
        yield gauge(name, text, _STORE, known)
