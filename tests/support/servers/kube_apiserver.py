"""A real Kubernetes API server for tests, with its etcd. ``scripts/build-kubernetes`` builds it.

    with kube_apiserver(tmp_path) as server:
        server.create_namespace("shop")
        server.put("shop", "db", {"password": secret().encode()})
        server.kubectl("delete", "secret", "db", "--namespace=shop")

Users have fixed rights (`USERS`) and are chosen by their kubeconfig. The audit log tells what they asked.
"""

import base64
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme
import urllib3
import yaml
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from tests.support.canary import secret
from tests.support.lacking import cannot_test
from tests.support.servers.ports import free_ports
from tests.support.waiting import PATIENCE

USERS = {
    "admin": (),
    "reader": ("get", "list", "watch"),
    "getter": ("get",),
    "lister": ("get", "list"),
    "nobody": (),
}
"""User to verbs on secrets, in all namespaces. An admin may do everything."""

KUBECTL = Path(sys.executable).with_name("kubectl")
_AUDIT = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [ResponseStarted, ResponseComplete, Panic]
rules:
  - level: Metadata
    resources: [{group: "", resources: [secrets]}]
  - level: None
"""


BINARIES = Path(
    os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "secretfs-tests", "kubernetes-bookworm-1"
).absolute()


def require_binaries() -> None:
    """Go on where the server was built."""
    if not (BINARIES / "kube-apiserver").exists():
        cannot_test(f"{BINARIES} does not exist: run scripts/build-kubernetes")


@dataclass
class KubeApiserver:
    """The two processes, on ports that they keep."""

    directory: Path
    _ports: list[int] = field(default_factory=lambda: free_ports(3))
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _client: urllib3.PoolManager | None = None
    _forgotten: int = 0

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        return self._ports[2]

    @property
    def address(self) -> str:
        """Its URL."""
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """What signed its certificate."""
        return self.directory / "certs" / "apiserver.crt"

    @property
    def log(self) -> str:
        """The end of what both wrote."""
        texts = ((self.directory / f"{name}.log").read_text(errors="replace") for name in ("etcd", "kube-apiserver"))
        return "\n".join(text[-2000:] for text in texts)

    # --- life and death ---

    def start(self) -> None:
        """Start both, and wait until they serve."""
        end = time.monotonic() + PATIENCE
        if "etcd" not in self._processes:
            self._prepare()
            self._start("etcd", self._etcd())
        self._start("kube-apiserver", self._apiserver())
        while not self._ready():
            for process in self._processes.values():
                assert process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def kill(self) -> None:
        """End the API server at once; etcd goes on."""
        self._end("kube-apiserver")

    def restart(self) -> None:
        """Start it again, with all that it knew."""
        self.start()

    def stop(self) -> None:
        """End both at once."""
        for name in list(self._processes):
            self._end(name)
        if self._client:
            self._client.clear()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it accept connections and answer nothing for a while."""
        process = self._processes["kube-apiserver"]
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    # --- what it holds ---

    def call(self, method: str, path: str, body: Any = None, *, ok: tuple[int, ...] = (200, 201)) -> dict[str, Any]:
        """Send one request as admin."""
        assert self._client
        answer = self._client.request(
            method,
            self.address + path,
            body=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {token('admin')}", "Content-Type": "application/json"},
        )
        assert answer.status in ok, f"{method} {path}: {answer.status}\n{self.log}"
        return dict(json.loads(answer.data))

    def create_namespace(self, name: str) -> None:
        """Make a namespace."""
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": name}})

    def put(self, namespace: str, name: str, values: Mapping[str, bytes], **more: Any) -> str:
        """Write a secret, or a new version of it; returns its version. ``more`` are ``type``, ``labels``."""
        path = f"/api/v1/namespaces/{namespace}/secrets"
        document = {
            "metadata": {"name": name, "labels": more.pop("labels", {})},
            "data": {key: base64.b64encode(value).decode() for key, value in values.items()},
            **more,
        }
        answer = self.call("POST", path, document, ok=(201, 409))
        if answer["kind"] == "Status":
            answer = self.call("PUT", f"{path}/{name}", document)
        return str(answer["metadata"]["resourceVersion"])

    def delete(self, namespace: str, name: str) -> None:
        """Delete a secret."""
        self.call("DELETE", f"/api/v1/namespaces/{namespace}/secrets/{name}")

    def compact(self) -> None:
        """Make etcd forget how it came to what it holds now."""
        etcdctl: list[str | Path] = [BINARIES / "etcdctl", f"--endpoints=http://127.0.0.1:{self._ports[0]}"]
        environment = {"ETCDCTL_API": "3", "PATH": os.defpath}
        status = subprocess.run([*etcdctl, "endpoint", "status", "-w", "json"], env=environment, check=True, stdout=-1)
        revision = json.loads(status.stdout)[0]["Status"]["header"]["revision"]
        subprocess.run([*etcdctl, "compact", str(revision)], env=environment, check=True, stdout=subprocess.DEVNULL)

    def kubectl(self, *arguments: str, user: str = "admin", stdin: bytes = b"") -> str:
        """Run the real kubectl."""
        done = subprocess.run(
            [KUBECTL, f"--kubeconfig={self.kubeconfig(user)}", *arguments],
            env={"HOME": str(self.directory / "home"), "PATH": os.defpath},
            input=stdin,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    # --- how to get in ---

    def kubeconfig(self, user: str, credentials: Mapping[str, Any] | None = None, *, port: int | None = None) -> Path:
        """Write a kubeconfig: for one of `USERS`, or with other ``credentials``; by way of another ``port``."""
        cluster = {"server": f"https://127.0.0.1:{port or self.port}", "certificate-authority": str(self.ca)}
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": user, "user": dict(credentials or {"token": token(user)})}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        }
        path = self.directory / f"{user}-{port or self.port}.kubeconfig"
        path.write_text(yaml.safe_dump(document), encoding="utf-8")
        return path

    def service_account_token(self, namespace: str, name: str, *, expires_in: float = 3600) -> str:
        """Sign a token as the server does, with any expiry; it signs none for less than ten minutes."""
        account = self.call("GET", f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}")
        now = int(time.time())
        claims = {
            "iss": "https://kubernetes.default.svc",
            "aud": ["https://kubernetes.default.svc"],
            "sub": f"system:serviceaccount:{namespace}:{name}",
            "iat": now - 3600,
            "nbf": now - 3600,
            "exp": int(now + expires_in),
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {"name": name, "uid": account["metadata"]["uid"]},
            },
        }
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "typ": "JWT"}, claims))
        key = serialization.load_pem_private_key((self.directory / "sa.key").read_bytes(), None)
        assert isinstance(key, rsa.RSAPrivateKey)
        return f"{signed}.{_base64url(key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def client_certificate(self, user: str, group: str) -> tuple[bytes, bytes]:
        """Issue a certificate that proves to be ``user``; returns it and its key as PEM."""
        leaf = self._authority.issue_cert("test.example", common_name=user, organization_name=group)
        return leaf.cert_chain_pems[0].bytes(), leaf.private_key_pem.bytes()

    # --- what it was asked ---

    def forget(self) -> None:
        """Let `requests` start from here."""
        self._forgotten = self._audit_log.stat().st_size

    def requests(self, namespace: str = "") -> list[str]:
        """List what all but the admin have asked since `forget`, by verb and name: ``get db``, ``list``, ``watch``."""
        with self._audit_log.open("rb") as log:
            log.seek(self._forgotten)
            # One that is being written is of a request under way.
            events = [json.loads(line) for line in log if line.endswith(b"\n")]
        return [
            " ".join(filter(None, (event["verb"], event["objectRef"].get("name"))))
            for event in events
            if event["user"]["username"] != "admin" and event["objectRef"].get("namespace", "") == namespace
        ]

    @property
    def _audit_log(self) -> Path:
        return self.directory / "audit.log"

    def _prepare(self) -> None:
        for name in ("home", "certs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        self._authority = trustme.CA()
        self._authority.cert_pem.write_to_path(self.directory / "client-ca.pem")
        key = rsa.generate_private_key(65537, 2048)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        (self.directory / "sa.key").write_bytes(pem)
        (self.directory / "audit.yaml").write_text(_AUDIT)
        groups = {"admin": ',"system:masters"'}
        lines = (f"{token(user)},{user},{user}{groups.get(user, '')}\n" for user in USERS)
        (self.directory / "tokens.csv").write_text("".join(lines))

    def _start(self, name: str, options: list[str]) -> None:
        environment = {"HOME": str(self.directory / "home"), "PATH": os.defpath}
        with (self.directory / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [BINARIES / name, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def _etcd(self) -> list[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._ports[:2])
        return [
            f"--data-dir={self.directory / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]

    def _apiserver(self) -> list[str]:
        key = self.directory / "sa.key"
        return [
            f"--etcd-servers=http://127.0.0.1:{self._ports[0]}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={self.directory / 'certs'}",
            "--service-cluster-ip-range=10.0.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--api-audiences=https://kubernetes.default.svc",
            f"--token-auth-file={self.directory / 'tokens.csv'}",
            f"--client-ca-file={self.directory / 'client-ca.pem'}",
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--allow-privileged=true",
            f"--audit-policy-file={self.directory / 'audit.yaml'}",
            f"--audit-log-path={self._audit_log}",
        ]

    def _ready(self) -> bool:
        try:
            if self._client is None:
                context = ssl.create_default_context(cafile=self.ca)
                context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
                self._client = urllib3.PoolManager(ssl_context=context, retries=False, timeout=PATIENCE)
            headers = {"Authorization": f"Bearer {token('admin')}"}
            if self._client.request("GET", f"{self.address}/readyz", headers=headers).status != 200:
                return False
        except (OSError, urllib3.exceptions.HTTPError):
            return False
        self._grant()
        return True

    def _grant(self) -> None:
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        for user, verbs in USERS.items():
            if not verbs:
                continue
            rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": list(verbs)}
            self.call("POST", f"{rbac}/clusterroles", {"metadata": {"name": user}, "rules": [rule]}, ok=(201, 409))
            binding = {
                "metadata": {"name": user},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
            }
            self.call("POST", f"{rbac}/clusterrolebindings", binding, ok=(201, 409))


def token(user: str) -> str:
    """Return the token by which the server knows a user."""
    return secret(f"{user}-token")


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@contextmanager
def kube_apiserver(directory: Path) -> Iterator[KubeApiserver]:
    """Run a server with its files in ``directory``; it is killed at the end, whatever happens."""
    require_binaries()
    server = KubeApiserver(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
