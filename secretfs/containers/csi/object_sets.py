"""Dapr's objects of the namespaces whose volumes ask for them, as files beside the mount point.

::

    OBJECTS/NAMESPACE/Component.NAME.yaml
    OBJECTS/NAMESPACE/Configuration.NAME.yaml

Files outlive the driver, as the mount does which reads them. A namespace is watched while it has such a volume.
"""

import logging
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from secretfs.containers.csi.api_server import PATIENCE, ApiServer
from secretfs.containers.csi.failures import InvalidArgument, Unavailable
from secretfs.containers.csi.object_files import ObjectFiles
from secretfs.containers.csi.reflector import COMPONENTS, CONFIGURATIONS, Reflector
from secretfs.dapr.app import is_app_name

_RESOURCES: Final = (COMPONENTS, CONFIGURATIONS)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Watched:
    """A namespace, and the volumes that ask for its objects."""

    reflectors: tuple[Reflector, ...]
    volumes: set[str] = field(default_factory=set)


class ObjectSets:
    """The objects below a directory, which is in memory. Calls may be made by several threads."""

    def __init__(self, directory: Path, api: ApiServer) -> None:
        self._directory = directory
        self._api = api
        self._lock = threading.Lock()
        self._watched: dict[str, _Watched] = {}

    def resume(self, volumes: Mapping[str, str]) -> None:
        """Go on for volumes that there are, each with its namespace, and remove what is there for others.

        Does not wait: the files are those of the last driver meanwhile.
        """
        for volume, namespace in volumes.items():
            self._begin(namespace, volume)
        if self._directory.is_dir():
            for path in self._directory.iterdir():
                if path.name not in self._watched:
                    shutil.rmtree(path, ignore_errors=True)

    def hold(self, namespace: str, volume: str) -> None:
        """Have the objects of a namespace as files until the volume releases them.

        Raises `CallFailure` with what is in the way, and holds nothing more than before then.
        """
        if not is_app_name(namespace):
            raise InvalidArgument(f"{namespace!r} cannot be a namespace")
        watched, is_new = self._begin(namespace, volume)
        try:
            for reflector in watched.reflectors:
                reflector.wait(PATIENCE)
        except BaseException:
            if is_new:
                self.release(namespace, volume)
            raise

    def release(self, namespace: str, volume: str) -> None:
        """Say that a volume is gone, if it was there. With the last one of a namespace its files go."""
        with self._lock:
            watched = self._watched.get(namespace)
            if watched is None:
                return
            watched.volumes.discard(volume)
            if watched.volumes:
                return
            del self._watched[namespace]
            for reflector in watched.reflectors:
                reflector.close()
            shutil.rmtree(self._directory / namespace, ignore_errors=True)

    def counts(self) -> tuple[int, int]:
        """Return how many namespaces are watched, and of how many the files may be behind the API server."""
        with self._lock:
            all_watched = list(self._watched.values())
        behind = sum(not all(each.is_watching for each in watched.reflectors) for watched in all_watched)
        return len(all_watched), behind

    def close(self) -> None:
        """End all watches. Files stay, for the mount and for the next driver."""
        with self._lock:
            for watched in self._watched.values():
                for reflector in watched.reflectors:
                    reflector.close()
            self._watched.clear()

    def _begin(self, namespace: str, volume: str) -> tuple[_Watched, bool]:
        """Note a volume, and begin to watch its namespace if it is the first. Returns whether the volume is new."""
        with self._lock:
            watched = self._watched.get(namespace)
            if watched is None:
                directory = self._directory / namespace
                try:
                    directory.mkdir(mode=0o700, exist_ok=True)
                    files = [ObjectFiles(directory, resource.kind) for resource in _RESOURCES]
                except OSError as error:
                    raise Unavailable(f"cannot keep objects in {directory}: {error.strerror}") from None
                reflectors = tuple(
                    Reflector(self._api, namespace, resource, of_kind)
                    for resource, of_kind in zip(_RESOURCES, files, strict=True)
                )
                watched = self._watched[namespace] = _Watched(reflectors)
                for reflector in reflectors:
                    reflector.start()
            is_new = volume not in watched.volumes
            watched.volumes.add(volume)
            return watched, is_new
