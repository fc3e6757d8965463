"""The tokens of pods, in files that the logins of their stores read: who a pod is, it is to its backends.

The kubelet asks for tokens of the pod's service account (``tokenRequests``), passes them on with a publish, and with a
later one when they are about to expire (``requiresRepublish``). A token is believed when the API server has reviewed
it, and says that it belongs to the service account and the pod that the kubelet names. Pods of one service account are
one identity: they share a directory, logins and cached values::

    TOKENS/NAMESPACE:ACCOUNT/VOLUME/AUDIENCE.jwt
    TOKENS/NAMESPACE:ACCOUNT/current -> VOLUME      the pod whose tokens came last, and is still there
"""

import json
import os
import shutil
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from secretfs.containers.csi.api_server import ApiServer
from secretfs.containers.csi.failures import FailedPrecondition, InvalidArgument, Unavailable
from secretfs.containers.csi.measures import Measures
from secretfs.containers.csi.pods import Pod, require_token_of
from secretfs.dapr.app import is_app_name
from secretfs.dapr.references import token_file
from secretfs.linux.mountinfo import IN_MEMORY, surrounding

CURRENT: Final = "current"


def read_tokens(text: str) -> dict[str, str]:
    """Read the tokens that the kubelet passes on, by audience. Raises `InvalidArgument`, whose text has none of it."""
    try:
        tokens = {audience: each["token"] for audience, each in json.loads(text or "{}").items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        tokens = {"": None}
    if not all(isinstance(token, str) and token for token in tokens.values()):
        raise InvalidArgument("the tokens of the pod are not what a kubelet passes on")
    return tokens


class Identities:
    """The tokens below a directory, which is in memory."""

    def __init__(self, directory: Path, api: ApiServer | None, measures: Measures) -> None:
        self._directory = directory
        self._measures = measures
        self._api = api
        self._lock = threading.Lock()
        """Held while files change: pods of one service account share a directory."""

    def keep(self, volume: str, pod: Pod | None, tokens: Mapping[str, str]) -> Path | None:
        """Write the tokens of the pod that a volume is for. Returns where an App finds them; None if there are none.

        Raises `CallFailure` unless the API server confirms each, and writes none then.
        """
        if not tokens:
            return None
        if pod is None or not pod.service_account:
            raise FailedPrecondition(
                "there are tokens and no pod: podInfoOnMount: true is missing in the CSIDriver object"
            )
        identity = self._identity(pod)
        place = identity / volume
        new = {token_file(audience): token for audience, token in tokens.items()}
        if _read(place) != new or not (identity / CURRENT).exists():
            self._review(pod, tokens)
            try:
                with self._lock:
                    self._write(place, new)
            except OSError as error:
                raise Unavailable(f"cannot write tokens to {self._directory}: {error.strerror}") from None
        return identity / CURRENT

    def forget_failed(self, volume: str, pod: Pod | None) -> None:
        """Remove the tokens of a volume that could not be published, if there are any."""
        if pod is not None and pod.service_account:
            self.forget(volume, self._identity(pod) / CURRENT)

    def forget_all_but(self, volumes: Collection[str]) -> None:
        """Remove the tokens of all volumes but these: a driver was killed before it did."""
        for place in self._directory.glob("*/*"):
            if not place.is_symlink() and place.name not in volumes:
                self.forget(place.name, place.with_name(CURRENT))

    def forget(self, volume: str, tokens: Path) -> None:
        """Remove the tokens of a volume, in which an App found ``tokens``; another pod's take their place, if any."""
        identity = tokens.parent
        if identity.parent != self._directory:  # written by somebody else
            return
        with self._lock, suppress(OSError):
            shutil.rmtree(identity / volume, ignore_errors=True)
            others = sorted(path.name for path in identity.iterdir() if path.is_dir() and not path.is_symlink())
            if not others:
                (identity / CURRENT).unlink(missing_ok=True)
                identity.rmdir()
            elif not tokens.exists():
                _point(tokens, others[0])

    def _identity(self, pod: Pod) -> Path:
        name = f"{pod.namespace}:{pod.service_account}"
        if not is_app_name(name):
            raise InvalidArgument(f"{name!r} cannot be a namespace and a service account")
        return self._directory / name

    def _review(self, pod: Pod, tokens: Mapping[str, str]) -> None:
        if self._api is None:
            raise FailedPrecondition("tokens are reviewed by the API server, which is known in a pod only")
        for audience, token in tokens.items():
            with self._measures.review():
                require_token_of(self._api, pod, token, audience)

    def _write(self, place: Path, files: Mapping[str, str]) -> None:
        self._directory.mkdir(mode=0o700, exist_ok=True)
        if (fstype := surrounding(self._directory).fstype) not in IN_MEMORY:
            raise FailedPrecondition(
                f"tokens are kept in memory only, and {self._directory} is on {fstype}: have the mount in /run"
            )
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name, token in files.items():
            new = place / f".new.{name}"
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor
                file.write(token)
            new.replace(place / name)
        for path in place.iterdir():
            if path.name not in files:
                path.unlink()
        _point(place.with_name(CURRENT), place.name)


def _read(place: Path) -> dict[str, str]:
    try:
        return {path.name: path.read_text("utf-8") for path in place.iterdir()}
    except OSError:
        return {}


def _point(link: Path, name: str) -> None:
    new = link.with_name(f".{CURRENT}.{name}")
    new.unlink(missing_ok=True)
    new.symlink_to(name)
    new.replace(link)
