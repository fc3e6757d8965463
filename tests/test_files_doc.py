"""docs/files.md: every example there is a document that loads and renders, and the limits are those of the code."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import trustme

from secretfs.dapr.rendered_file import RenderedFile, load_files
from secretfs.fs.rendered_files import LONGEST, REPEAT_FAILURE
from secretfs.rendering.conversation import Asked
from secretfs.rendering.job import CPU_SECONDS, LARGEST_FILE, MEMORY, MOST_PARTS, Format
from secretfs.rendering.language import FILTERS
from secretfs.rendering.renderer import Renderer
from tests.support.canary import secret
from tests.support.command import ROOT

TEXT = (ROOT / "docs/files.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
PASSWORD = secret("it's")


@pytest.fixture
def files(tmp_path: Path) -> Mapping[str, RenderedFile]:
    (tmp_path / "files.yaml").write_text("---\n".join(EXAMPLES), encoding="utf-8")
    return {file.name: file for file in load_files([tmp_path])}


async def test_every_example_renders(files: Mapping[str, RenderedFile]) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("site.example")
    login = {"username": b"joe", "password": PASSWORD.encode()}
    tls = {
        "certificate": certificate.cert_chain_pems[0].bytes(),
        "chain": authority.cert_pem.bytes(),
        "key": certificate.private_key_pem.bytes(),
        "password": PASSWORD.encode(),
    }

    async def ask_secret(store: str, name: str) -> Mapping[str, bytes]:
        assert store == "vault"
        return tls if name == "tls/site" else login

    async def ask_folder(store: str, folder: str) -> list[str]:
        return [f"{folder}/a.example", f"{folder}/b.example"]

    renderer = Renderer()
    try:
        made = {name: await renderer.render(file.job, Asked(ask_secret, ask_folder)) for name, file in files.items()}
    finally:
        renderer.close()
    assert made["pgpass"].decode() == f"db.example:5432:*:joe:{PASSWORD}\n"
    assert made["redis"].decode() == f'bind 127.0.0.1\nuser default on ">{PASSWORD}" ~* &* +@all\n'
    netrc = [f"machine {host}.example login joe password {PASSWORD}\n" for host in "ab"]
    assert made["netrc"].decode() == "".join(netrc)
    assert made["haproxy"] == tls["certificate"] + tls["chain"] + tls["key"]
    assert json.loads(made["registry"])["auths"]["registry.example"]["username"] == "joe"
    assert set(made) == {"pgpass", "redis", "application", "netrc", "haproxy", "keystore", "registry"}


def test_formats_filters_and_limits_are_told() -> None:
    for name in (*(form.value for form in Format), *FILTERS):
        assert f"`{name}`" in TEXT, name
    limits = (
        f"{CPU_SECONDS} s",
        f"{MEMORY >> 20} MiB",
        f"{LARGEST_FILE >> 20} MiB",
        f"{MOST_PARTS:,}",
        f"{LONGEST:.0f} s",
    )
    for limit in limits:
        assert f"| {limit} |" in TEXT
    assert f"tried again after {REPEAT_FAILURE:.0f} s" in TEXT
