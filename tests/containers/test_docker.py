"""Volumes of a real dockerd."""

import json
import signal
from collections.abc import Iterator

import pytest

from tests.support.canary import secret
from tests.support.engines import MOUNTPOINT, PASSWORD, PATIENTLY, READER, SUBORDINATE, Site
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.root("only root runs dockerd")]

INSIDE = f"/run/secrets/{PASSWORD}"


@pytest.fixture(scope="module")
def docker(site: Site) -> Iterator[Site]:
    """Start dockerd, with an image."""
    site.start_dockerd()
    site.docker("import", "/srv/image.tar", "busybox")
    yield site
    site.machine.kill(site.dockerd)


@pytest.fixture
def orders(docker: Site) -> Iterator[Site]:
    """Create a volume for user 1000; in the end it is removed, and nothing is left of it."""
    docker.rotate("first")
    docker.docker("volume", "create", "-d", "secretfs", "-o", "app-id=orders", "-o", "uid=1000", "orders")
    yield docker
    assert docker.docker("ps", "--all", "--quiet") == ""
    docker.docker("volume", "rm", "orders")
    assert docker.docker("volume", "ls", "--quiet") == ""
    assert list(docker.machine.path("/srv/volumes").iterdir()) == []


def test_a_volume(orders: Site) -> None:
    """volume-7: `docker run -v VOLUME:/run/secrets:ro` shows the secrets to the user whom the volume is for."""
    volume = ("-v", "orders:/run/secrets:ro")
    assert orders.docker_run("--user", "1000", *volume, "busybox", "cat", INSIDE) == secret("first")
    locked = ("--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    assert orders.docker_run(*locked, "--user", "1000", *volume, "busybox", "cat", INSIDE) == secret("first")
    command = ("docker", "run", "--rm", "--network", "none", *volume)
    said = orders.machine.refused(*command, "--user", "1001", "busybox", "cat", INSIDE)
    assert "Permission denied" in said
    assert "Read-only file system" in orders.machine.refused(*command, "busybox", "touch", INSIDE)
    writable = ("docker", "run", "--rm", "--network", "none", "-v", "orders:/run/secrets", "busybox", "touch", INSIDE)
    assert "Read-only file system" in orders.machine.refused(*writable)
    (inspected,) = json.loads(orders.docker("volume", "inspect", "orders"))
    assert (inspected["Driver"], inspected["Mountpoint"]) == ("secretfs", str(MOUNTPOINT / "orders"))
    assert inspected["Status"] == {"app-id": "orders", "uid": "1000", "mounts": 0}


def test_a_volume_that_is_not_created_before(orders: Site) -> None:
    """`--mount` names the driver and its options; the volume of a container ends with it (volume-7)."""
    mount = "type=volume,volume-driver=secretfs,volume-opt=app-id=orders,dst=/run/secrets"
    assert orders.docker_run("--mount", mount, "busybox", "cat", INSIDE) == secret("first")
    named = f"src=third,{mount},readonly"
    assert orders.docker_run("--mount", named, "busybox", "cat", INSIDE) == secret("first")
    orders.docker("volume", "rm", "third")


def test_what_is_in_the_image(orders: Site) -> None:
    """Docker copies what the image has at that place into an empty volume, and a view is not empty (volume-7)."""
    build = (
        "run",
        "--network",
        "none",
        "--name",
        "seed",
        "busybox",
        "sh",
        "-c",
        "mkdir -p /run/secrets && echo > /run/secrets/x",
    )
    orders.docker(*build)
    orders.docker("commit", "seed", "seeded")
    orders.docker("rm", "seed")
    assert orders.docker_run("-v", "orders:/run/secrets:ro", "seeded", "ls", "/run/secrets") == "file\n"


def test_what_docker_says(docker: Site) -> None:
    """volume-8: Docker and Podman show the error of an option, with what would be right."""
    create = ("docker", "volume", "create", "-d", "secretfs")
    for options, said in {
        ("-o", "appid=orders"): "unknown option appid (did you mean app-id?)",
        ("-o", "mode=0640"): "option mode: '0640': a file here can be read and nothing else (0400, 0440, 0444)",
        ("-o", "configuration=x"): "there is no Configuration named x",
    }.items():
        assert said in docker.machine.refused(*create, *options, "wrong")
    assert docker.docker("volume", "ls", "--quiet") == ""


def test_two_containers_see_a_rotation(orders: Site) -> None:
    """volume-9: Containers that share a volume see a rotation by inotify."""
    orders.docker("import", "/srv/links.tar", "links")
    for name in ("left", "right"):
        orders.docker(
            "run", "--detach", "--rm", "--network", "none", "--name", name, "-v", "orders:/run/secrets:ro",
            "-v", "/usr:/usr:ro", "-v", "/srv/out:/out", "links", "sh", "-c",
            f"cat {INSIDE} > /dev/null; exec inotifywait --monitor --outfile /out/{name} /run/secrets/file/db",
        )  # fmt: skip
    watchers = "for pid in $(pgrep -x inotifywait); do cat /proc/$pid/fdinfo/*; done | grep -c '^inotify wd'"
    wait_until(lambda: orders.machine.run("sh", "-c", watchers).stdout == b"2\n")
    orders.rotate("second")
    for name in ("left", "right"):
        told = orders.machine.path(f"/srv/out/{name}")
        wait_until(lambda told=told: "MOVED_TO password" in told.read_text("utf-8"))  # type: ignore[misc]
        assert orders.docker("exec", name, "cat", INSIDE) == secret("second")
    orders.docker("stop", "--time", "0", "left", "right")
    wait_until(lambda: orders.docker("ps", "--all", "--quiet") == "")


def test_with_remapped_users(docker: Site) -> None:
    """volume-12: In a container with remapped users, `uid` is the id of the user on the host."""
    docker.rotate("first")
    docker.machine.kill(docker.dockerd)
    docker.start_dockerd("--userns-remap", "alice", root="/run/docker-remapped")
    docker.docker("import", "/srv/image.tar", "busybox")
    docker.docker("volume", "create", "-d", "secretfs", "-o", f"uid={SUBORDINATE + 1000}", "orders")
    docker.docker("volume", "create", "-d", "secretfs", "-o", "mode=0444", "open")
    docker.docker("volume", "create", "-d", "secretfs", "root")
    user = ("--user", "1000", "-v")
    assert docker.docker_run(*user, "orders:/run/secrets:ro", "busybox", "cat", INSIDE) == secret("first")
    assert docker.docker_run(*user, "open:/run/secrets:ro", "busybox", "cat", INSIDE) == secret("first")
    command = ("docker", "run", "--rm", "--network", "none", "-v", "root:/run/secrets:ro", "busybox", "cat", INSIDE)
    assert "Permission denied" in docker.machine.refused(*command)
    docker.docker("volume", "rm", "orders", "open", "root")
    docker.machine.kill(docker.dockerd)
    docker.start_dockerd()


def test_nothing_stops_readers(orders: Site) -> None:
    """volume-10: Containers read on while daemon, plug-in and engine are killed and started again."""
    for name in ("one", "two"):
        orders.docker(
            "run", "--detach", "--network", "none", "--name", name,
            "--user", "1000", "--read-only", "--cap-drop", "ALL",
            "-v", "orders:/run/secrets:ro", "-v", "/srv/out:/out", "busybox", "sh", "-c", READER, name, INSIDE,
        )  # fmt: skip
    orders.reads_on("one", "two")
    for version, how in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
        orders.end_worker(how)
        orders.rotate(f"after {version}")
    orders.machine.kill(orders.plugin)
    orders.start_plugin()
    orders.machine.kill(orders.dockerd)
    orders.machine.kill(orders.plugin)
    orders.start_plugin()
    orders.start_dockerd()
    orders.restart_dockerd()
    assert orders.docker("volume", "ls", "--quiet").split() == ["orders"]
    assert "volume is in use" in orders.machine.refused("docker", "volume", "rm", "orders")
    assert orders.docker_run("-v", "orders:/run/secrets:ro", "busybox", "cat", INSIDE) == secret("after 2")
    orders.docker("restart", PATIENTLY, "two")
    orders.reads_on("one", "two")
    orders.docker("stop", PATIENTLY, "one", "two")
    for name in ("one", "two"):
        _, failed = orders.report(name)
        assert failed == 0
    orders.docker("rm", "one", "two")


def test_a_mount_that_is_made_anew(orders: Site) -> None:
    """Without a mount Docker says so; a container has the next mount when it is restarted (volume-5)."""
    run = ("run", "--network", "none", "-v", "orders:/run/secrets:ro")
    orders.docker(*run, "--detach", "--name", "one", "busybox", "sleep", "1000")
    orders.machine.output("secretfs", "unmount", "--force", MOUNTPOINT)
    said = orders.machine.refused("docker", "exec", "one", "cat", INSIDE)
    assert "Socket not connected" in said or "Transport endpoint is not connected" in said
    said = orders.machine.refused("docker", *run, "--rm", "busybox", "true")
    assert f"{MOUNTPOINT} has no secretfs mounted" in said
    orders.mount()
    assert orders.docker_run("-v", "orders:/run/secrets:ro", "busybox", "cat", INSIDE) == secret("first")
    orders.docker("restart", "--time", "0", "one")
    assert orders.docker("exec", "one", "cat", INSIDE) == secret("first")
    orders.docker("rm", "--force", "one")
