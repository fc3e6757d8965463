"""Ways to log in to a real OpenBao: each sets its method up and returns the properties of a component that uses it.

What a role allows is the policy of `reading`; roles give tokens that live for ``ttl`` and no longer than ``most``.
"""

import itertools
import json
from typing import Any

from tests.support.canary import secret
from tests.support.servers.openbao import OpenBao

_numbers = itertools.count(1)


def policy(server: OpenBao, **capabilities: str) -> str:
    """Make a policy: ``policy(server, **{"secret/data/db": "read"})``. Returns its name."""
    name = f"login-policy-{next(_numbers)}"
    rules = [f'path "{path}" {{ capabilities = {json.dumps(can.split())} }}' for path, can in capabilities.items()]
    server.call("PUT", f"sys/policies/acl/{name}", {"policy": "\n".join(rules)})
    return name


def reading(server: OpenBao, prefix: str) -> str:
    """Make a policy for the secrets in a folder of ``secret``."""
    return policy(server, **{f"secret/data/{prefix}/*": "read", f"secret/metadata/{prefix}/*": "list"})


def role(allowed: str, ttl: str = "1h", most: str = "0", **more: Any) -> dict[str, Any]:
    """Return what all methods want to know of a role."""
    return {"token_policies": [allowed], "token_ttl": ttl, "token_max_ttl": most, **more}


def enable(server: OpenBao, type: str) -> str:  # noqa: A002
    """Mount an auth method of this type at a new path, and return the path."""
    path = f"{type}-{next(_numbers)}"
    server.call("POST", f"sys/auth/{path}", {"type": type})
    return path


def approle(server: OpenBao, allowed: str, ttl: str = "1h", most: str = "0", **more: Any) -> dict[str, str]:
    """Make a role with a secret id."""
    path = enable(server, "approle")
    server.call("POST", f"auth/{path}/role/app", role(allowed, ttl, most, **more))
    role_id = server.call("GET", f"auth/{path}/role/app/role-id")["data"]["role_id"]
    secret_id = secret(f"secret-id-{path}")
    server.call("POST", f"auth/{path}/role/app/custom-secret-id", {"secret_id": secret_id})
    return {
        "vaultAuthMethod": "approle",
        "vaultAppRoleId": role_id,
        "vaultAppRoleSecretId": secret_id,
        "vaultAppRoleMountPath": path,
    }


def userpass(server: OpenBao, allowed: str, ttl: str = "1h", most: str = "0", **more: Any) -> dict[str, str]:
    """Make a user."""
    path = enable(server, "userpass")
    password = secret(" pässword ")
    server.call("POST", f"auth/{path}/users/app", {"password": password, **role(allowed, ttl, most, **more)})
    return {
        "vaultAuthMethod": "userpass",
        "vaultUserpassUsername": "app",
        "vaultUserpassPassword": password,
        "vaultUserpassMountPath": path,
    }


def logins(server: OpenBao) -> int:
    """Count the logins since `OpenBao.forget`."""
    return sum(path.startswith("auth/") and "/login" in path for _, path in server.requests())


def count(server: OpenBao, path: str) -> int:
    """Count the requests to one path since `OpenBao.forget`."""
    return sum(asked == path for _, asked in server.requests())


def revoke_tokens(server: OpenBao, allowed: str) -> int:
    """Revoke all tokens with this policy, and say how many there were."""
    revoked = 0
    for accessor in server.call("LIST", "auth/token/accessors")["data"]["keys"]:
        found = server.call("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        if allowed in found["policies"]:
            server.call("POST", "auth/token/revoke-accessor", {"accessor": accessor})
            revoked += 1
    return revoked
