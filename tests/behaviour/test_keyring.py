"""The keyring of a desktop as a store."""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import secret
from tests.support.command import ROOT, environment
from tests.support.mounted import mounted
from tests.support.secret_service import SecretService, secret_service
from tests.support.shell import errno_of
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.mount

PAGE = (ROOT / "docs/stores/keyring.md").read_text(encoding="utf-8")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[SecretService]:
    with tempfile.TemporaryDirectory(prefix="kr-") as directory, secret_service(Path(directory)) as service:
        monkeypatch.setenv("DBUS_SESSION_BUS_ADDRESS", service.address)
        yield service


def test_the_manifest_of_the_page(service: SecretService, tmp_path: Path) -> None:
    """keyring-1: What `secret-tool` stores as in [stores/keyring.md](stores/keyring.md) is the file that it names."""
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (script,) = (
        text for text in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE) if "secret-tool" in text
    )
    (named,) = re.findall(r"that is the file `([^`]*)`", PAGE)
    (tmp_path / "m").mkdir()
    (tmp_path / "m/keyring.yaml").write_text(manifest)
    subprocess.run(
        ["bash", "-eu", "-c", script], env=environment({"PASSWORD": secret("shop")}), check=True, timeout=PATIENCE
    )
    with mounted(tmp_path / "m", env={"DBUS_SESSION_BUS_ADDRESS": service.address}) as mount:
        assert (mount.path / named).read_text() == secret("shop")


def test_a_keyring_that_is_locked(service: SecretService, tmp_path: Path) -> None:
    """keyring-2: A keyring that is locked while it is served is EACCES; nobody is asked to unlock it."""
    (manifest,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "m").mkdir()
    text = manifest.replace("name: keyring\n", "name: keyring\n  annotations: {secretfs/ttl: 500ms}\n")
    (tmp_path / "m/keyring.yaml").write_text(text)
    service.put("shop", secret("shop").encode(), service="shop", username="app")
    with mounted(
        tmp_path / "m", env={"DBUS_SESSION_BUS_ADDRESS": service.address}, expect_log=["default keyring: it is locked"]
    ) as mount:
        path = mount.path / "keyring/shop/app"
        assert path.read_text() == secret("shop")
        service.lock()
        wait_until(lambda: errno_of(path.read_text) == "EACCES")
