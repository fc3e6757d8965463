"""Where a declaration comes from: the paths that are given, or the defaults. Nothing is read here."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from secretfs.errors import ConfigurationError

DEFAULT_RESOURCES = Path("~/.dapr/components")
DEFAULT_CONFIG = Path("~/.dapr/config.yaml")


@dataclass(frozen=True, slots=True)
class Sources:
    """What the flags name: where the declarations are, and for which app."""

    resources: tuple[Path, ...] = ()
    """Directories of component manifests."""
    configs: tuple[Path, ...] = ()
    """Configuration files, in the order in which they override."""
    app_id: str = ""
    builtin: bool = True
    """A pod has its store ``kubernetes`` without a manifest."""
    apps: tuple[Path, ...] = ()
    """Directories that declare apps; without one, the view of ``app_id`` is at the root."""
    app_resources: Path | None = None
    """The directory below which are the sets that apps name as their ``resources``."""
    app_objects: Path | None = None
    """That of the sets that apps name as their ``objects``, whose authors are not trusted with the host."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All directories and files, without those of sets."""
        return (*self.resources, *self.configs, *self.apps)

    @property
    def set_paths(self) -> tuple[Path, ...]:
        """The directories below which sets are."""
        return tuple(filter(None, (self.app_resources, self.app_objects)))

    def with_defaults(self) -> "Sources":
        """Return what is meant: the paths of the Dapr command line when no resources are named.

        Raises `ConfigurationError` if they are not there, unless apps may have sets instead.
        """
        if self.resources:
            return self
        resources = _default(DEFAULT_RESOURCES)
        if not os.path.lexists(resources):
            if self.set_paths:
                return self
            raise ConfigurationError(f"{resources} does not exist; --resources-path names another directory")
        config = _default(DEFAULT_CONFIG)
        configs = self.configs or ((config,) if os.path.lexists(config) else ())
        return replace(self, resources=(resources,), configs=configs)

    def absolute(self) -> "Sources":
        """Return the same for a process that leaves its working directory."""
        resources, configs, apps = (
            tuple(map(Path.absolute, each)) for each in (self.resources, self.configs, self.apps)
        )
        sets, objects = (each and each.absolute() for each in (self.app_resources, self.app_objects))
        return replace(self, resources=resources, configs=configs, apps=apps, app_resources=sets, app_objects=objects)


def _default(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ConfigurationError(f"there is no home directory for the default {path}; use --resources-path") from None
