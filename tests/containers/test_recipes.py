"""docs/containers.md: what can be typed is typed, with the engines that it is for."""

import re
import signal
from collections.abc import Iterator

import pytest
import yaml

from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.engines import PATIENTLY, READER, SUBORDINATE, USER, Site
from tests.support.machine import quoted
from tests.support.shell import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.root("only root runs container engines for others")]

TEXT = (ROOT / "docs/containers.md").read_text(encoding="utf-8")
PASSWORD = secret("first")

# What a machine without systemd, and a container without a network of its own, takes besides what is typed. The image
# `secretfs` has nothing but links: the programs of this machine and this project are bound into it.
DOCKER = """#!/bin/sh
[ "$1" = run ] || exec /usr/bin/docker "$@"
shift
case " $* " in *" secretfs "*) set -- -v /usr:/usr:ro -v {root}:{root}:ro -e PYTHONPATH={root} "$@" ;; esac
exec /usr/bin/docker run --network none "$@"
"""
PODMAN = """#!/bin/sh
[ "$1" = run ] || exec /usr/bin/podman "$@"
shift
exec /usr/bin/podman run --cgroup-parent /{cgroup} "$@"
"""
NSPAWN = """#!/bin/sh
exec /usr/bin/systemd-nspawn --quiet --register=no --keep-unit --pipe "$@"
"""


def blocks(heading: str, language: str = "sh") -> list[str]:
    """Find the blocks in a language below a heading."""
    text = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert found, heading
    return found


@pytest.fixture(scope="module")
def place(site: Site) -> Iterator[Site]:
    """Start dockerd, and make what the recipes are about: images, and a directory with a system."""
    machine = site.machine
    site.start_dockerd()
    site.docker("import", "/srv/image.tar", "busybox")
    machine.shell(f"""
        docker import --change {quoted(f"ENV PATH={machine.env['PATH']}")} links.tar secretfs
        cp -a /srv/image /srv/root; mkdir -p /srv/root/run/secrets /srv/shared /run/bin
    """)
    fake = {"docker": DOCKER.format(root=ROOT), "podman": PODMAN.format(cgroup=machine.name), "systemd-nspawn": NSPAWN}
    for name, script in fake.items():
        path = machine.path(f"/run/bin/{name}")
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)
    yield site
    machine.kill(site.dockerd)


def typed(site: Site, script: str) -> str:
    return site.machine.shell(f"PATH=/run/bin:$PATH\n{script}")


@pytest.fixture
def orders(place: Site) -> Iterator[Site]:
    """Declare the app that recipes bind."""
    place.machine.shell("""
        cat > orders.yaml <<END
{apiVersion: secretfs/v1alpha1, kind: App, metadata: {name: orders}, spec: {}}
END
        secretfs apps apply /srv/secrets orders.yaml
    """)
    yield place
    place.machine.output("secretfs", "apps", "remove", "/srv/secrets", "orders")


def test_docker(place: Site) -> None:
    """A volume that is created, and one that a container brings along (volume-7)."""
    first, second = blocks("Docker")
    assert typed(place, first) == f"orders\n{PASSWORD}file\norders\n"
    assert typed(place, second) == "file\n"
    assert place.docker("volume", "ls", "--quiet") == ""


def test_the_readme(place: Site) -> None:
    """What README.md has is of the same form; only its store is another one (volume-7)."""
    script = (ROOT / "README.md").read_text("utf-8").partition("\n## In containers\n")[2].partition("\n```sh\n")[2]
    lines = [line for line in script.partition("```")[0].splitlines() if line.startswith("docker ")]
    assert typed(place, "\n".join(lines).replace("vault/", "file/")) == f"shop\n{PASSWORD}"
    place.docker("volume", "rm", "shop")


def test_the_index(place: Site) -> None:
    """The container of docs/index.md, and another one after a rotation (volume-7)."""
    text = (ROOT / "docs/index.md").read_text("utf-8").partition("\n## A container\n")[2].partition("\n```sh\n")[2]
    create, run = [line for line in text.partition("```")[0].splitlines() if line.startswith("docker ")]
    run = run.replace("vault/", "file/")
    assert typed(place, f"{create}\n{run}") == f"shop\n{PASSWORD}"
    place.rotate("second")
    assert typed(place, run) == secret("second")
    place.rotate("first")
    place.docker("volume", "rm", "shop")


def test_compose(place: Site) -> None:
    """A file for Compose (volume-7)."""
    (compose,) = blocks("Compose", "yaml")
    project = place.machine.path("/srv/project")
    project.mkdir()
    document = yaml.safe_load(compose) | {"version": "2.4"}
    document["services"]["orders"]["network_mode"] = "none"
    (project / "docker-compose.yml").write_text(yaml.safe_dump(document), encoding="utf-8")
    done = place.machine.shell("cd project; docker-compose --no-ansi run --rm orders; docker-compose down --volumes")
    assert done == PASSWORD
    assert place.docker("volume", "ls", "--quiet") == ""


def test_podman(place: Site) -> None:
    """Podman with the lines for its configuration (volume-7)."""
    (lines,), (script,) = blocks("Podman", "ini"), blocks("Podman")
    assert lines in place.machine.path("/run/containers.conf").read_text("ascii")
    place.podman("import", "/srv/image.tar", "localhost/busybox")
    done = typed(place, script)
    assert done == f"orders\n{PASSWORD}orders\n"


@pytest.fixture
def alice(place: Site) -> Iterator[Site]:
    """Declare the apps of a user without rights, and give her containers a place."""
    (apps,) = blocks("Podman without root", "yaml")
    assert f'owner: "{USER}"' in apps
    assert f'owner: "{SUBORDINATE + 999}"' in apps
    place.machine.path("/srv/apps.yaml").write_text(apps, encoding="utf-8")
    place.machine.shell("""
        secretfs apps apply /srv/secrets apps.yaml
        sed 's/runtime = .*/runtime = "crun"/' /run/containers.conf > /run/alice/containers.conf
        sed 's|/run/podman|/run/alice/storage|' /run/storage.conf > /run/alice/storage.conf
    """)
    yield place
    place.machine.output("secretfs", "apps", "remove", "/srv/secrets", "alice", "alice-1000")


def test_podman_without_root(alice: Site) -> None:
    """A user's containers, with the user's id, as root, and with an id of the user's own; they read on (volume-10)."""
    (script,), machine = blocks("Podman without root"), alice.machine
    environment = (
        "export HOME=/run/alice XDG_RUNTIME_DIR=/run/alice/run CONTAINERS_CONF=/run/alice/containers.conf"
        " CONTAINERS_STORAGE_CONF=/run/alice/storage.conf; cd"
    )
    machine.shell(f"{environment}; podman import /srv/image.tar localhost/busybox", user=USER)
    assert machine.shell(f"{environment}; {script}", user=USER) == 3 * PASSWORD
    reader = quoted("busybox", "sh", "-c", READER, "alice", "/run/secrets/file/db/password")
    binds = "--userns=keep-id -v /srv/secrets/alice:/run/secrets:ro -v /srv/out:/out"
    machine.shell(f"{environment}; podman run --detach --name reader {binds} {reader}", user=USER)
    alice.reads_on("alice")
    for how in (signal.SIGKILL, signal.SIGTERM):
        alice.end_worker(how)
    alice.reads_on("alice")
    machine.shell(f"{environment}; podman stop {PATIENTLY} reader; podman rm reader", user=USER)
    _, failed = alice.report("alice")
    assert failed == 0


def test_without_the_plugin(orders: Site) -> None:
    """The parent directory of the mount (volume-10)."""
    (script,) = blocks("Without the plug-in")
    assert typed(orders, script) == "orders\n"


def test_as_the_first_process(place: Site) -> None:
    """`secretfs run` in a container (run-1)."""
    (script,) = blocks("As the first process of a container")
    assert typed(place, script) == PASSWORD


def test_a_sidecar(place: Site) -> None:
    """One container mounts for another (perm-3)."""
    (script,) = blocks("A sidecar")
    start, read = script.split("docker run --rm")
    place.machine.path("/srv/shared/orders").mkdir()
    typed(place, start)
    wait_until(lambda: place.machine.run("mountpoint", "-q", "/srv/shared/orders").returncode == 0)
    assert typed(place, f"docker run --rm{read}") == PASSWORD
    place.docker("stop", "sidecar")
    place.docker("rm", "sidecar")
    assert place.machine.run("mountpoint", "-q", "/srv/shared/orders").returncode != 0


def test_sandboxes(orders: Site) -> None:
    """systemd-nspawn, bubblewrap and a user namespace (perm-3)."""
    (script,) = blocks("systemd-nspawn and bubblewrap")
    assert typed(orders, script) == 3 * PASSWORD


def test_what_the_doctor_says(place: Site) -> None:
    """doctor-5: With `--container` it says what a container sees of a mount, or why it sees nothing."""
    machine, sleep = place.machine, ("busybox", "sleep", "1000")
    machine.shell("mkdir -p late/m")
    binds = {"private": "/srv/late:/run/secrets:ro", "slave": "/srv/late:/run/secrets:ro,rslave"}
    for name, bind in binds.items():
        place.docker("run", "--detach", "--network", "none", "--name", name, "-v", bind, *sleep)
    mount = "secretfs mount --resources-path /srv/components --allow-other --log-file /srv/late.log /srv/late/m"
    machine.shell(mount)
    place.docker("run", "--detach", "--network", "none", "--name", "bound", "-v", "/srv/late/m:/run/secrets:ro", *sleep)

    def doctor(name: str) -> str:
        done = machine.run("secretfs", "doctor", "--container", name, "/srv/late/m")
        return done.stdout.decode().splitlines()[0]

    assert doctor("slave") == "PASS  container    it sees the secrets at /run/secrets/m (all of it)"
    assert doctor("private").startswith("WARN  container    the bind at /run/secrets is private")
    machine.output("secretfs", "unmount", "--force", "/srv/late/m")
    machine.shell(mount)
    assert doctor("bound").startswith(
        "WARN  container    at /run/secrets it keeps an earlier mount, whose daemon is gone"
    )
    machine.output("secretfs", "unmount", "--force", "/srv/late/m")
    place.docker("rm", "--force", *binds, "bound")
