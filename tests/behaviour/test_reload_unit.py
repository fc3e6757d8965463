"""The unit ``secretfs-reload@`` in a booted systemd."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.canary import leaked, secret
from tests.support.manifests import component
from tests.support.systemd import System
from tests.support.waiting import wait_until

pytestmark = pytest.mark.mount

MOUNT = "secretfs@srv-secrets.service"
WATCH = "secretfs-reload@shop-app.service"
SHOP = "shop-app.service"


@pytest.fixture
def service(system: System) -> Iterator[System]:
    """Mount at /srv/secrets, and run a service that counts its starts and reloads in /run/shop."""
    component(
        system.path("/etc/secretfs/components"), "file", "local.file", {"secretsFile": "/etc/secretfs/secrets"},
        annotations={"secretfs/ttl": "200ms"},
    )  # fmt: skip
    rotate(system, "one")
    system.path("/etc/secretfs/srv-secrets.conf").write_text(
        "SECRETFS_OPTIONS=--resources-path=/etc/secretfs/components --uid=4711\n", encoding="utf-8"
    )
    system.path("/etc/secretfs/reload").mkdir()
    system.path("/srv/secrets").mkdir(exist_ok=True)
    system.path("/run/shop").mkdir()
    system.systemctl("start", MOUNT)
    yield system
    system.systemctl("stop", WATCH, SHOP, MOUNT)
    system.output("rm", "-r", "/etc/secretfs", "/run/shop")
    assert not leaked(system.journal(WATCH))


def rotate(system: System, value: str) -> None:
    new = system.path("/etc/secretfs/secrets.new")
    new.write_text(f'{{"password": "{secret(value)}"}}', encoding="utf-8")
    new.replace(system.path("/etc/secretfs/secrets"))


def shop(system: System, *lines: str) -> None:
    unit = ["[Service]", "ExecStart=/bin/sh -c 'echo start >> /run/shop/events; exec sleep infinity'", *lines]
    system.path(f"/run/systemd/system/{SHOP}").write_text("\n".join(unit) + "\n", encoding="utf-8")
    system.systemctl("daemon-reload")
    system.systemctl("start", SHOP)
    happened(system, "start")


def configure(system: System, **variables: str) -> None:
    variables = {"SECRETFS_PATHS": "/srv/secrets/file/password", "SECRETFS_OPTIONS": "--on-change-delay=0s"} | variables
    path = system.path("/etc/secretfs/reload/shop-app.conf")
    path.write_text("".join(f"{name}={value}\n" for name, value in variables.items()), encoding="utf-8")


def happened(system: System, *events: str) -> None:
    """Wait until the service has seen so many events; they are these."""
    seen: Path = system.path("/run/shop/events")
    wait_until(lambda: seen.exists() and len(seen.read_text("ascii").split()) >= len(events))
    assert seen.read_text("ascii").split() == list(events)


def test_a_service_is_reloaded(service: System) -> None:
    """systemd-18: `secretfs-reload@NAME` reloads NAME when its secrets change, also while the mount is replaced."""
    shop(service, "ExecReload=/bin/sh -c 'echo reload >> /run/shop/events'")
    configure(service)
    service.systemctl("start", WATCH)
    rotate(service, "two")
    happened(service, "start", "reload")
    service.systemctl("restart", MOUNT)
    rotate(service, "three")
    happened(service, "start", "reload", "reload")
    service.systemctl("stop", MOUNT)
    service.systemctl("start", MOUNT)
    rotate(service, "four")
    happened(service, "start", "reload", "reload", "reload")
    assert service.show(WATCH, "NRestarts") == "0"


@pytest.mark.parametrize("verb", ["", "try-restart"])
def test_a_service_is_restarted(service: System, verb: str) -> None:
    """systemd-19: A service that cannot be reloaded is restarted, as is any with `SYSTEMCTL_VERB=try-restart`."""
    shop(service, *(["ExecReload=/bin/false"] if verb else []))
    configure(service, **({"SYSTEMCTL_VERB": verb} if verb else {}))
    service.systemctl("start", WATCH)
    rotate(service, "two")
    happened(service, "start", "start")
