"""Where values are, and where they never are: a hunt for them through the life of a mount."""

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.canary import leaked, secret
from tests.support.hunt import in_files, in_memory, swapped, told_of
from tests.support.manifests import component
from tests.support.mounted import Mounted, mounted, processes, stands_by
from tests.support.proc import texts
from tests.support.servers.openbao import OpenBao
from tests.support.shell import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.root("only root may read the memory of others")]

COUNT = 100


def values(generation: str) -> dict[str, str]:
    """Return a value for each of many names, of which none is a part of another."""
    return {f"name-{number:03}": secret(f"hunted-{generation}-{number:03}.") for number in range(COUNT)}


def put(server: OpenBao, generation: str) -> None:
    for name, value in values(generation).items():
        server.put(f"secret/hunt/{name}", {"password": value})


def is_read(mount: Mounted, generation: str) -> bool:
    """Whether what programs read now are the values of a generation."""
    return all(
        (mount.path / "vault" / name / "password").read_text() == value for name, value in values(generation).items()
    )


def all_of(mount: Mounted) -> Iterator[int]:
    """Yield every process of a mount: of the worker, supervisor and standby, and what they have started."""
    seen = [pid for pid, _ in processes(mount.path)]
    for pid in seen:
        yield pid
        for text in texts(pid, "task/*/children"):
            seen += [int(child) for child in text.split() if int(child) not in seen]


def marks(*generations: str) -> Sequence[bytes]:
    return [value.encode() for generation in generations for value in values(generation).values()]


def hunt(mount: Mounted, directory: Path) -> int:
    """Look everywhere but in the worker. Returns how many values are in that."""
    everywhere, worker = set(all_of(mount)), mount.worker
    names = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in everywhere}
    assert {"secretfs-helper", "secretfs-mount", "secretfs-next"} <= names
    every = marks("old", "new")
    for pid in everywhere:
        assert not leaked(told_of(pid))
        assert swapped(pid) == 0
        if pid != worker:
            assert in_memory(pid, every) == set(), Path(f"/proc/{pid}/comm").read_text()
    assert not leaked(mount.log)
    assert not leaked((mount.path / ".secretfs/status.json").read_text())
    assert not leaked((mount.path / ".secretfs/metrics").read_text())
    assert in_files(directory) == []
    return len(in_memory(worker, every))


def test_what_a_mount_logs_in_with(own_server: OpenBao, tmp_path: Path) -> None:
    """safe-8: What a mount logs in with is in the daemon, if it is a variable also in the supervisor and the process
    that stands by, and nowhere else: not in `/proc/PID/environ` of any of them, and not in a helper process."""
    own_server.put("secret/dapr/db", {"password": "any"})
    tokens = {name: secret(f"token-{name}-0123456789") for name in ("variable", "manifest", "reference")}
    for token in tokens.values():
        own_server.call("POST", "auth/token/create", {"id": token, "policies": ["root"]})
    (tmp_path / "tokens.json").write_text(json.dumps({"token": tokens["reference"]}))
    component(tmp_path / "c", "tokens", "local.file", {"secretsFile": tmp_path / "tokens.json"})
    given: dict[str, object] = {"v": {"envRef": "MY_TOKEN"}, "m": tokens["manifest"]}
    given["r"] = {"secretKeyRef": {"name": "token", "key": "token"}}
    for name, token_property in given.items():
        properties = {"vaultAddr": own_server.address, "vaultToken": token_property}
        component(tmp_path / "c", name, "hashicorp.vault", properties, secret_store="tokens" if name == "r" else "")
    with mounted(tmp_path / "c", env={"MY_TOKEN": tokens["variable"]}, expect_log=["process .* ended"]) as mount:
        for times in (1, 2):
            assert {(mount.path / name / "db/password").read_text() for name in "vmr"} == {"any"}
            wait_until(lambda: stands_by(mount.path))
            with_variable = {mount.worker, mount.process.pid}
            for pid in all_of(mount):
                environ, process = (Path(f"/proc/{pid}/{file}").read_bytes() for file in ("environ", "comm"))
                assert environ.strip(b"\0") == b""
                found = in_memory(pid, [token.encode() for token in tokens.values()])
                allowed = set(tokens.values()) if pid == mount.worker else {tokens["variable"]}
                assert found <= {token.encode() for token in allowed}
                assert bool(found) == (pid in with_variable or process == b"secretfs-next\n")
            os.kill(mount.worker, signal.SIGKILL)
            mount.said("took over the mount at", times)


def known(mount: Mounted) -> int:
    return int(json.loads((mount.path / ".secretfs/status.json").read_bytes())["stores"]["vault"]["cached_values"])


def test_the_life_of_a_mount(own_server: OpenBao, tmp_path: Path) -> None:
    """safe-5: No value is in another process than the daemon, in an argument, a variable, the log, a metric, a file, a
    core dump or swap: after a read, a rotation, an outage, a takeover, and when values were dropped."""
    put(own_server, "old")
    properties = {"vaultAddr": own_server.address, "vaultToken": own_server.token, "vaultKVPrefix": "hunt"}
    annotations = {"secretfs/ttl": "300ms", "secretfs/idle": "3s"}
    component(tmp_path / "components", "vault", "hashicorp.vault", properties, annotations=annotations)
    (tmp_path / "mount/tmp").mkdir(parents=True)
    env = {"TMPDIR": str(tmp_path / "mount/tmp")}
    trouble = ["vault", "process .* ended", "dropped"]
    with mounted(tmp_path / "components", env=env, expect_log=trouble) as mount:
        with ExitStack() as held:
            for name in values("old"):
                held.enter_context((mount.path / "vault" / name / "password").open("rb"))  # what is open is in use
            wait_until(lambda: stands_by(mount.path))
            assert is_read(mount, "old")
            assert hunt(mount, tmp_path / "mount") == COUNT  # it finds what is there
            put(own_server, "new")
            wait_until(lambda: is_read(mount, "new"))
            hunt(mount, tmp_path / "mount")
            with own_server.hanging():
                mount.said("vault: no answer within")
                hunt(mount, tmp_path / "mount")
            mount.said("vault: answers again")
            os.kill(mount.worker, signal.SIGABRT)  # which would leave a core dump
            mount.said("took over the mount at")
            assert is_read(mount, "new")
            wait_until(lambda: stands_by(mount.path))
            hunt(mount, tmp_path / "mount")
        wait_until(lambda: known(mount) == 0)
        hunt(mount, tmp_path / "mount")
    assert in_files(tmp_path / "mount") == []
    assert list(Path.cwd().glob("core*")) == []
