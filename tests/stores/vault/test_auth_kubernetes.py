"""``secretstores.hashicorp.vault``: its Kubernetes login, on a real API server and a real OpenBao."""

from pathlib import Path

import pytest

from secretfs.errors import AccessDenied
from tests.support.canary import secret
from tests.support.kube_fixtures import Namespace, kube, namespace
from tests.support.opened import opened
from tests.support.servers.kube_apiserver import token
from tests.support.vault_auth import enable, logins, reading, revoke_tokens, role
from tests.support.vault_fixtures import Folder, kv, openbao_server

__all__ = ["kube", "kv", "namespace", "openbao_server"]


def account(namespace: Namespace, name: str, audience: str = "vault") -> str:
    """Make a service account, and return a token as the kubelet would put it into a pod."""
    path = f"/api/v1/namespaces/{namespace.name}/serviceaccounts"
    namespace.server.call("POST", path, {"metadata": {"name": name}})
    request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": [audience]}}
    return str(namespace.server.call("POST", f"{path}/{name}/token", request)["status"]["token"])


def test_service_accounts(kv: Folder, namespace: Namespace, tmp_path: Path) -> None:
    kv.put("db", {"password": secret()})
    allowed = reading(kv.server, kv.prefix)
    path = enable(kv.server, "kubernetes")
    reviewer = {"token_reviewer_jwt": token("admin"), "disable_local_ca_jwt": True}
    cluster = {"kubernetes_host": namespace.server.address, "kubernetes_ca_cert": namespace.server.ca.read_text()}
    kv.server.call("POST", f"auth/{path}/config", {**cluster, **reviewer})
    bound = {"bound_service_account_names": ["app"], "bound_service_account_namespaces": [namespace.name]}
    kv.server.call("POST", f"auth/{path}/role/app", {**role(allowed), **bound, "audience": "vault"})
    file = tmp_path / "token"
    file.write_text(account(namespace, "app"), encoding="ascii")
    properties = {
        **kv.metadata(),
        "vaultToken": "",
        "vaultAuthMethod": "kubernetes",
        "vaultKubernetesRole": "app",
        "vaultKubernetesMountPath": path,
        "vaultServiceAccountTokenPath": str(file),
    }
    kv.server.forget()
    with opened("secretstores.hashicorp.vault", properties) as store:
        for _ in range(2):
            assert store.fetch("db").values == {"password": secret().encode()}
            revoke_tokens(kv.server, allowed)
        assert logins(kv.server) == 2
        file.write_text(account(namespace, "other"), encoding="ascii")
        with pytest.raises(AccessDenied, match=r"login with kubernetes: .*permission denied \(403\)"):
            store.fetch("db")
