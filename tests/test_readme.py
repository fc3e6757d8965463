"""README.md: what can be run is run, on a real mount of a real server, and its tables say what the code does."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from secretfs.cli.main import COMMANDS, command
from secretfs.registry.annotations import FRESHNESS
from secretfs.stores import BUILTIN
from tests.support.command import NOBODY, ROOT, Done, end_daemons
from tests.support.servers.openbao import OpenBao
from tests.support.vault_fixtures import openbao_server

__all__ = ["openbao_server"]

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, heading: str = "") -> list[str]:
    """Find the blocks in a language, below a heading or in all of the page."""
    text = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0] if heading else TEXT
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def rows(first: str) -> list[list[str]]:
    """Find the rows of the table whose first column has this title."""
    table = re.search(rf"^\| {re.escape(first)} \|.*?(?=\n\n)", TEXT, re.DOTALL | re.MULTILINE)
    assert table
    lines = table[0].replace(r"\|", "/").splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


class Place:
    """A directory with the files of the README, a server that has the app's secrets, and a shell to type in."""

    def __init__(self, directory: Path, server: OpenBao) -> None:
        self.directory = directory
        self.mountpoint = directory / "mnt/secrets"
        self._replaced = {
            "https://vault.example.com:8200": server.address,
            "/run/secretfs/vault-token": str(directory / "vault-token"),
            "/mnt/secrets": str(self.mountpoint),
            "/srv/secrets": str(directory / "srv/secrets"),
        }
        (directory / "vault-token").write_text(server.token, encoding="utf-8")
        server.put("secret/shop/db", {"username": "shop", "password": "correct horse battery staple"})
        server.put("secret/shop/payment/stripe", {"key": "stripe"})
        server.put("secret/shop/hidden", {"key": "hidden"})
        vault, config = blocks("yaml", "With Vault")
        for path in ("components", "bin", self.mountpoint, "srv/secrets/shop"):
            (directory / path).mkdir(parents=True)
        (directory / "components/vault.yaml").write_text(self.here(vault), encoding="utf-8")
        (directory / "config.yaml").write_text(self.here(config), encoding="utf-8")
        env = {"type": "secretstores.local.env", "metadata": [{"name": "prefix", "value": "SHOP_"}]}
        component = {"apiVersion": "dapr.io/v1alpha1", "kind": "Component", "metadata": {"name": "env"}, "spec": env}
        (directory / "components/env.yaml").write_text(yaml.safe_dump(component), encoding="utf-8")

    def here(self, text: str) -> str:
        """Write the addresses and paths of this place for those of the README."""
        for told, found in self._replaced.items():
            text = text.replace(told, found)
        return text

    def shell(self, script: str) -> Done:
        """Run a script with bash, in the directory of the files. Whether there is a syslog makes no difference."""
        path = f"{self.directory / 'bin'}:{ROOT / '.venv/bin'}:{os.environ['PATH']}"
        command = ["bash", "-eu", "-c", self.here(script)]
        done = subprocess.run(
            command,
            env=os.environ | {"PATH": path, "SHOP_REGION": "north"},
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
        )
        said = [line for line in done.stderr.splitlines(keepends=True) if "there is no syslog" not in line]
        return Done(done.returncode, done.stdout, "".join(said))

    def program(self, name: str, script: str) -> None:
        """Make a program that the shell finds."""
        path = self.directory / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        path.chmod(0o755)


@pytest.fixture
def place(tmp_path: Path, openbao_server: OpenBao) -> Iterator[Place]:
    """Give the place, and leave nothing mounted in it."""
    place = Place(tmp_path, openbao_server)
    yield place
    for mountpoint in (place.mountpoint, tmp_path / "srv/secrets", tmp_path / "srv/secrets/shop"):
        end_daemons(mountpoint)


@pytest.mark.mount
def test_the_first_lines(place: Place) -> None:
    """What is typed answers what is shown. Blanks do not count: `ls` writes one name a line into a pipe."""
    (console,) = [block for block in blocks("console") if "secretfs mount" in block]
    typed = [line.removeprefix("$ ") for line in console.splitlines() if line.startswith("$ ")]
    shown = [line for line in console.splitlines() if not line.startswith("$ ")]
    done = place.shell("\n".join(typed))
    assert (done.status, done.err) == (0, "")
    assert "".join(done.out.split()) == "".join(shown).replace(" ", "")


@pytest.mark.mount
def test_with_vault(place: Place) -> None:
    (script,) = blocks("sh", "With Vault")
    done = place.shell(script)
    assert (done.status, done.err) == (0, "")
    assert "correct horse battery staple" in done.out
    (bulk,) = [line for line in done.out.splitlines() if "payment/stripe" in line and line.startswith(("{", "correct"))]
    secrets = json.loads("{" + bulk.partition("{")[2])
    assert secrets.keys() == {"db", "payment/stripe"}
    assert "hidden" not in done.out


@pytest.mark.mount
def test_for_one_command(place: Place) -> None:
    place.program("shopd", 'test "$1" = --password-file && cat "$2"')
    console, _, environment = [*blocks("console", "For one command"), *blocks("sh", "For one command")]
    done = place.shell(console.removeprefix("$ "))
    assert (done.status, done.out, done.err) == (0, "correct horse battery staple", "")
    place.program("shopd", 'echo "$PGPASSWORD, $DB_username, $DB_password"')
    done = place.shell(environment)
    assert (done.status, done.err) == (0, "")
    assert done.out == "correct horse battery staple, shop, correct horse battery staple\n"


def test_without_a_mount(place: Place) -> None:
    """What is typed answers what is shown; the tree has more, because other tests of this page have more secrets."""
    (console,) = blocks("console", "Without a mount")
    typed = [line.removeprefix("$ ") for line in console.splitlines() if line.startswith("$ ")]
    shown = [line for line in console.splitlines() if not line.startswith("$ ")]
    done = place.shell("; echo; ".join(typed))
    assert (done.status, done.err) == (0, "")
    said = [line for line in done.out.splitlines() if line]
    assert said[0] == shown[0]
    assert [line for line in said if "db/" in line or "battery" in line] == [shown[1].replace("└", "├"), *shown[2:]]


@pytest.mark.mount
@pytest.mark.root("only root gives files to others")
def test_for_several_apps(place: Place) -> None:
    (app,), (script,) = blocks("yaml", "For several apps"), blocks("sh", "For several apps")
    (place.directory / "apps").mkdir()
    (place.directory / "apps/shop.yaml").write_text(app.replace("owner: shop", "owner: nobody"), encoding="utf-8")
    (place.directory / "srv/secrets/shop").rmdir()
    done = place.shell(script)
    assert (done.status, done.err) == (0, "")
    assert done.out.split() == ["db", "hidden", "payment"]
    assert (place.directory / "srv/secrets/shop").stat().st_uid == NOBODY


# What `docker run` has runc do, for the flags that the README gives it.
DOCKER = r"""
while [ "$1" != alpine ]; do
    case $1 in
        run|--rm) ;;
        --user) user=$2; shift ;;
        -v) volume=$2; shift ;;
        *) echo "docker: $1" >&2; exit 125 ;;
    esac
    shift
done
shift
bundle=$(mktemp -d ./bundle.XXXXXX)
mkdir "$bundle/rootfs"
ln -s usr/bin usr/lib usr/lib64 "$bundle/rootfs"
(cd "$bundle" && runc spec)
python - "$bundle/config.json" "$user" "$volume" "$@" <<'END'
import json, sys
path, user, volume, *args = sys.argv[1:]
source, target, options = volume.split(":")
with open(path) as file:
    config = json.load(file)
config["process"] |= {"args": args, "terminal": False, "user": {"uid": int(user), "gid": int(user)}}
del config["process"]["rlimits"]
config["linux"]["rootfsPropagation"] = "rslave"
for source, target, options in ("/usr", "/usr", "ro"), (source, target, options):
    bind = {"type": "bind", "source": source, "destination": target, "options": ["rbind", *options.split(",")]}
    config["mounts"].append(bind)
with open(path, "w") as file:
    json.dump(config, file)
END
exec runc --root "$PWD/runc" run --bundle "$bundle" "secretfs-${bundle##*.}"
"""

# A container that is older than the mount reads commands from its standard input; / is shared, as with systemd.
SCENE = """
set -eu
mount --make-rshared /
said() {{ until [ "$(grep -c "$1" early)" = "$2" ]; do sleep 0.05; done; }}
touch early
mkfifo orders
{early} < orders > early & container=$!
exec 3> orders
echo 'echo there' >&3
said there 1
{mount}
echo 'cat {path}; echo' >&3
said 'correct horse' 1
{container}
secretfs unmount /srv/secrets/shop
{mount}
echo 'cat {path}; echo' >&3
said 'correct horse' 2
exec 3>&-
wait $container
secretfs unmount /srv/secrets/shop
"""


@pytest.mark.mount
@pytest.mark.root("only root makes containers")
def test_in_a_container(place: Place) -> None:
    """Another user reads in a container that starts later, and in one that was there before both mounts."""
    mount, container = blocks("sh", "In containers")[1].splitlines()
    docker, path = container.split(" cat ")
    scene = SCENE.format(early=f"{docker} sh", mount=mount, container=container, path=path)
    place.program("docker", DOCKER)
    place.program("scene", place.here(scene))
    done = place.shell("unshare --mount --propagation private scene")
    assert (done.status, done.out, done.err) == (0, "correct horse battery staple", "")


def test_the_line_of_fstab_has_flags() -> None:
    (line,) = blocks("fstab")
    options = line.split()[3].split(",")
    flags = {flag for parameter in command("mount").params for flag in parameter.opts}
    ours = {f"--{option.partition('=')[0]}" for option in options if option not in ("_netdev", "nofail")}
    assert ours < flags


def test_the_table_of_commands() -> None:
    named = {name.strip("`").split()[1] for name, _ in rows("Command")}
    assert named == set(COMMANDS)


def test_the_table_of_flags() -> None:
    """Every flag is in it, with the commands that have it; that `doctor` has those of `mount` is said above it."""
    told: dict[str, set[str]] = {}
    for flags, commands, _ in rows("Flag"):
        for flag in re.findall(r"--[a-z0-9-]+", flags):
            told[flag] = set(commands.split(", "))
            if "mount" in told[flag]:
                told[flag].add("doctor")
    found: dict[str, set[str]] = {}
    for name in COMMANDS:
        found_in = command(name)
        parts = [found_in, *(found_in.commands.values() if isinstance(found_in, click.Group) else ())]
        for parameter in (parameter for part in parts for parameter in part.params):
            if isinstance(parameter, click.Option) and not parameter.hidden:
                (long,) = [flag for flag in parameter.opts if flag.startswith("--")]
                found.setdefault(long, set()).add(name)
    assert told == found


def test_the_table_of_stores_and_annotations() -> None:
    assert {type_.strip("`") for type_, *_ in rows("`spec.type`")} == {*BUILTIN, "any other: a plug-in of Dapr's"}
    assert {name.strip("`") for name, *_ in rows("Annotation")} == set(FRESHNESS)


def test_the_errnos_are_those_of_the_promises() -> None:
    promised = re.findall(r"^\| (E[A-Z]+) \|", (ROOT / "docs/SEMANTICS.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name.strip("`") for name, _ in rows("errno")} <= set(promised)
