"""A real PostgreSQL for tests, from Debian's package: empty, without passwords on its socket.

    with postgres(tmp_path) as database:
        database.query("SELECT rolname FROM pg_roles")

Everything is gone when the server stops.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.canary import secret
from tests.support.lacking import cannot_test
from tests.support.servers.ports import free_ports
from tests.support.waiting import PATIENCE


def _programs() -> Path:
    """Find the newest installed version. Debian keeps its programs off the PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        cannot_test("needs PostgreSQL (apt-get install --no-install-recommends postgresql)")
    return found[-1]


@dataclass
class Postgres:
    """A server process on a port of its own."""

    directory: Path
    programs: Path = field(default_factory=_programs)
    port: int = field(default_factory=lambda: free_ports()[0])
    password: str = field(default_factory=lambda: secret("postgres"), repr=False)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """How Vault's database engine connects; it fills in the braces."""
        return f"postgresql://{{{{username}}}}:{{{{password}}}}@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def start(self) -> None:
        """Make a database, start, and wait until it serves."""
        if os.geteuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
        password = self.directory / "password"
        password.write_text(self.password, encoding="ascii")
        password.chmod(0o644)
        self._run(
            "initdb", "-D", self._data, "-U", "root", "--auth-local=trust", "--auth-host=scram-sha-256",
            f"--pwfile={password}", "--no-locale", "-E", "UTF8", "--no-sync",
        )  # fmt: skip
        password.unlink()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(
                    "postgres", "-D", self._data, "-p", str(self.port), "-k", str(self.directory),
                    "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
                ),
                cwd="/", stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while not self._ready():
            assert self._process.poll() is None, f"PostgreSQL ended:\n{self.log}"
            assert time.monotonic() < end, f"PostgreSQL does not start:\n{self.log}"
            time.sleep(0.01)

    def stop(self) -> None:
        """End it at once, with all its children."""
        if self._process is not None:
            self._run("pg_ctl", "stop", "-D", self._data, "-m", "immediate")
            self._process.wait()
            self._process = None

    def query(self, statement: str) -> list[str]:
        """Run a statement as its owner and return the first column of what it gives."""
        done = self._run(
            "psql", "-h", str(self.directory), "-p", str(self.port), "-U", "root", "-d", "postgres", "-Atc", statement
        )
        return done.splitlines()

    def accepts(self, username: str, password: str) -> bool:
        """Say whether somebody can log in over the network with these credentials."""
        where = ["-w", "-h", "127.0.0.1", "-p", str(self.port), "-U", username, "-d", "postgres"]
        done = subprocess.run(
            [str(self.programs / "psql"), *where, "-Atc", "SELECT 1"],
            env={"PATH": os.defpath, "PGPASSWORD": password},
            cwd="/",
            capture_output=True,
            check=False,
        )
        return done.returncode == 0

    @property
    def log(self) -> str:
        """What the server wrote."""
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def _data(self) -> str:
        return str(self.directory / "data")

    def _ready(self) -> bool:
        # Files of the user postgres are not ours to look at; the port is everybody's.
        command = [str(self.programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, cwd="/", check=False).returncode == 0

    def _command(self, program: str, *arguments: str) -> list[str]:
        # PostgreSQL refuses to run as root.
        other = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        return [*other, str(self.programs / program), *arguments]

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(self._command(program, *arguments), cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Run a server with its files in a directory that its user can reach; both are gone at the end."""
    directory = Path(tempfile.mkdtemp(prefix="postgres-", dir="/tmp"))
    directory.chmod(0o755)
    server = Postgres(directory)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(directory, ignore_errors=True)
