"""What components may not do whose authors are not trusted with the host: those of a set of objects.

Whoever may write Component objects of a namespace decides what the daemon asks, and the daemon has files, variables,
credentials and a network that its authors do not have. So their components are of few types; each property says what it
is for here, and one that nobody has thought about is refused. They log in with credentials that they bring along, or
with the token of the pod; and they lead to no address that means this machine.

What stays possible is in ``docs/security.md``.
"""

import ipaddress
import re
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from secretfs.dapr.component import Component
from secretfs.errors import ConfigurationError, Source
from secretfs.registry.annotations import FRESHNESS, PREFIX
from secretfs.settings import Property, SettingSpec, specs
from secretfs.stores import load_store_type
from secretfs.stores._token_file import TOKEN_FILE

Resolve = Callable[[str], Sequence[str]]
"""Returns the IP addresses of a host. Raises OSError."""

METADATA_SERVICES: Final = frozenset({
    "168.63.129.16",  # Azure
    "100.100.100.200",  # Alibaba Cloud
    "192.0.0.192",  # Oracle Cloud
    "fd00:ec2::254",  # AWS
    "fd20:ce::254",  # Google Cloud
})  # fmt: skip
"""Addresses that give a machine of a cloud its identity, and are not link-local."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_THIS_NETWORK: Final = ipaddress.ip_network("0.0.0.0/8")
_URL: Final = re.compile(
    r"https?://(?:\[(?P<v6>[0-9A-Fa-f:.]+)(?:%[A-Za-z0-9._-]+)?\]|(?P<name>[A-Za-z0-9._-]+))"
    r"(?::[0-9]{1,5})?(?:/[A-Za-z0-9._~/-]*)?"
)
"""Stricter than others read a URL, so that they cannot read another host there."""

_A_TOKEN: Final = "it can be a token of the pod, {appToken:AUDIENCE}, and no other file"  # noqa: S105 - no token


@dataclass(frozen=True, slots=True)
class _Rules:
    """What components of a type may say. Properties are named as the type names them."""

    free: frozenset[str]
    """Properties that may be anything."""
    needs: Callable[[Mapping[str, str], bool], str]
    """Says what is missing to log in, from the properties and whether there is a token file; empty if nothing is."""
    token_paths: frozenset[str] = frozenset()
    """Properties that are paths, of a token of the pod and of no other file."""
    addresses: frozenset[str] = frozenset()
    annotations: frozenset[str] = frozenset()
    """Annotations that may be anything, besides those of all types."""
    choices: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Properties that may be some of what they may be elsewhere: words, with commas between."""


def _vault(given: Mapping[str, str], _token: bool) -> str:  # noqa: FBT001 - as those of other types
    if not given.get("vaultAddr"):
        return "vaultAddr: without it the server would be one of this machine"
    if given.get("vaultAuthMethod") == "kubernetes" and not given.get("vaultServiceAccountTokenPath"):
        return "vaultServiceAccountTokenPath: without it the login would be that of this machine"
    return ""


def _aws(given: Mapping[str, str], token: bool) -> str:  # noqa: FBT001
    keys = given.get("accessKey") and given.get("secretKey")
    return "" if keys or token else f"accessKey and secretKey, or the annotation {TOKEN_FILE}"


def _azure(given: Mapping[str, str], token: bool) -> str:  # noqa: FBT001
    # After a secret that is refused all other ways to log in are tried, and one of them is that of this machine.
    return "" if given.get("azureAuthMethods") or token else f"azureAuthMethods, or the annotation {TOKEN_FILE}"


def _gcp(given: Mapping[str, str], token: bool) -> str:  # noqa: FBT001
    return "" if given.get("privateKeyID") or token else f"privateKeyID, or the annotation {TOKEN_FILE}"


_AWS_ACCOUNT: Final = {
    "region", "accessKey", "secretKey", "sessionToken", "assumeRoleArn",
}  # fmt: skip

RULES: Final[Mapping[str, _Rules]] = {
    "secretstores.hashicorp.vault": _Rules(
        free=frozenset({
            "vaultNamespace", "vaultToken", "vaultTokenWrappingPath", "vaultKVPrefix", "vaultKVUsePrefix", "enginePath",
            "vaultValueType", "skipVerify", "tlsServerName", "caPem", "vaultClientCert", "vaultClientKey",
            "vaultKubernetesRole", "vaultKubernetesMountPath", "vaultAppRoleId", "vaultAppRoleSecretId",
            "vaultAppRoleSecretIdWrappingPath", "vaultAppRoleMountPath", "vaultJwtRole", "vaultJwt",
            "vaultJwtMountPath", "vaultUserpassUsername", "vaultUserpassPassword", "vaultUserpassMountPath",
            "vaultCertRole", "vaultCertMountPath", "vaultEngineType", "vaultDynamicPath", "vaultDynamicRolesPath",
            "vaultDynamicParameters", "vaultDynamicIdle",
        }),
        needs=_vault,
        token_paths=frozenset({"vaultTokenMountPath", "vaultServiceAccountTokenPath", "vaultJwtPath"}),
        addresses=frozenset({"vaultAddr"}),
        annotations=frozenset({"secretfs/certificates"}),
        choices={"vaultAuthMethod": frozenset({"token", "kubernetes", "approle", "jwt", "userpass", "cert"})},
    ),
    "secretstores.aws.secretmanager": _Rules(
        free=frozenset({*_AWS_ACCOUNT, "multipleKeyValuesPerSecret"}), needs=_aws, addresses=frozenset({"endpoint"})
    ),
    "secretstores.aws.parameterstore": _Rules(
        free=frozenset({*_AWS_ACCOUNT, "prefix"}), needs=_aws, addresses=frozenset({"endpoint"})
    ),
    "secretstores.azure.keyvault": _Rules(
        free=frozenset({
            "vaultName", "azureTenantId", "azureClientId", "azureClientSecret", "azureCertificate",
            "azureCertificatePassword", "azureEnvironment",
        }),
        needs=_azure,
        choices={"azureAuthMethods": frozenset({"clientcredentials", "creds", "clientcertificate", "cert"})},
    ),
    "secretstores.gcp.secretmanager": _Rules(
        free=frozenset({
            "projectID", "type", "privateKeyID", "privateKey", "clientEmail", "clientID", "authURI", "tokenURI",
            "authProviderX509CertURL", "clientX509CertURL",
        }),
        needs=_gcp,
        annotations=frozenset({"secretfs/location", "secretfs/workload-identity-provider"}),
    ),
}  # fmt: skip
"""By type. All others read files, variables, sockets or credentials of the host."""


def require_type(component: Component) -> None:
    """Make sure that a component is of a type that its author may use. Raises `ConfigurationError`.

    It comes before anything that imports the store.
    """
    if component.contained_in and component.type.lower() not in RULES:
        raise ConfigurationError(
            f"{component.type} is refused in a component that others write: there are {', '.join(RULES)}",
            component.source,
        )


def require_contained(
    component: Component, properties: Sequence[Property], annotations: Mapping[str, str], resolve: Resolve | None
) -> None:
    """Make sure that a component does nothing that its author may not, if it is of a set of objects.

    ``properties`` and ``annotations`` are what they resolve to. Names of hosts are looked up with ``resolve``, if there
    is one. Its type is one of `RULES` (`require_type`). Raises `ConfigurationError` with the place.
    """
    if not component.contained_in:
        return
    rules = RULES[component.type.lower()]
    for item in component.items:
        if item.env_ref:
            raise _refusal(item.name, "it cannot come from a variable of this machine (envRef)", item.source)
    names = _names(component)
    for prop in properties:
        _check(component, rules, names.get(prop.name.lower(), ""), prop, resolve)
    token = _check_annotations(component, rules, annotations)
    if missing := rules.needs(_given(component, properties), token):
        raise ConfigurationError(f"a component that others write needs {missing}", component.source)


def _names(component: Component) -> dict[str, str]:
    """Return what a property is called in the rules, by each name that it can have, in lower case."""
    return {name.lower(): spec.name for spec in _specs(component) for name in (spec.name, *spec.aliases)}


def _given(component: Component, properties: Sequence[Property]) -> dict[str, str]:
    """Return what the store is opened with: an alias does not count where the name itself is given, even if empty."""
    texts = {prop.name.lower(): prop.value for prop in properties}
    spellings = {spec.name: [name.lower() for name in (spec.name, *spec.aliases)] for spec in _specs(component)}
    return {name: next((texts[each] for each in spelt if each in texts), "") for name, spelt in spellings.items()}


def _specs(component: Component) -> Iterable[SettingSpec]:
    return specs(load_store_type(component.type, component.version, component.source).Settings).values()


def _check(component: Component, rules: _Rules, name: str, prop: Property, resolve: Resolve | None) -> None:
    if not name or name in rules.free or not prop.value:  # nothing reads it, or nothing is said
        return
    if name in rules.token_paths:
        if not _is_token_path(component, prop.value):
            raise _refusal(prop.name, _A_TOKEN, prop.source)
    elif name in rules.choices:
        words = {word.strip() for word in prop.value.lower().split(",")}
        if not words <= rules.choices[name]:
            allowed = ", ".join(sorted(rules.choices[name]))
            raise _refusal(prop.name, f"it can be {allowed}", prop.source)
    elif name in rules.addresses:
        _require_other_machine(prop, resolve)
    else:
        raise _refusal(prop.name, "it says what this machine has", prop.source)


def _check_annotations(component: Component, rules: _Rules, annotations: Mapping[str, str]) -> bool:
    """Check annotations of ours. Returns whether one names the token to log in with."""
    allowed = {*FRESHNESS, *rules.annotations, TOKEN_FILE}
    for name in component.annotations:
        if name.startswith(PREFIX) and name not in allowed:
            raise _refusal(f"annotation {name}", "it is for the administrator", component.annotation_sources.get(name))
    path = annotations.get(TOKEN_FILE, "")
    if path and not _is_token_path(component, path):
        source = component.annotation_sources.get(TOKEN_FILE)
        raise _refusal(f"annotation {TOKEN_FILE}", _A_TOKEN, source)
    return bool(path)


def _is_token_path(component: Component, path: str) -> bool:
    """Whether a path is that of a token of the app that the component is opened for."""
    directory, _, name = path.rpartition("/")
    return bool(component.tokens) and directory == component.tokens and name.endswith(".jwt")


def _require_other_machine(prop: Property, resolve: Resolve | None) -> None:
    """Raise `ConfigurationError` for a URL whose host means this machine, or what gives it its identity."""
    url = _URL.fullmatch(prop.value)
    if url is None:
        raise _refusal(prop.name, "it is no URL such as https://vault.example.com:8200", prop.source)
    host = url["v6"] or url["name"]
    own = _own(host)
    if own is None and resolve:
        with suppress(OSError, UnicodeError):  # nobody can be asked there now
            own = next((found for each in resolve(host) if (found := _own(each))), None)
    if own is not None or host.rstrip(".").lower().endswith("localhost"):
        place = "this machine" if own is None else str(own)
        raise _refusal(
            prop.name, f"{host} is {place}: loopback, beside this machine, or what identifies it", prop.source
        )


def _own(text: str) -> _Address | None:
    """Return the address that a text is, if components of others must not lead there; else None, also for a name."""
    try:
        address: _Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(text))  # such as 127.1, or a single number
        except OSError:
            return None
    if isinstance(address, ipaddress.IPv6Address):
        embedded = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.ipv4_mapped
        address = embedded or address
    special = address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast
    special = special or address.is_reserved or address in _THIS_NETWORK
    return address if special or str(address) in METADATA_SERVICES else None


def look_up(host: str) -> Sequence[str]:
    """Return the addresses of a host. Raises OSError."""
    return [str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]


def _refusal(what: str, reason: str, source: Source | None) -> ConfigurationError:
    return ConfigurationError(f"{what} is refused in a component that others write: {reason}", source)
