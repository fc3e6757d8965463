"""``secretstores.kubernetes`` inside a pod: the files of a service account, and the store that every pod has."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.kube_fixtures import Namespace, kube, namespace, outside
from tests.support.lacking import require_root
from tests.support.manifests import component
from tests.support.waiting import PATIENCE

__all__ = ["kube", "namespace", "outside"]

ROOT = Path(__file__).parents[3]
SERVICE_ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"  # /var/run is /run


@pytest.fixture
def db(namespace: Namespace) -> Namespace:
    """Give the test a namespace with a secret."""
    namespace.put("db", {"key": secret().encode()})
    return namespace


IN_POD = f"""\
set -eu
mount -t tmpfs tmpfs /run
mkdir -p {SERVICE_ACCOUNT}
cp "$1"/* {SERVICE_ACCOUNT}
shift
exec "$@"
"""


@pytest.fixture
def pod(db: Namespace, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a program where the files of a service account are where they are in a pod, which nobody else sees."""
    require_root("a private mount namespace with a tmpfs on /run takes root")
    db.kubectl("create", "serviceaccount", "shop")
    db.kubectl("create", "role", "shop", "--verb=get,list,watch", "--resource=secrets")
    db.kubectl("create", "rolebinding", "shop", "--role=shop", f"--serviceaccount={db.name}:shop")
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text(db.server.service_account_token(db.name, "shop"))
    (account / "ca.crt").write_bytes(db.server.ca.read_bytes())
    (account / "namespace").write_text(db.name)

    def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        inside = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(db.server.port),
            "PYTHONPATH": str(ROOT),
        }
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", IN_POD, "sh", account, *command],
            env=os.environ | inside | environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    return run


READ = """\
import sys
from secretfs.store import StoreContext
from secretfs.stores.kubernetes.store import Settings, open_store
store = open_store(Settings(*sys.argv[1:]), StoreContext("k8s"))
store.check()
print(*store.names("").secrets, len(store.fetch("db").values["key"]))
"""


def test_a_pod_uses_its_service_account_whatever_else_is_given(
    db: Namespace, pod: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    nobody = str(db.server.kubeconfig("nobody"))
    expected = f"db {len(secret())}\n"
    for arguments in (("", nobody), (db.name,), (db.name, "/nonexistent")):
        done = pod(sys.executable, "-c", READ, *arguments, KUBECONFIG=nobody)
        assert (done.stdout, done.stderr) == (expected, "")


def test_a_pod_has_the_store_kubernetes(
    db: Namespace, pod: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    (tmp_path / "components").mkdir()
    check = [sys.executable, "-m", "secretfs", "check", "--connect", "--resources-path", str(tmp_path / "components")]
    done = pod(*check, PYTHONIOENCODING="utf-8")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["/", "└──", "kubernetes/", "└──", "db/"]
    done = pod(*check, "--disable-builtin-k8s-secret-store")
    assert "no secret store" in done.stderr


def test_a_service_account_without_rights_stops_no_mount(
    db: Namespace, pod: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    db.kubectl("delete", "rolebinding", "shop")
    component(tmp_path / "components", "env", "local.env", {"prefix": "X_"})
    done = pod(sys.executable, "-m", "secretfs", "check", "--connect", "--resources-path", str(tmp_path / "components"))
    assert done.returncode == 1
    assert "warning: the store of every pod: component kubernetes: " in done.stderr
    assert "forbidden (403) (ignoreErrors)" in done.stderr
