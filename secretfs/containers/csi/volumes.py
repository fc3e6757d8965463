"""The volumes of a node: each is an app of the mount, and a read-only bind mount of its directory for each target.

No state is in memory. What is published is said by the table of mounts and by the documents of apps, so a driver that
is killed between any two steps, and started again, goes on with what it finds.
"""

import contextlib
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from secretfs.containers.csi.api_server import ApiServer
from secretfs.containers.csi.attributes import (
    OBJECTS,
    Volume,
    document,
    objects_of,
    read_volume,
    reads_pod,
    request_of,
    tokens_of,
)
from secretfs.containers.csi.failures import Aborted, AlreadyExists, CallFailure, FailedPrecondition, InvalidArgument
from secretfs.containers.csi.identities import Identities
from secretfs.containers.csi.measures import Measures
from secretfs.containers.csi.messages import PublishRequest, UnpublishRequest
from secretfs.containers.csi.object_sets import ObjectSets
from secretfs.containers.csi.pods import annotations_of
from secretfs.daemon.app_documents import declared_apps, document_of, locked, require_shown, without_place
from secretfs.daemon.control_client import read_metrics
from secretfs.daemon.group_commit import GroupCommit
from secretfs.errors import ConfigurationError, MountError
from secretfs.linux.mount_api import bind_read_only
from secretfs.linux.mountinfo import FSTYPE, MountInfo, mounts, require_mounted, secretfs_at, topmost
from secretfs.linux.mountpoint import call_with_timeout, resolve, unmount

log = logging.getLogger(__name__)


class Volumes:
    """The volumes that one mount has on this node. Calls may be made by several threads."""

    def __init__(
        self, mountpoint: Path, documents: Path, api: ApiServer | None, objects: ObjectSets | None, measures: Measures
    ) -> None:
        """``documents`` is where App documents of volumes are, with tokens of pods beside it.

        ``api`` is where pods are read, if anywhere; ``objects`` keeps Dapr's objects, if volumes may have them.
        ``measures`` has the reviews of tokens in the end.
        """
        self._mountpoint = mountpoint
        self._documents = documents
        self._commit = GroupCommit(mountpoint, documents)
        self._api = api
        self._objects = objects
        self._identities = Identities(documents.parent / "tokens", api, measures)
        self._busy: set[str] = set()
        self._lock = threading.Lock()

    def is_ready(self) -> bool:
        """Whether the mount answers, so that volumes can be published."""
        try:
            declared_apps(self._mountpoint)
        except (ConfigurationError, MountError) as error:
            log.warning("not ready: %s", error)
            return False
        return True

    def published(self) -> int:
        """Return how many volumes there are on this node, those that are being published included."""
        return sum(self._written(path.stem) is not None for path in self._documents.glob("*.yaml"))

    def watched_namespaces(self) -> tuple[int, int]:
        """Return of how many namespaces the objects are watched, and how many of these may be behind the API server."""
        return self._objects.counts() if self._objects else (0, 0)

    def metrics_of_mount(self) -> str:
        """Return the page with the metrics of the mount. Raises `MountError`."""
        return read_metrics(self._mountpoint)

    def publish(self, request: PublishRequest) -> None:
        """Bind the view of a volume on its target, where it may be already. Raises `SecretFSError`.

        A publish that fails leaves nothing behind: no kubelet unpublishes what was never published.
        """
        _require(volume_id=request.volume_id, target_path=request.target_path)
        if not request.has_capability:
            raise InvalidArgument("volume_capability is missing")
        if request.is_block:
            raise InvalidArgument("a volume has files, and is no block device")
        volume, target = read_volume(request), _target(request.target_path)
        with self._alone_with(volume.name):
            if self._is_published(volume, target):
                self._identities.keep(volume.name, volume.pod, volume.tokens)
                return
            is_new = self._written(volume.name) is None and topmost(target, mounts()) is None
            try:
                self._declare(volume)
                self._bind(volume, target)
            except BaseException:
                if is_new:  # else it is a dead mount, which is better than an empty directory
                    self._clean_up(volume, target)
                raise

    def unpublish(self, request: UnpublishRequest) -> None:
        """Unmount a target and remove it, and the app with its last target. Raises `SecretFSError`.

        What is not there is done already. The mount need not answer.
        """
        _require(volume_id=request.volume_id, target_path=request.target_path)
        target = _target(request.target_path)
        with self._alone_with(request.volume_id):
            _unmount_all(target)
            with contextlib.suppress(FileNotFoundError):
                _remove_directory(target)
            self._remove_if_unused(request.volume_id)

    def resume(self) -> None:
        """Go on for the volumes that there are. Call it before any call.

        What a driver has declared that was killed before anything was bound to it is removed: the kubelet publishes
        such a volume again, or has forgotten it.
        """
        names = [path.stem for path in sorted(self._documents.glob("*.yaml"))]
        for name in names:
            self._remove_if_unused(name)
        kept = {name: root for name in names if (root := self._document(name)) is not None}
        self._identities.forget_all_but(kept)
        if self._objects:
            self._objects.resume({name: namespace for name, root in kept.items() if (namespace := objects_of(root))})

    # --- steps ---

    @contextmanager
    def _alone_with(self, name: str) -> Iterator[None]:
        """Let no other call change a volume meanwhile: it is refused, and the kubelet repeats it."""
        with self._lock:
            if name in self._busy:
                raise Aborted(f"another call for volume {name} is under way")
            self._busy.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._busy.discard(name)

    def _is_published(self, volume: Volume, target: Path) -> bool:
        """Whether the volume is bound on its target, and alive. Raises `AlreadyExists` for other attributes."""
        written = self._written(volume.name)
        if written is None:
            return False
        if written != volume.request:
            raise AlreadyExists(f"volume {volume.name} is published with other attributes: {written}")
        table = list(mounts())
        there, mount = topmost(target, table), secretfs_at(self._mountpoint, table)
        if there is None or mount is None or not _shows(there, mount, volume.name):
            return False
        try:
            call_with_timeout(self._mountpoint, partial(os.stat, target))
        except OSError:
            return False
        return True

    def _declare(self, volume: Volume) -> None:
        """Have the mount show the view of a volume. Raises `SecretFSError`, and leaves no document then."""
        apps = declared_apps(self._mountpoint)["apps"]
        tokens = self._identities.keep(volume.name, volume.pod, volume.tokens)
        is_written = self._written(volume.name) is not None
        if volume.name in apps:
            if is_written:
                return
            raise FailedPrecondition(f"there is an app {volume.name} that this driver has not declared")
        if volume.wants_objects and not is_written:  # else they are held already
            self._hold_objects(volume)
        annotations: Mapping[str, str] = {}
        if self._api and volume.pod and reads_pod(volume):
            annotations = annotations_of(self._api, volume.pod)
        text = document(volume, annotations, tokens)
        path = document_of(self._documents, volume.name)
        try:
            self._commit.change(path, text)
        except ConfigurationError as error:
            raise InvalidArgument(without_place(str(error), path)) from None
        try:
            self._require_stores(volume.name, json.loads(text)["spec"]["appId"])
        except BaseException:  # else the next publish would take it for one that has succeeded
            self._withdraw(path)
            raise

    def _hold_objects(self, volume: Volume) -> None:
        """Have the objects of a volume as files. Raises `CallFailure`."""
        if self._objects is None:
            raise FailedPrecondition(
                f"the driver of this node does not read {OBJECTS}: the administrator has to give it the flag "
                "--components-from-api, and the rights that this needs"
            )
        self._objects.hold(volume.namespace, volume.name)

    def _require_stores(self, name: str, app_id: str) -> None:
        """Wait until the view of a volume is shown. Raises `SecretFSError` if it is not, or has no store."""
        require_shown(self._mountpoint, name)
        if not call_with_timeout(self._mountpoint, partial(os.listdir, self._mountpoint / name)):
            reason = f"app id {app_id} sees no secret store; compare it with the scopes of the components"
            raise FailedPrecondition(reason)

    def _bind(self, volume: Volume, target: Path) -> None:
        """Bind the view of a volume on its target, in the place of what a dead mount has left there."""
        table = list(mounts())  # read once: many who mount at once wait for each other there
        mount, there = require_mounted(self._mountpoint, table), topmost(target, table)
        if there is not None:
            if _shows(there, mount, volume.name):
                return
            _unmount_all(target)
        source = self._mountpoint / volume.name
        try:
            target.mkdir(mode=0o750, exist_ok=True)  # the kubelet makes its parent
            call_with_timeout(self._mountpoint, lambda: bind_read_only(os.fsencode(source), os.fsencode(target)))
        except OSError as error:
            raise FailedPrecondition(f"cannot bind the volume on {target}: {error.strerror}") from None

    def _clean_up(self, volume: Volume, target: Path) -> None:
        """Take back what a publish has done that failed. What goes wrong here is logged: its own error is told."""
        try:
            _unmount_all(target)
            with contextlib.suppress(FileNotFoundError):
                _remove_directory(target)
            self._remove_if_unused(volume.name)
            if self._written(volume.name) is None:
                self._identities.forget_failed(volume.name, volume.pod)
                if self._objects and volume.wants_objects:
                    self._objects.release(volume.namespace, volume.name)
        except (CallFailure, ConfigurationError, MountError) as error:
            log.warning("cleaning up after a failed publish: %s", error)

    def _remove_if_unused(self, name: str) -> None:
        """Remove the app of a volume, if the driver has declared it and nothing is bound to it on this node."""
        root = self._document(name)
        if root is None or self._is_bound(name):
            return
        self._withdraw(document_of(self._documents, name))
        if tokens := tokens_of(root):
            self._identities.forget(name, tokens)
        if self._objects and (namespace := objects_of(root)):
            self._objects.release(namespace, name)

    def _withdraw(self, document: Path) -> None:
        """Remove a document. The mount need not answer: the next one reads what is there then."""
        try:
            self._commit.change(document, None)
        except (ConfigurationError, MountError) as error:
            log.warning("volume %s is removed, which the mount is not told: %s", document.stem, error)
            with locked(self._documents):
                document.unlink(missing_ok=True)

    def _is_bound(self, name: str) -> bool:
        """Whether a volume, or a part of it, is mounted anywhere on this node."""
        table = list(mounts())
        ours = secretfs_at(self._mountpoint, table)
        binds = (mount for mount in table if ours is None or mount.device == ours.device)
        return any(mount.fstype == FSTYPE and f"{mount.root}/".startswith(f"/{name}/") for mount in binds)

    def _written(self, name: str) -> str | None:
        """Return the request that a volume was published with; None if the driver has not declared it."""
        root = self._document(name)
        return None if root is None else request_of(root)

    def _document(self, name: str) -> Mapping[str, Any] | None:
        """Return the document of a volume; None if the driver has not declared it."""
        try:
            root: Mapping[str, Any] = json.loads(document_of(self._documents, name).read_bytes())
        except (OSError, ValueError):
            return None
        return root if request_of(root) is not None else None


def _require(**fields: str) -> None:
    for name, text in fields.items():
        if not text:
            raise InvalidArgument(f"{name} is missing")


def _target(text: str) -> Path:
    if not text.startswith("/") or "\0" in text:
        raise InvalidArgument(f"target_path {text!r} is not an absolute path")
    return resolve(Path(text))


def _shows(there: MountInfo, mount: MountInfo, name: str) -> bool:
    """Whether a mount is a read-only bind mount of a volume of ``mount``."""
    return there.fstype == FSTYPE and there.device == mount.device and there.root == f"/{name}" and there.read_only


def _unmount_all(target: Path) -> None:
    """Unmount what a driver has mounted at a target, alive or dead. Raises `FailedPrecondition` for other mounts."""
    while (there := topmost(target, mounts())) is not None:
        if there.fstype != FSTYPE:
            raise FailedPrecondition(f"{target} has something else mounted: {there.fstype}")
        unmount(target, lazy=True)


def _remove_directory(target: Path) -> None:
    try:
        target.rmdir()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FailedPrecondition(f"cannot remove {target}: {error.strerror}") from None
