"""What the driver reads of a pod, from a real API server with a service account that may do no more than that."""

import json
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from secretfs.containers.csi.api_server import ApiServer
from secretfs.containers.csi.attributes import document, read_volume, reads_pod
from secretfs.containers.csi.failures import FailedPrecondition, Unavailable
from secretfs.containers.csi.messages import PublishRequest
from secretfs.containers.csi.pods import Pod, annotations_of
from tests.support.canary import secret
from tests.support.kube_fixtures import Namespace, kube, namespace
from tests.support.servers.keep_alive import KeepAlive
from tests.support.servers.ports import free_ports

__all__ = ["kube", "namespace"]


@pytest.fixture
def account(namespace: Namespace, tmp_path: Path) -> Path:
    """Give the files that a pod of the driver has, with the right to get pods in one namespace."""
    namespace.kubectl("create", "serviceaccount", "driver")
    namespace.kubectl("create", "role", "driver", "--verb=get", "--resource=pods")
    namespace.kubectl("create", "rolebinding", "driver", "--role=driver", f"--serviceaccount={namespace.name}:driver")
    (tmp_path / "token").write_text(namespace.server.service_account_token(namespace.name, "driver") + "\n")
    (tmp_path / "ca.crt").write_bytes(namespace.server.ca.read_bytes())
    return tmp_path


@pytest.fixture
def api(namespace: Namespace, account: Path) -> ApiServer:
    return ApiServer("127.0.0.1", namespace.server.port, account)


@pytest.fixture
def pod(namespace: Namespace) -> Pod:
    """Give a pod with annotations, as the kubelet would name it. No node runs it."""
    annotations = {"dapr.io/app-id": "orders", "dapr.io/config": "strict"}
    container = {"name": "c", "image": "localhost/busybox:1"}
    body = {"metadata": {"name": "orders-0", "annotations": annotations}, "spec": {"containers": [container]}}
    made = namespace.server.call("POST", f"/api/v1/namespaces/{namespace.name}/pods", body)
    return Pod(namespace.name, "orders-0", made["metadata"]["uid"], "account")


def spec_of(pod: Pod, api: ApiServer, attributes: dict[str, str]) -> dict[str, str]:
    context = {
        "csi.storage.k8s.io/pod.name": pod.name,
        "csi.storage.k8s.io/pod.namespace": pod.namespace,
        "csi.storage.k8s.io/pod.uid": pod.uid,
        "csi.storage.k8s.io/serviceAccount.name": pod.service_account,
    }
    volume = read_volume(PublishRequest("v", "/target", has_capability=True, context=context | attributes))
    annotations = annotations_of(api, pod) if reads_pod(volume) else {}
    spec: dict[str, str] = json.loads(document(volume, annotations))["spec"]
    return {name: spec.get(name, "") for name in ("appId", "configuration")}


def test_annotations_of_the_pod(api: ApiServer, pod: Pod) -> None:
    """csi-6: App id and configuration come from the attributes, else from Dapr's annotations, else from the account."""
    assert spec_of(pod, api, {}) == {"appId": "orders", "configuration": "strict"}
    assert spec_of(pod, api, {"appId": "mine"}) == {"appId": "mine", "configuration": "strict"}
    assert spec_of(pod, api, {"configuration": "wide"}) == {"appId": "orders", "configuration": "wide"}
    (port,) = free_ports(1)
    nowhere = ApiServer("127.0.0.1", port)
    assert spec_of(pod, nowhere, {"appId": "a", "configuration": "b"}) == {"appId": "a", "configuration": "b"}


def test_a_pod_without_annotations(api: ApiServer, namespace: Namespace, pod: Pod) -> None:
    """Its service account is the app id (csi-6)."""
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod.name}"
    plain = namespace.server.call("GET", path)
    del plain["metadata"]["annotations"]
    namespace.server.call("PUT", path, plain)
    assert spec_of(pod, api, {}) == {"appId": "account", "configuration": ""}


def test_another_pod_of_that_name(api: ApiServer, pod: Pod) -> None:
    """A pod that has been made anew under the same name is another one: nothing of it is believed (csi-6)."""
    with pytest.raises(Unavailable, match="is another one by now"):
        annotations_of(api, Pod(pod.namespace, pod.name, "another"))
    with pytest.raises(Unavailable, match="the API server answers with status 404"):
        annotations_of(api, Pod(pod.namespace, "nobody", pod.uid))


def test_a_pod_that_cannot_be_read(api: ApiServer, pod: Pod, account: Path) -> None:
    """Without an answer a volume is not published as somebody else's: the kubelet asks again (csi-6)."""
    with pytest.raises(FailedPrecondition, match=r"needs the right to get pods; or give the volume attributes"):
        annotations_of(api, Pod("default", pod.name, pod.uid))
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match=r"cannot ask the API server at .*: Connection refused"):
        annotations_of(ApiServer("127.0.0.1", port, account), pod)
    (account / "token").unlink()
    with pytest.raises(Unavailable, match=r"cannot ask the API server at .*: No such file or directory"):
        annotations_of(api, pod)


def test_a_cluster_whose_certificates_say_little(tmp_path: Path) -> None:
    """As in Go, certificates may lack what Python 3.13 demands by default, as those of many clusters do (csi-6)."""
    key = rsa.generate_private_key(65537, 2048)
    authority = signed("cluster", key, x509.BasicConstraints(ca=True, path_length=None))
    leaf = signed("api", key, x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]))
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    served = tmp_path / "served.pem"
    served.write_bytes(key.private_bytes(*form) + leaf.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "ca.crt").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "token").write_text(secret("token"))
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(served)
    with KeepAlive(lambda _: (200, b"{}"), tls) as server:
        assert ApiServer("127.0.0.1", server.port, tmp_path).call("GET", "/version") == (200, b"{}")


def signed(name: str, key: rsa.RSAPrivateKey, extension: x509.ExtensionType) -> x509.Certificate:
    """Issue a certificate, as an authority that is called "cluster", with one extension, which is not critical."""
    subject, issuer = (x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)]) for each in (name, "cluster"))
    now, day = datetime.now(UTC), timedelta(days=1)
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - day).not_valid_after(now + day)
    return builder.add_extension(extension, critical=False).sign(key, hashes.SHA256())


def test_where_the_api_server_is() -> None:
    """Outside a cluster there is none (csi-6)."""
    assert ApiServer.of_this_pod({}) is None
    assert ApiServer.of_this_pod({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_PORT": "443"})
