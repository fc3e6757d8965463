"""How the AWS stores speak HTTP: everything that botocore sends goes through one `Transport`.

botocore knows the protocols and signs; connections, trust and time are those of `secretfs.stores._http`. botocore's own
session would wait for each byte anew, and trust the authorities of certifi.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from ssl import SSLContext

from botocore.awsrequest import AWSPreparedRequest, AWSResponse

from secretfs.errors import ConfigurationError
from secretfs.stores._http.exchange import Exchange
from secretfs.stores._http.trust import Trust, file_identity, system_trust, tls_context


class Transport(Exchange):
    """Carries the requests of one store."""

    def __init__(self, component: str, deadline: float) -> None:
        super().__init__(deadline, _trust(component))

    def send_for_sdk(self, request: AWSPreparedRequest, **_: object) -> AWSResponse:
        """Send a signed request in place of botocore. Raises `StoreError`, which botocore passes on."""
        answer = self.send(request.method, request.url, request.headers, request.body)
        return AWSResponse(request.url, answer.status, answer.headers, _Body(answer.body))


class _Body:
    """The body of an answer that has been read, as botocore reads one."""

    def __init__(self, body: bytes) -> None:
        self._body = body

    def stream(self) -> Iterator[bytes]:
        """Yield it."""
        yield self._body


def _trust(component: str) -> Trust:
    """Trust AWS_CA_BUNDLE, as all SDKs of AWS do, or the system's authorities."""
    bundle = os.environ.get("AWS_CA_BUNDLE")
    if not bundle:
        return system_trust(component)

    def make() -> SSLContext:
        try:
            return tls_context([Path(bundle).read_text(encoding="ascii")])
        except (OSError, UnicodeError):
            raise ConfigurationError("AWS_CA_BUNDLE cannot be read") from None

    return Trust(component, make, lambda: file_identity(bundle))
