"""URLs that a component names to send requests to."""

from collections.abc import Mapping
from typing import Final

from urllib3.util import parse_url

from secretfs.errors import ConfigurationError

ENDPOINT: Final = "secretfs/endpoint"
"""The annotation with a URL for the requests of a store that Dapr gives no property for that."""


def endpoint(annotations: Mapping[str, str], example: str) -> str:
    """Return the endpoint of an annotation, without a slash at its end; empty if there is none."""
    return require_url(ENDPOINT, annotations.get(ENDPOINT, "").rstrip("/"), example, may_have_path=False)


def require_url(name: str, text: str, example: str, *, may_have_path: bool) -> str:
    """Return the text of a URL, which may be empty. Raises `ConfigurationError`, with the name of the field."""
    try:
        url = parse_url(text)
    except ValueError:
        url = parse_url("")
    is_good = url.scheme in ("http", "https") and url.host and not (url.auth or url.query or url.fragment)
    if text and not (is_good and (may_have_path or not url.path)):
        raise ConfigurationError(f"{name} is not a URL such as {example}")
    return text
