"""A namespace of a real API server as the node of a driver sees it: service accounts, pods, and tokens of pods."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization

from tests.support.kube_fixtures import Namespace
from tests.support.mounted import unmount
from tests.support.shell import output

ISSUER = "https://kubernetes.default.svc"
"""Of the tokens of `tests.support.servers.kube_apiserver`."""


class Cluster:
    """A namespace with the service accounts ``driver``, ``orders`` and ``billing``. The driver may review tokens."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace, self.server = namespace, namespace.server
        for account in ("driver", "orders", "billing"):
            namespace.kubectl("create", "serviceaccount", account)
        subject = f"--serviceaccount={namespace.name}:driver"
        role_name = f"driver-{namespace.name}"
        namespace.kubectl("create", "clusterrole", role_name, "--verb=create", "--resource=tokenreviews")
        namespace.kubectl("create", "clusterrolebinding", role_name, f"--clusterrole={role_name}", subject)

    @property
    def key(self) -> str:
        """Return the key that checks tokens, as PEM."""
        key = serialization.load_pem_private_key((self.server.directory / "sa.key").read_bytes(), None).public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return key.public_bytes(serialization.Encoding.PEM, form).decode()

    @property
    def environment(self) -> dict[str, str]:
        """Return the variables by which a pod finds the API server."""
        return {"KUBERNETES_SERVICE_HOST": "127.0.0.1", "KUBERNETES_SERVICE_PORT": str(self.server.port)}

    def subject(self, account: str) -> str:
        """Return whose the tokens of a service account are."""
        return f"system:serviceaccount:{self.namespace.name}:{account}"

    def pod(self, name: str, account: str) -> dict[str, str]:
        """Make a pod; returns what the kubelet says of it."""
        spec = {"serviceAccountName": account, "containers": [{"name": "c", "image": "localhost/busybox:1"}]}
        path = f"/api/v1/namespaces/{self.namespace.name}/pods"
        made = self.server.call("POST", path, {"metadata": {"name": name}, "spec": spec})
        return {
            "csi.storage.k8s.io/pod.name": name,
            "csi.storage.k8s.io/pod.namespace": self.namespace.name,
            "csi.storage.k8s.io/pod.uid": made["metadata"]["uid"],
            "csi.storage.k8s.io/serviceAccount.name": account,
        }

    def token(self, pod: Mapping[str, str], *audiences: str, seconds: int = 3600) -> str:
        """Return a token of a pod, as the kubelet requests it."""
        reference = {
            "kind": "Pod", "apiVersion": "v1", "name": pod["csi.storage.k8s.io/pod.name"],
            "uid": pod["csi.storage.k8s.io/pod.uid"],
        }  # fmt: skip
        account = pod["csi.storage.k8s.io/serviceAccount.name"]
        path = f"/api/v1/namespaces/{self.namespace.name}/serviceaccounts/{account}/token"
        spec: dict[str, Any] = {
            "audiences": list(audiences), "expirationSeconds": seconds, "boundObjectRef": reference,
        }  # fmt: skip
        return str(self.server.call("POST", path, {"spec": spec})["status"]["token"])

    def account(self, directory: Path) -> Path:
        """Write the files that a pod of the driver has."""
        directory.mkdir()
        (directory / "token").write_text(self.server.service_account_token(self.namespace.name, "driver"), "ascii")
        (directory / "ca.crt").write_bytes(self.server.ca.read_bytes())
        return directory


class Federation:
    """What a cloud trusts: a container of the tokens of one service account of the cluster for one audience."""

    def __init__(self, cluster: Cluster, audience: str, account: str) -> None:
        self._key, self._audience, self._subject = cluster.key, audience, cluster.subject(account)
        self.taken: list[str] = []
        """Those that were in it, in the order in which it was asked."""

    def __contains__(self, token: object) -> bool:
        try:
            claims = jwt.decode(str(token), self._key, ["RS256"], audience=self._audience, issuer=ISSUER)
        except jwt.PyJWTError:
            return False
        if claims["sub"] != self._subject:
            return False
        self.taken.append(str(token))
        return True


@contextlib.contextmanager
def in_memory(directory: Path) -> Iterator[Path]:
    """Give a directory that is a tmpfs."""
    directory.mkdir()
    output("mount", "-t", "tmpfs", "none", directory)
    try:
        yield directory
    finally:
        unmount(directory)


def passed_on(token: str, audience: str) -> dict[str, str]:
    """Return the attribute by which the kubelet passes a token on."""
    tokens = {audience: {"token": token, "expirationTimestamp": "2030-01-01T00:00:00Z"}}
    return {"csi.storage.k8s.io/serviceAccount.tokens": json.dumps(tokens)}
