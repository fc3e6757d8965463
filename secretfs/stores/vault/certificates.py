"""The annotation that declares which certificates a PKI engine is to issue: for whom, and by which role. Pure.

secretfs/certificates: |
  web: {common_name: web.example, alt_names: "www.web.example,web", ttl: 72h}
  admin: {role: people, common_name: admin@web.example}
"""

from collections.abc import Mapping
from typing import Any, Final

import yaml

from secretfs.errors import ConfigurationError
from secretfs.settings import nearest
from secretfs.stores.vault.engines import Certificate
from secretfs.stores.vault.response import addressable

CERTIFICATES: Final = "secretfs/certificates"
_PARAMETERS: Final = (
    "common_name", "alt_names", "ip_sans", "uri_sans", "other_sans", "serial_number", "ttl", "not_after",
    "private_key_format", "exclude_cn_from_sans", "remove_roots_from_chain", "user_ids",
)  # fmt: skip
"""What ``issue`` takes, except ``format``: all files are PEM.
https://openbao.org/api-docs/secret/pki/#generate-certificate-and-key"""


def read_certificates(text: str) -> dict[str, Certificate]:
    """Read the annotation. Raises `ConfigurationError`."""
    try:
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        raise ConfigurationError(f"{CERTIFICATES}: not YAML") from None
    found = {name: _certificate(name, node) for name, node in _members(CERTIFICATES, root).items()}
    if not found:
        raise ConfigurationError(f"{CERTIFICATES}: it declares no certificate")
    return found


def _certificate(name: str, node: yaml.Node) -> Certificate:
    where = f"{CERTIFICATES}: {name}"
    members = {parameter: _value(f"{where}.{parameter}", value) for parameter, value in _members(where, node).items()}
    role = members.pop("role", name)
    if not isinstance(role, str) or not addressable(role) or "/" in role:
        raise ConfigurationError(f"{where}: not the name of a role; say role: NAME")
    for parameter in members:
        if parameter not in _PARAMETERS:
            hint = nearest(parameter, ("role", *_PARAMETERS))
            raise ConfigurationError(f"{where}: unknown parameter {parameter}{hint}")
    if not addressable(name):
        raise ConfigurationError(f"{where}: not a name for a directory")
    return Certificate(role, members)


def _members(where: str, node: yaml.Node | None) -> Mapping[str, yaml.Node]:
    if not isinstance(node, yaml.MappingNode):
        raise ConfigurationError(f"{where}: not a mapping, such as NAME: {{common_name: app.example}}")
    members: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigurationError(f"{where}: a name that is no text")
        if key.value in members:
            raise ConfigurationError(f"{where}: {key.value} is there twice")
        members[key.value] = value
    return members


def _value(where: str, node: yaml.Node) -> Any:
    """Return a text, or a list of texts: the server knows what is a number or a truth."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if isinstance(node, yaml.SequenceNode) and all(isinstance(each, yaml.ScalarNode) for each in node.value):
        return [str(each.value) for each in node.value]
    raise ConfigurationError(f"{where}: neither a text nor a list of texts")
