"""The properties of a ``secretstores.hashicorp.vault`` component. Names and rules are Dapr's where it has them."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from secretfs.durations import parse_duration
from secretfs.settings import setting, truthy

METHODS = ("token", "kubernetes", "approle", "jwt", "userpass", "cert", "aws", "gcp", "azure")


def _or(default: str) -> Callable[[str], str]:
    """Return what reads a property whose empty text means its default."""
    return lambda text: text or default


def _path(default: str) -> Callable[[str], str]:
    return lambda text: text.strip("/") or default


def _namespace(text: str) -> str:
    name = text.strip().strip("/")
    if not name.isascii() or not name.isprintable():
        raise ValueError("it has characters that no HTTP header can carry")
    return name


def _value_type(text: str) -> str:
    if text not in ("", "map", "text"):
        raise ValueError("vault init error, invalid value type, accepted values are map or text")
    return text or "map"


def _auth_method(text: str) -> str:
    if text and text not in METHODS:
        raise ValueError(f"the methods are {', '.join(METHODS)}")
    return text or "token"


def _engine_type(text: str) -> str:
    if text not in ("", "kv", "dynamic", "pki"):
        raise ValueError("the types are kv, dynamic and pki")
    return text or "kv"


def _parameters(text: str) -> str:
    try:
        is_object = isinstance(json.loads(text or "{}"), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise ValueError("not a JSON object")
    return text


def _duration(text: str) -> str:
    if text and parse_duration(text) <= 0:
        raise ValueError("must be longer than nothing")
    return text or "24h"


@dataclass(frozen=True, slots=True, repr=False)
class Settings:
    """The properties. They hold credentials: there is no ``repr``."""

    address: str = setting(
        "vaultAddr",
        "URL of the server.",
        default="https://127.0.0.1:8200",
        parse=_or("https://127.0.0.1:8200"),
        guards=True,
    )
    namespace: str = setting(
        "vaultNamespace",
        "The namespace that holds the engine and the auth method, such as team or team/payments.",
        parse=_namespace,
        guards=True,
    )
    token: str = setting("vaultToken", "The token. Give either this or vaultTokenMountPath.")
    token_path: str = setting("vaultTokenMountPath", "A file with the token, read again when it changes.")
    token_wrapping_path: str = setting(
        "vaultTokenWrappingPath",
        "token: says that what is given wraps the token, and where it must have been wrapped, such as "
        "auth/token/create.",
        parse=_path(""),
    )
    prefix: str = setting(
        "vaultKVPrefix", "The folder of the engine that the store serves.", default="dapr", parse=_or("dapr")
    )
    use_prefix: bool = setting(
        "vaultKVUsePrefix", "Whether vaultKVPrefix counts; without it the store is the whole engine.", default=True,
        parse=truthy,
    )  # fmt: skip
    engine: str = setting(
        "enginePath",
        "Where the engine is mounted, such as secret or teams/payments/kv.",
        default="secret",
        parse=_path("secret"),
    )
    value_type: str = setting(
        "vaultValueType",
        "map: a secret is a directory of its members. text: a secret is one file, the JSON text of all members.",
        default="map",
        parse=_value_type,
    )
    skip_verify: bool = setting(
        "skipVerify",
        "The exact word true switches the verification of the server's certificate off. For experiments only.",
        default=False,
        parse=lambda text: text == "true",
    )
    tls_server_name: str = setting(
        "tlsServerName", "The name expected in the server's certificate, instead of the host of vaultAddr.", guards=True
    )
    ca_pem: str = setting(
        "caPem", "PEM text of the authorities to trust, instead of the system's. Before caPath.", guards=True
    )
    ca_path: str = setting("caPath", "A folder of PEM files to trust, with its subfolders. Before caCert.", guards=True)
    ca_cert: str = setting("caCert", "A PEM file to trust.", guards=True)
    client_cert: str = setting("vaultClientCert", "PEM text of the certificate that we show, with its chain.")
    client_key: str = setting("vaultClientKey", "PEM text of its private key, if vaultClientCert does not have it.")
    client_cert_path: str = setting("vaultClientCertPath", "A PEM file with the certificate that we show.")
    client_key_path: str = setting(
        "vaultClientKeyPath", "A PEM file with its private key, if vaultClientCertPath does not have it."
    )

    method: str = setting(
        "vaultAuthMethod",
        "How to get a token: token (it is given), kubernetes, approle, jwt, userpass, cert, aws, gcp or azure.",
        default="token",
        parse=_auth_method,
    )
    kubernetes_role: str = setting("vaultKubernetesRole", "kubernetes: the role.")
    kubernetes_mount: str = setting(
        "vaultKubernetesMountPath",
        "kubernetes: where the method is mounted.",
        default="kubernetes",
        parse=_path("kubernetes"),
    )
    service_account_path: str = setting(
        "vaultServiceAccountTokenPath",
        "kubernetes: the file with the service account's token.",
        default="/var/run/secrets/kubernetes.io/serviceaccount/token",
        parse=_or("/var/run/secrets/kubernetes.io/serviceaccount/token"),
    )
    role_id: str = setting("vaultAppRoleId", "approle: the role id.")
    secret_id: str = setting("vaultAppRoleSecretId", "approle: the secret id. Give either this or the path.")
    secret_id_path: str = setting("vaultAppRoleSecretIdPath", "approle: a file with the secret id.")
    wrapping_path: str = setting(
        "vaultAppRoleSecretIdWrappingPath",
        "approle: says that what is given wraps the secret id, and where it must have been wrapped: "
        "auth/approle/role/NAME/secret-id.",
        parse=_path(""),
    )
    approle_mount: str = setting(
        "vaultAppRoleMountPath", "approle: where the method is mounted.", default="approle", parse=_path("approle")
    )
    jwt_role: str = setting("vaultJwtRole", "jwt: the role; without it, the method's default role.")
    jwt: str = setting("vaultJwt", "jwt: the token to log in with. Give either this or vaultJwtPath.")
    jwt_path: str = setting("vaultJwtPath", "jwt: a file with the token to log in with.")
    jwt_mount: str = setting(
        "vaultJwtMountPath", "jwt: where the method is mounted.", default="jwt", parse=_path("jwt")
    )
    username: str = setting("vaultUserpassUsername", "userpass: the name.")
    password: str = setting("vaultUserpassPassword", "userpass: the password. Give either this or the path.")
    password_path: str = setting("vaultUserpassPasswordPath", "userpass: a file with the password.")
    userpass_mount: str = setting(
        "vaultUserpassMountPath", "userpass: where the method is mounted.", default="userpass", parse=_path("userpass")
    )
    cert_role: str = setting("vaultCertRole", "cert: the role; without it, any that takes the certificate.")
    cert_mount: str = setting(
        "vaultCertMountPath", "cert: where the method is mounted.", default="cert", parse=_path("cert")
    )

    aws_role: str = setting("vaultAwsRole", "aws: the role; without it, that of the name of the identity.")
    aws_mount: str = setting(
        "vaultAwsMountPath", "aws: where the method is mounted.", default="aws", parse=_path("aws")
    )
    aws_region: str = setting(
        "vaultAwsRegion",
        "aws: the region of the STS that Vault asks, for the signature.",
        default="us-east-1",
        parse=_or("us-east-1"),
    )
    aws_server_id: str = setting("vaultAwsServerId", "aws: what iam_server_id_header_value of the method says.")
    aws_access_key: str = setting(
        "vaultAwsAccessKey", "aws: access key id. Without it, credentials are looked for as the stores of AWS do."
    )
    aws_secret_key: str = setting("vaultAwsSecretKey", "aws: secret access key.")
    aws_session_token: str = setting("vaultAwsSessionToken", "aws: session token of temporary keys.")
    gcp_role: str = setting("vaultGcpRole", "gcp: the role.")
    gcp_mount: str = setting(
        "vaultGcpMountPath", "gcp: where the method is mounted.", default="gcp", parse=_path("gcp")
    )
    gcp_key_path: str = setting(
        "vaultGcpKeyPath",
        "gcp: a file with the key of a service account, in JSON. Without it, the metadata server is asked.",
    )
    azure_role: str = setting("vaultAzureRole", "azure: the role.")
    azure_mount: str = setting(
        "vaultAzureMountPath", "azure: where the method is mounted.", default="azure", parse=_path("azure")
    )
    azure_resource: str = setting(
        "vaultAzureResource",
        "azure: what resource of the method says.",
        default="https://management.azure.com/",
        parse=_or("https://management.azure.com/"),
    )
    azure_client_id: str = setting(
        "vaultAzureClientId", "azure: which of several managed identities. Without it, that of the machine."
    )

    engine_type: str = setting(
        "vaultEngineType",
        "kv: a secret is what is stored. dynamic: reading a secret issues a credential, which lives on a lease. "
        "pki: a secret is a certificate, issued when it is read.",
        default="kv",
        parse=_engine_type,
    )
    dynamic_path: str = setting(
        "vaultDynamicPath", "dynamic: the path in the engine before a secret's name.", default="creds",
        parse=_path("creds"),
    )  # fmt: skip
    dynamic_roles: str = setting(
        "vaultDynamicRolesPath", "dynamic: the path in the engine that lists the names.", default="roles",
        parse=_path("roles"),
    )  # fmt: skip
    dynamic_parameters: str = setting(
        "vaultDynamicParameters",
        "dynamic: a JSON object to send, for an engine that needs more than a name.",
        parse=_parameters,
    )
    dynamic_idle: str = setting(
        "vaultDynamicIdle",
        "dynamic: for how long after a secret was last opened its lease is renewed.",
        default="24h",
        parse=_duration,
    )


def given(settings: Any, field: str) -> bool:
    """Say whether a property has another value than its default."""
    return bool(getattr(settings, field) != settings.__dataclass_fields__[field].default)
