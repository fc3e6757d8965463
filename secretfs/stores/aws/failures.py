"""What failures of AWS mean. AWS answers 400 to nearly everything: the code of the error decides, not the status.

Codes are shown when they are known. The texts of answers are never shown, because they could hold anything.
"""

from collections.abc import Mapping
from typing import Any, Final

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    MetadataRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    SSOError,
    SSOTokenLoadError,
    TokenRetrievalError,
)
from botocore.parsers import ResponseParserError

from secretfs.errors import AccessDenied, MalformedAnswer, SecretNotFound, StoreError, StoreUnavailable
from secretfs.stores._http.failures import LacksRight, NotKnown

_NOT_FOUND: Final = {
    "ResourceNotFoundException": "not found",
    "ParameterNotFound": "not found",
    "ParameterVersionNotFound": "not found",
    "InvalidRequestException": "it is marked for deletion",
    "InvalidParameterException": "no name that AWS takes",
    "ValidationException": "no name that AWS takes",
}
_CREDENTIALS: Final = {
    "UnrecognizedClientException": "the access key is not known",
    "InvalidClientTokenId": "the access key is not known",
    "InvalidSignatureException": "the secret key is wrong",
    "SignatureDoesNotMatch": "the secret key is wrong",
    "ExpiredTokenException": "the session token has expired",
    "ExpiredToken": "the session token has expired",
    "RequestExpired": "the session token has expired",
    "InvalidIdentityToken": "the web identity token is refused",
    "IDPRejectedClaim": "the web identity token is refused",
    "IncompleteSignature": "the credentials are incomplete",
    "MissingAuthenticationToken": "the credentials are incomplete",
    "MissingAuthenticationTokenException": "the credentials are incomplete",
    "NotAuthorized": "the account may not use this service",
    "OptInRequired": "the account may not use this service",
    "RegionDisabledException": "the region is disabled for the account",
}
_POLICY: Final = {
    "AccessDeniedException": "no policy lets this identity do that",
    "AccessDenied": "no policy lets this identity do that",
    "UnauthorizedException": "no policy lets this identity do that",
}
_KEY: Final = {
    "DecryptionFailure": "the KMS key cannot be used",
    "InvalidKeyId": "the KMS key cannot be used",
    "KMSAccessDeniedException": "the KMS key cannot be used",
    "KMSDisabledException": "the KMS key cannot be used",
    "KMSInvalidStateException": "the KMS key cannot be used",
}
_UNAVAILABLE: Final = {
    "ThrottlingException": "too many requests",
    "Throttling": "too many requests",
    "TooManyRequestsException": "too many requests",
    "RequestLimitExceeded": "too many requests",
    "LimitExceededException": "too many requests",
    "InternalServiceError": "server error",
    "InternalServerError": "server error",
    "InternalFailure": "server error",
    "ServiceUnavailable": "server error",
    "ServiceUnavailableException": "server error",
    "IDPCommunicationError": "STS cannot reach the identity provider",
}
_KINDS: Final[tuple[tuple[Mapping[str, str], type[StoreError]], ...]] = (
    (_NOT_FOUND, SecretNotFound),
    (_CREDENTIALS, NotKnown),
    (_POLICY, LacksRight),
    (_KEY, AccessDenied),
    (_UNAVAILABLE, StoreUnavailable),
)
SDK_ERRORS: Final = (
    ClientError, BotoCoreError, ResponseParserError, StoreError,
    # What comes of an answer that is not what the SDK expects, or of a file that it cannot read.
    AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError,
)  # fmt: skip
"""What a call of the SDK raises."""
_OUR_CLOCK: Final = ("Signature expired", "Signature not yet current", "RequestTimeTooSkewed")


def meaning(where: str, error: Exception) -> StoreError:
    """Turn what botocore raised into an error. ``where`` is the service and the region."""
    kind: type[StoreError] = NotKnown
    match error:
        case StoreError():
            kind, reason = type(error), str(error)
        case ClientError():
            return _refused_role(where, error) if _takes_role(error) else _refusal_of(where, error)
        case NoCredentialsError():
            reason = "no credentials: neither accessKey nor the environment, profiles, containers or EC2 have any"
        case PartialCredentialsError() | SSOError() | SSOTokenLoadError() | TokenRetrievalError():
            reason = f"the credentials of the environment cannot be used ({type(error).__name__})"
        case CredentialRetrievalError():
            reason = f"the source of the credentials gives none ({_provider(error)})"
        case OSError():  # the token file of a web identity; a program for credentials
            reason = f"{error.filename}: {error.strerror}" if error.filename else "a file cannot be read"
        case MetadataRetrievalError():
            kind, reason = StoreUnavailable, "the metadata service gives no credentials"
        case BotoCoreError():
            kind, reason = StoreUnavailable, f"{where}: {type(error).__name__}"
        case _:
            kind, reason = MalformedAnswer, f"{where}: not an answer of AWS"
    return kind(reason)


def refusal(where: str, code: str, status: int = 400, text: str = "") -> StoreError:
    """Turn an error in an answer into an error: of a request, or of one secret in a batch."""
    if any(phrase in text or phrase == code for phrase in _OUR_CLOCK):
        return AccessDenied(f"{where}: the clock of this machine is wrong: AWS refuses the time of the signature")
    for known, kind in _KINDS:
        if code in known:
            return kind(f"{where}: {known[code]} ({code})")
    if status == 429:
        return StoreUnavailable(f"{where}: too many requests ({status})")
    if status >= 500:
        return StoreUnavailable(f"{where}: server error ({status})")
    if status in (401, 403):
        return LacksRight(f"{where}: no policy lets this identity do that ({status})")
    return MalformedAnswer(f"{where}: an error that is not known ({status})")


def _code(error: ClientError) -> str:
    code = error.response.get("Error", {}).get("Code", "")
    return code if isinstance(code, str) else ""


def _refusal_of(where: str, error: ClientError) -> StoreError:
    return refusal(where, _code(error), _status(error), _text(error))


def _refused_role(where: str, error: ClientError) -> StoreError:
    """Return why STS lends no credentials. Who lacks the right to a role is not known to the service after it."""
    sts = where.replace(where.partition(".")[0], "sts", 1)
    failure = _refusal_of(sts, error)
    if not isinstance(failure, LacksRight):
        return failure
    return NotKnown(f"{sts}: the role does not trust this identity ({_code(error) or _status(error)})")


def _takes_role(error: ClientError) -> bool:
    return str(error.operation_name).startswith("AssumeRole")


def _status(error: ClientError) -> int:
    metadata: Mapping[str, Any] = error.response.get("ResponseMetadata", {})
    return int(metadata.get("HTTPStatusCode", 0))


def _text(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Message", ""))


def _provider(error: CredentialRetrievalError) -> str:
    provider = str(error.kwargs.get("provider", ""))
    return provider if provider.replace("-", "").isalnum() else "unknown"
