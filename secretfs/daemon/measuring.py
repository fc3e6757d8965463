"""Measures a mount: collects what its parts count all the time into one `secretfs.observe.measures.MountMeasures`.

Nothing is counted for the sake of a scrape but the values in memory, and those in slices. The text is made in a thread,
which is also the first to import prometheus_client.
"""

import errno
import importlib.util
import os
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import trio

import secretfs
from secretfs.cache.health import State
from secretfs.errors import ConfigurationError
from secretfs.fs.control_files import Declared
from secretfs.fs.publish import Publisher
from secretfs.fs.vfs import SecretVFS
from secretfs.fuse.messages import MessageStats
from secretfs.histogram import Distribution, Histogram
from secretfs.linux.confinement import protections
from secretfs.observe.audit import AuditCounts, AuditLog
from secretfs.observe.measures import Format, MountMeasures, StoreMeasures
from secretfs.observe.process import usage
from secretfs.registry.store_set import RunningStore, StoreSet
from secretfs.store import ExpiringStore, Expiry

_STATES = tuple(state.value for state in State)
_NOTHING = Histogram().now()


def metrics_installed() -> bool:
    """Whether there is the package that makes pages of metrics."""
    return importlib.util.find_spec("prometheus_client") is not None


def require_metrics(flag: str) -> None:
    """Raise `ConfigurationError` if what a flag asks for needs a package that is not installed."""
    if not metrics_installed():
        raise ConfigurationError(f"{flag} needs the package prometheus_client: pip install secretfs-fuse[metrics]")


class Measurer:
    """Measures a mount that is served."""

    def __init__(
        self,
        mountpoint: Path,
        vfs: SecretVFS,
        stores: StoreSet,
        publisher: Publisher,
        messages: MessageStats,
        declared: Declared,
        audit: AuditLog,
    ) -> None:
        self._mountpoint = os.fsencode(mountpoint).decode(errors="replace")
        self._vfs = vfs
        self._stores = stores
        self._publisher = publisher
        self._messages = messages
        self._declared = declared
        self._audit = audit
        self._started = time.time()
        self._one_at_a_time = trio.Lock()

    async def page(self, form: Format) -> bytes:
        """Return the metrics of now as text."""
        async with self._one_at_a_time:
            measures = await self.measure()
            return await trio.to_thread.run_sync(_render, measures, form)

    async def measure(self) -> MountMeasures:
        """Measure the mount now."""
        stores = [await self._store(name, running) for name, running in sorted(self._stores.running.items())]
        used = await trio.to_thread.run_sync(usage)
        status, declared, messages = self._vfs.status(), self._declared.status(), self._messages
        errors: defaultdict[str, int] = defaultdict(int)
        for number, count in messages.errors.items():
            errors[errno.errorcode.get(number, "unknown")] += count
        return MountMeasures(
            mountpoint=self._mountpoint,
            version=secretfs.__version__,
            born=status.started,
            started=self._started,
            takeovers=status.takeovers,
            by_kernel=status.warm_reads.by_kernel,
            inodes=status.inodes,
            apps=len(declared.apps or ()),
            requests=status.all_requests.waiting,
            requests_refused=status.all_requests.refused,
            messages={kind: histogram.now() for kind, histogram in sorted(messages.durations.items())},
            errors=errors,
            reloaded=declared.reloaded,
            declaration_refused=bool(declared.error),
            resident_bytes=used.resident_bytes,
            locked_bytes=used.locked_bytes,
            cpu_seconds=used.cpu_seconds,
            open_files=used.open_files,
            states=_STATES,
            stores=stores,
            protections={each.name: each.holds for each in protections()},
            audit=_counts(self._audit.counts()) if self._audit.kept else {},
            audit_waiting=self._audit.counts().waiting,
        )

    async def _store(self, name: str, running: RunningStore) -> StoreMeasures:
        client, cached, freshness = running.opened.client, running.cached, running.opened.freshness
        counts = await cached.count_values()
        health = client.statistics(names=0, cached=counts.values, stale=counts.stale)
        readers = cached.readers
        return StoreMeasures(
            name=name,
            type=health.store_type,
            state=health.state.value,
            ttl=freshness.ttl,
            max_stale=freshness.max_stale,
            last_success=health.last_success,
            next_probe=health.next_try,
            breaker_openings=health.breaker_openings,
            exceeded=client.limits.exceeded,
            calls=client.stats.calls.now(),
            calls_waiting=sum(work.waiting for work in health.work.values()),
            calls_running=client.turns.running,
            hits=cached.hits,
            waits=readers.waits.now(),
            readers_waiting=readers.waiting,
            values=counts.values,
            values_in_use=counts.in_use,
            values_stale=counts.stale,
            value_bytes=counts.bytes,
            oldest_in_use=counts.oldest_in_use,
            rotated=readers.rotated,
            last_rotation=readers.last_rotation,
            publications=self._delay(name),
            expiry=client.store.expiry() if isinstance(client.store, ExpiringStore) else Expiry(),
        )

    def _delay(self, component: str) -> Distribution:
        return self._publisher.queue.delays.now().get((component,), _NOTHING)


def _counts(audit: AuditCounts) -> Mapping[str, int]:
    return {"written": audit.written, "merged": audit.merged, "lost": audit.lost}


def _render(measures: MountMeasures, form: Format) -> bytes:
    from secretfs.observe.metrics import render  # noqa: PLC0415 - who asks for no metrics does not wait for it

    return render(measures, form)
