"""What the audit log is told of a mount: its begin, rotations and reloads; `secretfs.fuse.witness` tells of opens."""

import os
from collections.abc import Collection

from secretfs.cache.change import Change
from secretfs.daemon.request import MountOptions
from secretfs.fs.descriptions import Descriptions
from secretfs.fs.journal import Journal
from secretfs.fs.vfs import SecretVFS
from secretfs.fuse.control_mount import ControlMount
from secretfs.fuse.witness import AuditWitness, Witness
from secretfs.linux.mounter import HelperProcesses
from secretfs.observe.audit import AuditLog, id_of_key, key_for_names


class MountAudit:
    """Tells an audit log what becomes of one mount."""

    def __init__(self, log: AuditLog, helpers: HelperProcesses) -> None:
        self._log = log
        self._helpers = helpers
        self._descriptions: Descriptions

    def begin(self, vfs: SecretVFS, journal: Journal, options: MountOptions, app_id: str) -> None:
        """Begin to write records, first that the mount is served. Call it before the others."""
        self._descriptions = vfs.descriptions
        key = key_for_names(journal.digest_key)
        self._log.start(key)
        self._log.note(
            "takeover" if journal.generation else "mount",
            {
                "app": app_id,
                "components": list(vfs.changes.stores()),
                "daemon": os.getpid(),
                "audit": options.audit.mode.value,
                "names_key": id_of_key(key) if options.audit.hash_names else None,
            },
        )

    def witness(self, requests: ControlMount | None, journal: Journal) -> Witness:
        """Return what is to be told of opens. What our own processes do is no news."""
        if not self._log.kept:
            return Witness()
        publishing, asking = self._helpers.publishing, self._helpers.asking
        return AuditWitness(
            self._log,
            self._descriptions,
            lambda: {publishing.pid, asking.pid, *([requests.helper] if requests else ())},
            lambda: journal.kernel_opens,
        )

    def changed(self, change: Change) -> None:
        """Tell of secrets that have other values now."""
        for described in self._descriptions.rotated(change) if self._log.kept else ():
            self._log.note("rotation", described)

    def reloaded(self, changed: Collection[str], error: str) -> None:
        """Tell that manifests and configuration were read again: which stores came or went, or the mistake."""
        self._log.note("reload", {"changed": list(changed), "error": error})


def tell_loan(log: AuditLog, component: str, event: str, name: str, loan: str) -> None:
    """Tell of a credential that a backend has issued or taken back."""
    log.note(event, {"component": component, "secret": name, "lease": loan})
