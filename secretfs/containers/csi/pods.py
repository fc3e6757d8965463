"""What the API server says of a pod and of its tokens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

from secretfs.containers.csi.api_server import ApiServer
from secretfs.containers.csi.failures import FailedPrecondition, PermissionDenied, Unavailable


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as the kubelet names it."""

    namespace: str
    name: str
    uid: str
    service_account: str = ""

    @property
    def annotations(self) -> dict[str, str]:
        """What is written down of it."""
        return {
            "secretfs/pod": f"{self.namespace}/{self.name}",
            "secretfs/pod-uid": self.uid,
            "secretfs/service-account": self.service_account,
        }

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


def annotations_of(api: ApiServer, pod: Pod) -> Mapping[str, str]:
    """Return the annotations of a pod. Raises `CallFailure` if it cannot be read, or is another one by now."""
    path = f"/api/v1/namespaces/{quote(pod.namespace, safe='')}/pods/{quote(pod.name, safe='')}"
    status, body = api.call("GET", path)
    if status in (401, 403):
        raise FailedPrecondition(
            f"the API server does not let the driver read pod {pod} ({status}): its service account needs the "
            "right to get pods; or give the volume attributes appId and configuration"
        )
    if status != 200:
        raise Unavailable(f"cannot read pod {pod}: the API server answers with status {status}")
    try:
        metadata = json.loads(body)["metadata"]
        uid, annotations = metadata["uid"], metadata.get("annotations") or {}
        known = {str(name): str(text) for name, text in annotations.items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Unavailable(f"cannot read pod {pod}: the answer of the API server is none") from None
    if uid != pod.uid:
        raise Unavailable(f"pod {pod} is another one by now")
    return known


def require_token_of(api: ApiServer, pod: Pod, token: str, audience: str) -> None:
    """Raise `CallFailure` unless a token is good for an audience, and is that of a pod and its service account."""
    spec = {"token": token} | ({"audiences": [audience]} if audience else {})
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
    status, body = api.call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", json.dumps(review).encode())
    if status in (401, 403):
        raise FailedPrecondition(
            f"the API server does not let the driver review tokens ({status}): its service account needs the right "
            "to create tokenreviews"
        )
    if status != 201:
        raise Unavailable(f"cannot review the token of pod {pod}: the API server answers with status {status}")
    try:
        result = json.loads(body)["status"]
        user = result.get("user") or {}
        is_good = result.get("authenticated") is True and (not audience or audience in result.get("audiences", ()))
        name = user.get("username", "")
        uids = (user.get("extra") or {}).get("authentication.kubernetes.io/pod-uid") or ()
    except (ValueError, LookupError, TypeError, AttributeError):
        raise Unavailable(f"cannot review the token of pod {pod}: the answer of the API server is none") from None
    if not is_good or name != f"system:serviceaccount:{pod.namespace}:{pod.service_account}" or pod.uid not in uids:
        raise PermissionDenied(f"a token is not that of pod {pod} with service account {pod.service_account}")
