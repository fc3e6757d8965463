"""The database engine of a real OpenBao, on a real PostgreSQL: each credential that it issues is a user there."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.servers.openbao import OpenBao
from tests.support.servers.postgres import Postgres, postgres
from tests.support.vault_auth import approle, count, policy

__all__ = ["Engine", "database"]

_POSTGRES = pytest.StashKey[Postgres]()


@pytest.fixture(scope="session")
def database(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """Run a server for the session."""
    stash = request.config.stash  # a fixture that several modules import is several fixtures
    if _POSTGRES in stash:
        yield stash[_POSTGRES]
        return
    with postgres() as server:
        stash[_POSTGRES] = server
        yield server


class Engine:
    """A database engine with a role ``app`` whose leases live for a while."""

    def __init__(self, server: OpenBao, database: Postgres, ttl: str = "1h", most: str = "24h") -> None:
        self.server = server
        self.database = database
        self.path = server.mount(enable_path(), type="database")
        connection = {"connection_url": database.url, "username": "root", "password": database.password}
        self.prefix = self.path.removeprefix("database-")
        usernames = f"{self.prefix}-{{{{.RoleName}}}}-{{{{random 12}}}}"
        plugin = {"plugin_name": "postgresql-database-plugin", "allowed_roles": "*", "username_template": usernames}
        server.call("POST", f"{self.path}/config/postgres", {**plugin, **connection})
        self.role("app", ttl, most)
        self.allowed = policy(
            server, **{f"{self.path}/creds/*": "read", f"{self.path}/roles": "list", "sys/leases/revoke": "update"}
        )
        server.forget()

    def role(self, name: str, ttl: str, most: str) -> None:
        """Make a role."""
        create = """CREATE ROLE "{{name}}" LOGIN PASSWORD '{{password}}' VALID UNTIL '{{expiration}}'"""
        of = {"db_name": "postgres", "creation_statements": [create], "default_ttl": ttl, "max_ttl": most}
        self.server.call("POST", f"{self.path}/roles/{name}", of)

    def login(self, **role: Any) -> dict[str, str]:
        """Return the properties of a component that logs in."""
        login = approle(self.server, self.allowed, **role)
        self.server.forget()
        return {"vaultAddr": self.server.address, "enginePath": self.path, "vaultEngineType": "dynamic", **login}

    def given(self, token: str, **more: str) -> dict[str, str]:
        """Return the properties of a component with a token."""
        address = {"vaultAddr": self.server.address, "vaultToken": token}
        return {**address, "enginePath": self.path, "vaultEngineType": "dynamic", **more}

    def made(self) -> int:
        """Count the credentials made since `OpenBao.forget`."""
        return count(self.server, f"{self.path}/creds/app")

    def users(self) -> list[str]:
        """Return the users in the database that this engine has issued and not revoked."""
        return self.database.query(f"SELECT rolname FROM pg_roles WHERE rolname LIKE '{self.prefix}-%'")

    def works(self, values: Any) -> bool:
        """Say whether credentials open the database."""
        return self.database.accepts(values["username"].decode(), values["password"].decode())


def enable_path() -> str:
    return f"database-{time.monotonic_ns()}"
