"""What a volume shows: the attributes that a pod gives it, and what the kubelet says of the pod, as fields of an App.

Neither is a security boundary: whoever may write a pod writes its attributes, its annotations and its name.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from secretfs.containers.csi.failures import FailedPrecondition, InvalidArgument
from secretfs.containers.csi.identities import read_tokens
from secretfs.containers.csi.messages import PublishRequest
from secretfs.containers.csi.pods import Pod
from secretfs.dapr.app import API_VERSION, KIND, is_app_name, parse_app_id
from secretfs.permissions import LARGEST_ID, parse_mode
from secretfs.settings import nearest

KUBELET: Final = "csi.storage.k8s.io/"
"""What the names of attributes begin with that the kubelet adds (``podInfoOnMount``)."""
TOKENS: Final = f"{KUBELET}serviceAccount.tokens"
"""The tokens of the pod: among the attributes, or among the secrets where the kubelet knows better."""
MARK: Final = {"secretfs/created-by": "csi"}
"""The labels of documents that are volumes of this driver."""
APP_ID_ANNOTATION: Final = "dapr.io/app-id"
CONFIGURATION_ANNOTATION: Final = "dapr.io/config"

OBJECTS: Final = "components.dapr.io"
"""The value of the attribute ``resources`` for Dapr's objects in the namespace of the pod."""

_ATTRIBUTES: Final = "secretfs/attributes"
"""The annotation of a document with the attributes that the volume was published with."""
_FLAGS: Final = ("ro", "nosuid", "nodev", "noexec")
_LABELS: Final = ("context", "fscontext", "defcontext", "rootcontext")
"""The options of mount(8) with a label of SELinux. The kubelet passes the first one on."""
_LONGEST_NAME: Final = 200
"""Bytes of the id of a volume, which becomes the name of a directory and of a file."""


def _id(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) > LARGEST_ID:
        raise ValueError(f"{text!r} is not an id such as 1000; images differ in the names of users and groups")
    return int(text)


def _set(text: str) -> str:
    if not is_app_name(text):
        raise ValueError(
            f"{text!r} cannot be the name of a directory of components: it has a slash, or begins with a dot"
        )
    return text


_PARSERS: Final[Mapping[str, Callable[[str], object]]] = {
    "appId": parse_app_id, "configuration": str, "owner": _id, "group": _id, "mode": parse_mode,
    "resources": _set,
}  # fmt: skip
"""The attributes that a pod may give, which are fields of an App. A set of components is in its own namespace."""


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume as it is asked for."""

    name: str
    """Its id, which is the name of the app."""
    attributes: Mapping[str, str]
    """Those that the pod gives, checked."""
    pod: Pod | None
    """The pod that the kubelet names; None if it names none."""
    mount_group: str = ""
    tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Those of the pod, by audience."""

    @property
    def wants_objects(self) -> bool:
        """Whether it shows Dapr's objects in the namespace of its pod."""
        return self.attributes.get("resources") == OBJECTS

    @property
    def namespace(self) -> str:
        """The namespace of its pod. Raises `FailedPrecondition` if the kubelet names none."""
        if self.pod is None:
            raise FailedPrecondition(
                "the volume attribute resources names something in the namespace of the pod, and the kubelet does not "
                "say which that is: podInfoOnMount: true is missing in the CSIDriver object"
            )
        return self.pod.namespace

    @property
    def request(self) -> str:
        """Return what has to be the same when the volume is published again, as text."""
        return json.dumps({**self.attributes, "fsGroup": self.mount_group}, sort_keys=True)


def read_volume(request: PublishRequest) -> Volume:
    """Read what a volume is to show. Raises `InvalidArgument` with what would be right."""
    if not is_app_name(request.volume_id) or len(request.volume_id.encode()) > _LONGEST_NAME:
        raise InvalidArgument(f"volume_id {request.volume_id!r} cannot be the name of a directory")
    attributes = {}
    for name, text in request.context.items():
        if "/" in name:  # what Kubernetes adds
            continue
        if name not in _PARSERS:
            hint = nearest(name, _PARSERS) or f" (there are {', '.join(_PARSERS)})"
            raise InvalidArgument(f"unknown volume attribute {name}{hint}")
        if text:
            _parse(f"volume attribute {name}", _PARSERS[name], text)
            attributes[name] = text
    for flag in request.mount_flags:
        _require_flag(flag)
    if request.mount_group:
        _parse("volume_mount_group", _id, request.mount_group)
    given = request.secrets.get(TOKENS) or request.context.get(TOKENS, "")
    return Volume(request.volume_id, attributes, _pod(request.context), request.mount_group, read_tokens(given))


def document(volume: Volume, annotations: Mapping[str, str], tokens: Path | None = None) -> bytes:
    """Return the App document of a volume. ``annotations`` are those of its pod. Raises `CallFailure`.

    ``tokens`` is the directory with the tokens of the pod.
    """
    spec: dict[str, object] = {"appId": _app_id(volume, annotations)}
    configuration = volume.attributes.get("configuration") or annotations.get(CONFIGURATION_ANNOTATION)
    if configuration:
        spec["configuration"] = configuration
    if volume.wants_objects:
        spec["objects"] = volume.namespace
    elif name := volume.attributes.get("resources"):
        spec["resources"] = f"{volume.namespace}/{name}"
    group = volume.attributes.get("group") or volume.mount_group
    # As the files of a Secret: for the group of the pod if it has one, else for whoever is in the pod.
    spec |= {"owner": volume.attributes.get("owner", "0"), "mode": "0440" if group else "0444"}
    spec |= {"group": group} if group else {}
    spec |= {"mode": volume.attributes["mode"]} if "mode" in volume.attributes else {}
    spec |= {"tokens": str(tokens)} if tokens else {}
    notes = {_ATTRIBUTES: volume.request} | (volume.pod.annotations if volume.pod else {})
    metadata = {"name": volume.name, "labels": MARK, "annotations": notes}
    return json.dumps({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}).encode()


def request_of(document: Mapping[str, Any]) -> str | None:
    """Return what `Volume.request` was when a document was written; None if the driver did not write it."""
    try:
        metadata = document["metadata"]
        return str(metadata["annotations"][_ATTRIBUTES]) if metadata["labels"] == MARK else None
    except (LookupError, TypeError):
        return None


def tokens_of(document: Mapping[str, Any]) -> Path | None:
    """Return where the App of a document finds its tokens, if it has any."""
    tokens = document["spec"].get("tokens", "")
    return Path(tokens) if tokens else None


def objects_of(document: Mapping[str, Any]) -> str:
    """Return the namespace whose objects the App of a document shows; empty if it shows none."""
    return str(document["spec"].get("objects", ""))


def reads_pod(volume: Volume) -> bool:
    """Whether what the volume shows depends on annotations of its pod."""
    return volume.pod is not None and not {"appId", "configuration"} <= volume.attributes.keys()


def _app_id(volume: Volume, annotations: Mapping[str, str]) -> str:
    account = volume.pod.service_account if volume.pod else ""
    app_id = volume.attributes.get("appId") or annotations.get(APP_ID_ANNOTATION) or account
    if not app_id:
        raise FailedPrecondition(
            "whose volume is it? Give the volume attribute appId, or let the kubelet say which pod it is for: "
            "podInfoOnMount: true in the CSIDriver object"
        )
    _parse(f"annotation {APP_ID_ANNOTATION}", parse_app_id, app_id)
    return app_id


def _pod(context: Mapping[str, str]) -> Pod | None:
    """Return the pod that the kubelet names, if it does."""
    names = ("pod.namespace", "pod.name", "pod.uid", "serviceAccount.name")
    namespace, name, uid, account = (context.get(f"{KUBELET}{each}", "") for each in names)
    return Pod(namespace, name, uid, account) if namespace and name and uid else None


def _require_flag(flag: str) -> None:
    """Raise `InvalidArgument` unless an option of mount(8) says what holds for each volume anyway."""
    name, _, label = flag.partition("=")
    if name in _LABELS and label:
        raise InvalidArgument(
            f"the mount flag {name} asks for an SELinux label of its own, which is not possible: the volumes of a node "
            "are parts of one file system, and have its label; leave seLinuxMount: true out of the CSIDriver object"
        )
    if flag not in _FLAGS:  # which may have a credential
        raise InvalidArgument(f"there is a mount flag that a volume cannot have; it has {', '.join(_FLAGS)}")


def _parse(what: str, parse: Callable[[str], object], text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        raise InvalidArgument(f"{what}: {error}") from None
