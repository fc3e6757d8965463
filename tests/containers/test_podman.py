"""Volumes of a real Podman."""

import signal
from collections.abc import Iterator

import pytest

from tests.support.canary import secret
from tests.support.engines import PASSWORD, PATIENTLY, READER, SUBORDINATE, Site

pytestmark = [pytest.mark.mount, pytest.mark.root("only root runs Podman with volumes of root's mount")]

INSIDE = f"/run/secrets/{PASSWORD}"


@pytest.fixture
def orders(site: Site) -> Iterator[Site]:
    """Create a volume for user 1000; in the end it is removed, and nothing is left of it."""
    site.rotate("first")
    site.podman("import", "/srv/image.tar", "localhost/busybox")
    site.podman("volume", "create", "--driver", "secretfs", "-o", "app-id=orders", "-o", "uid=1000", "orders")
    yield site
    assert site.podman("ps", "--all", "--quiet") == ""
    site.podman("volume", "rm", "orders")
    assert site.podman("volume", "ls", "--quiet") == ""
    assert list(site.machine.path("/srv/volumes").iterdir()) == []


def test_a_volume(orders: Site) -> None:
    """`podman run -v` shows the secrets, to the user whom the volume is for; errors are shown (volume-7, volume-8)."""
    volume = ("-v", "orders:/run/secrets:ro")
    locked = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    assert orders.podman_run(*locked, "--user", "1000", *volume, "busybox", "cat", INSIDE) == secret("first")
    command = ("podman", "run", "--rm", "--cgroup-parent", f"/{orders.machine.name}", *volume)
    assert "Permission denied" in orders.machine.refused(*command, "--user", "1001", "busybox", "cat", INSIDE)
    assert "Read-only file system" in orders.machine.refused(*command, "busybox", "touch", INSIDE)
    create = ("podman", "volume", "create", "--driver", "secretfs")
    said = orders.machine.refused(*create, "-o", "appid=orders", "wrong")
    assert "unknown option appid (did you mean app-id?)" in said
    assert orders.podman("volume", "ls", "--quiet").split() == ["orders"]


def test_with_remapped_users(orders: Site) -> None:
    """Podman maps users as well; `mode` lets all of them read (volume-12)."""
    for name, options in {"mapped": f"uid={SUBORDINATE + 1000}", "open": "mode=0444"}.items():
        orders.podman("volume", "create", "--driver", "secretfs", "-o", options, name)
        command = ("--uidmap", f"0:{SUBORDINATE}:65536", "--user", "1000", "-v", f"{name}:/run/secrets:ro,noexec")
        assert orders.podman_run(*command, "busybox", "cat", INSIDE) == secret("first")
        orders.podman("volume", "rm", name)


def test_nothing_stops_readers(orders: Site) -> None:
    """Podman's containers read on as well; there is no engine that could be killed (volume-10)."""
    for name in ("one", "two"):
        orders.podman(
            "run", "--detach", "--name", name, "--cgroup-parent", f"/{orders.machine.name}",
            "--user", "1000", "--read-only", "--cap-drop", "ALL",
            "-v", "orders:/run/secrets:ro", "-v", "/srv/out:/out", "busybox", "sh", "-c", READER, name, INSIDE,
        )  # fmt: skip
    orders.reads_on("one", "two")
    for version, how in enumerate((signal.SIGKILL, signal.SIGTERM)):
        orders.end_worker(how)
        orders.rotate(f"after {version}")
    orders.machine.kill(orders.plugin)
    orders.start_plugin()
    assert "is mounted by 2 others" in orders.refused_removal("orders")
    orders.reads_on("one", "two")
    orders.podman("stop", PATIENTLY, "one", "two")
    for name in ("one", "two"):
        _, failed = orders.report(name)
        assert failed == 0
    orders.podman("rm", "one", "two")
